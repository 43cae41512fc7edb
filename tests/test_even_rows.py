"""MatMulNBits calculates a row that is left over from pairs in another order, and asymmetric 4-bit ones wrongly on some
processors (onnxruntime issue 29853): no product in blocks may ever see an odd number of rows. Attention calculates a
single query that is left over from its blocks in another order, too."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from agreement_inputs import picture
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from onnx_files import bodies, load, nodes
from qwen_tokenizer import Task

from quant.prompts import Prompt, sample_prompt
from runtime.errors import InputError
from runtime.graphs import decoder, vision
from runtime.graphs.graph import NOWHERE, Arrays, SessionGraph
from runtime.graphs.model import Model
from runtime.graphs.package import open_encoder
from runtime.graphs.session import create_session, session_options
from runtime.graphs.target import TARGETS
from runtime.graphs.vision import pieces_of
from runtime.manifest import DECODER, VISION, Manifest
from runtime.prompts.encode import TokenSequence

MODELS: list[tuple[Shape, Task]] = [(TINY_2B, "embedding"), (TINY_8B, "reranker")]


@pytest.fixture(params=MODELS, ids=["2B embedding", "8B reranker"])
def model(request: pytest.FixtureRequest) -> tuple[Shape, Task]:
    return request.param


def block_products(folder: Path, graph: str, bits: int) -> set[str]:
    """Weights of the products in blocks of `bits`."""
    products = nodes(load(folder, graph), "MatMulNBits")
    return {
        node.input[1] for node in products if any(each.name == "bits" and each.i == bits for each in node.attribute)
    }


def prompt(folder: Path, content: dict[str, Any], max_length: int = 8192) -> Prompt:
    """A prompt with the shortest instruction there is, cut to `max_length` tokens where the task allows it."""
    manifest = Manifest.read(folder)
    defaults = replace(manifest.defaults, max_length=max_length, default_instruction=".")
    encoder = open_encoder(folder, replace(manifest, defaults=defaults), {})
    return sample_prompt(encoder, manifest.task, content, "inputs[0]")


class CountingGraph:
    """An open graph that notes how many rows each product in blocks sees, by the name of its weight."""

    def __init__(self, path: Path, counts: dict[str, set[int]]):
        model = load(path.parent, path.name)
        self.shapes: dict[str, str] = {}
        for scan in (None, *nodes(model, "Scan")):
            graph = model.graph if scan is None else bodies(scan)[0]
            for node in [each for each in graph.node if each.op_type == "MatMulNBits"]:
                shape = f"{node.input[1]}:shape"
                graph.node.append(onnx.helper.make_node("Shape", [node.input[0]], [shape], end=-1))
                if scan is not None:
                    graph.output.append(onnx.ValueInfoProto(name=shape))
                    shape = f"{shape}s"
                    scan.output.append(shape)
                model.graph.output.append(onnx.ValueInfoProto(name=shape))
                self.shapes[node.input[1]] = shape
        options = session_options(threads=1)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        session = create_session(model.SerializeToString(), options)
        self.graph, self.counts = SessionGraph(session), counts

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """As `Graph.run`."""
        outputs = self.graph.run([*names, *self.shapes.values()], feeds, into)
        for name, shape in zip(self.shapes, outputs[len(names) :], strict=True):
            each = shape[0] if shape.ndim > 1 else shape  # a Scan has one for every piece, all equal
            self.counts.setdefault(name, set()).add(int(np.prod(each)))
        return list(outputs[: len(names)])


def row_counts(folder: Path, batches: list[list[Prompt]]) -> dict[str, set[int]]:
    """How many rows each product in blocks sees."""
    counts: dict[str, set[int]] = {}
    model = Model(folder, Manifest.read(folder), [], 1, lambda path, *_: CountingGraph(path, counts))
    for batch in batches:
        assert np.isfinite(model.pooled([model.prompt(each.sequence, each.visuals) for each in batch])).all()
    return counts


@pytest.mark.parametrize("precision", ["int8-portable", "int4-portable"])
def test_products_in_blocks_see_an_even_number_of_rows(
    package: Callable[..., Path], model: tuple[Shape, Task], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "pieces_of", lambda rows: pieces_of(rows, wanted=8))  # else these are one piece
    folder = package(*model, precision)
    texts = [prompt(folder, {"text": "a" + " stone" * words}) for words in range(4)]
    pictures = [prompt(folder, {"image": picture(1, size)}) for size in ((96, 96), (64, 96))]
    lengths = [len(each.sequence.input_ids) for each in texts]
    tokens = [each.visuals[0].tokens_per_frame for each in pictures]
    assert {length % 2 for length in lengths} == {count % 2 for count in tokens} == {0, 1}  # not even by chance

    counts = row_counts(folder, [*([each] for each in (*texts, *pictures)), [*texts[:3], pictures[0]]])
    four, eight = (block_products(folder, DECODER, bits) for bits in (4, 8))
    layers = Manifest.read(folder).text.num_hidden_layers
    # All of them, those of the last layer too; keys and values have eight bits.
    assert (len(four), len(eight)) == ((5 * layers, 2 * layers) if precision == "int4-portable" else (0, 7 * layers))
    for name in four | eight | block_products(folder, VISION, 8):
        assert {count % 2 for count in counts[name]} == {0}, name
    query = f"model.language_model.layers.{layers - 1}.self_attn.q_proj.weight"
    assert counts[query] == {2, 8}  # the last layer sees the last tokens only, twice


@pytest.mark.parametrize("max_length", [2, 3])
def test_the_shortest_prompts_too(package: Callable[..., Path], model: tuple[Shape, Task], max_length: int) -> None:
    folder = package(*model, "int4-portable")
    counts = row_counts(folder, [[prompt(folder, {"text": "a"}, max_length)]])
    assert {count % 2 for name in block_products(folder, DECODER, 4) for count in counts[name]} == {0}


def test_a_prompt_of_one_token_is_refused(package: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"max_length is 1, expected at least 2\.$"):
        prompt(package(TINY_2B, "embedding", "int4-portable"), {"text": "a"}, max_length=1)


@pytest.mark.parametrize("precision", ["fp32", "int8-portable"])
def test_attention_sees_no_query_alone(package: Callable[..., Path], precision: str) -> None:
    """The length of a text, and those of its pieces, leave one query over from attention's blocks."""
    folder = package(TINY_8B, "embedding", precision)
    model = Model(folder, Manifest.read(folder), ["CPUExecutionProvider"], 1).decoder
    block = 2 * TINY_8B.text.head_dim  # of onnxruntime's tiled attention
    length = 2 * block + 1
    ids = np.random.default_rng(0).integers(1000, size=length)
    text = decoder.Prompt(TokenSequence(ids, np.zeros(length, np.bool_), ()))
    whole = model.pooled([decoder.Span(text, 0, length)])
    for cut in (block - 1, block, block + 1, 2 * block):
        past = model.extend(decoder.Span(text, 0, cut), model.empty_past(TARGETS["cpu"].capacity(length)))
        pieces = model.pooled([decoder.Span(text, cut, length)], past)
        # Equal to the bit on x86; a query alone moves the last digit, more than twice this.
        assert np.abs(pieces - whole).max() <= 1e-7 * np.abs(whole).max(), cut
