"""What the graphs for CUDA compute, on the CPU: with float32 in place of bfloat16 the same numbers as the CPU's graphs.

`in_float32` changes the type of the activations and nothing else; a bfloat16 checkpoint's weights are stored exactly.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoint_shapes import Shape
from cuda_kernels import FLOAT, value_types
from onnx_files import load
from parity_cases import embedding_items, rerank_requests
from random_checkpoint import TINY_2B, TINY_8B
from video_files import write_video

from quant.compare import compare
from quant.kernels import CUDA
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.graphs.graph import SessionGraph
from runtime.graphs.model import Model
from runtime.graphs.session import create_session, session_options
from runtime.manifest import DECODER, VISION, Manifest

Packages = Callable[..., Path]
CLOSE = 1e-5
SHAPES = pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2B", "8B"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", (160, 128), 23, 10)


@SHAPES
@pytest.mark.usefixtures("cuda_on_cpu")
def test_embeddings_are_those_of_the_cpu_package(
    package: Packages, cuda_package: Packages, tmp_path: Path, clip: Path, shape: Shape
) -> None:
    """Texts, pictures of every mode, videos and mixtures, in one batch and one by one."""
    items = list(embedding_items(tmp_path, clip).values())
    expected = Qwen3VLEmbedder(package(shape, "embedding")).process(items)
    embedder = Qwen3VLEmbedder(cuda_package(shape, "embedding", float32=True))
    assert embedder.package.manifest.target == "cuda" and embedder.batch_tokens == 8192
    assert np.abs(embedder.process(items) - expected).max() <= CLOSE
    assert np.abs(np.concatenate([embedder.process([item]) for item in items]) - expected).max() <= CLOSE


@SHAPES
@pytest.mark.usefixtures("cuda_on_cpu")
def test_scores_are_those_of_the_cpu_package(
    package: Packages, cuda_package: Packages, tmp_path: Path, clip: Path, shape: Shape
) -> None:
    requests = rerank_requests(tmp_path, clip).values()
    folders = package(shape, "reranker"), cuda_package(shape, "reranker", float32=True)
    one, other = map(Qwen3VLReranker, folders)
    for request in requests:
        assert np.abs(np.subtract(one.process(request), other.process(request))).max() <= CLOSE


def test_both_types_store_the_same_bytes(cuda_package: Packages) -> None:
    """What is measured and tested in float32 are the weights that CUDA multiplies."""
    for precision in ("bf16", "int4"):
        one, other = (cuda_package(TINY_2B, "embedding", precision, float32=each) for each in (False, True))
        for name in (DECODER, VISION):
            assert (one / f"{name}.data").read_bytes() == (other / f"{name}.data").read_bytes()
    assert CUDA.in_float32() != CUDA


@pytest.mark.usefixtures("cuda_on_cpu")
def test_packages_of_both_targets_can_be_compared(package: Packages, cuda_package: Packages, tmp_path: Path) -> None:
    """Matrix by matrix and layer by layer: the last layer sees all its queries on CUDA, one on the CPU."""
    inputs = tmp_path / "texts.jsonl"
    inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a red car", "stone " * 40, "鸭")))
    found = compare(package(TINY_2B, "embedding"), cuda_package(TINY_2B, "embedding", float32=True), inputs)
    assert len(found.layers) == TINY_2B.text.num_hidden_layers
    assert len(found.matrices) == 7 * TINY_2B.text.num_hidden_layers
    assert max(each.loss for each in found.layers) <= CLOSE
    assert max(each.relative for each in found.matrices) <= CLOSE
    assert found.agreement.largest <= CLOSE


class Rounded:
    """A graph in which every float that an operator gives, or that comes in, is rounded to bfloat16."""

    def __init__(self, path: Path, providers: Sequence[str], threads: int):
        model = load(path.parent, path.name)
        types = value_types(model.graph)
        outputs = {each.name for each in model.graph.output}
        taken = [each for node in model.graph.node for each in node.input if each and types[each] == FLOAT]
        rounded = {name: f"{name}:rounded" for name in dict.fromkeys(taken) if name not in outputs}
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = rounded.get(name, name)
        for name, new in rounded.items():
            short = onnx.helper.make_node("Cast", [name], [f"{name}:short"], to=onnx.TensorProto.BFLOAT16)
            model.graph.node.extend([short, onnx.helper.make_node("Cast", short.output, [new], to=FLOAT)])
        options = session_options(threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self.graph = SessionGraph(create_session(sorted_model(model).SerializeToString(), options))
        self.run = self.graph.run


def sorted_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes in an order in which every input is there before it is used."""
    known = {"", *(each.name for each in (*model.graph.input, *model.graph.initializer))}
    waiting = list(model.graph.node)
    del model.graph.node[:]
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        model.graph.node.extend(ready)
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    return model


@pytest.mark.usefixtures("cuda_on_cpu")
def test_rounding_to_bfloat16_after_every_operator_costs_little(cuda_package: Packages, tmp_path: Path) -> None:
    """As on CUDA, where the sums inside a kernel are in float32, too."""
    items = [each for name, each in embedding_items(tmp_path, tmp_path).items() if "video" not in each]
    folder = cuda_package(TINY_2B, "embedding", weights="calm", float32=True)
    embedder = Qwen3VLEmbedder(folder)
    expected = embedder.process(items)
    model = Model(folder, Manifest.read(folder), ["CPUExecutionProvider"], 2, Rounded)
    embedder.package = replace(embedder.package, model=model)
    found = embedder.process(items)
    cosines = (found * expected).sum(axis=1)
    assert np.abs(found - expected).max() > 100 * CLOSE
    assert cosines.min() > 0.999
