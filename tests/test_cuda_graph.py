"""The graphs for CUDA, read: every operator has a kernel there for its types, and nothing the sources warn of is used.

No GPU runs here; what the kernels are is copied from onnxruntime's sources into cuda_kernels.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_kernels import BFLOAT16, DROPPED, FLOAT, IN_PLACE, kernel, value_types
from onnx_files import dimensions, load, nodes, operators, stored, weights
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from export.graph import OPSET
from runtime.errors import PackageError
from runtime.graphs.session import open_session
from runtime.manifest import DECODER, DECODER_UINT8, VISION, Manifest

Packages = Callable[..., Path]
MODELS = pytest.mark.parametrize(
    "model", [(TINY_2B, "embedding"), (TINY_8B, "reranker")], ids=["2B embedding", "8B reranker"]
)
PRECISIONS = pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
GRAPHS = pytest.mark.parametrize("name", [DECODER, VISION])


@GRAPHS
@PRECISIONS
@MODELS
def test_every_node_has_a_kernel_for_its_types(
    cuda_package: Packages, model: tuple[Shape, Task], precision: str, name: str
) -> None:
    graph = load(cuda_package(*model, precision), name).graph
    types = value_types(graph)
    for node in graph.node:
        if node.op_type in DROPPED:
            continue
        wanted = kernel(node)
        given = [(place, types[each]) for place, each in enumerate(node.input) if each]
        for place, kind in given:
            assert kind in wanted.inputs[min(place, len(wanted.inputs) - 1)], f"{node.name}, input {place}"
        if not node.domain and node.op_type != "SimplifiedLayerNormalization":
            assert onnx.defs.get_schema(node.op_type, OPSET, "").since_version == wanted.since, node.op_type
        floats = {kind for _, kind in given if kind in (FLOAT, BFLOAT16)}
        assert len(floats) <= 1, f"{node.name} mixes types"


@GRAPHS
@PRECISIONS
@MODELS
def test_onnxruntime_agrees_with_every_type(
    cuda_package: Packages, model: tuple[Shape, Task], precision: str, name: str
) -> None:
    """Its own inference passes, and what it misses on the CPU is a kernel."""
    with pytest.raises(PackageError, match=r"NOT_IMPLEMENTED : Could not find an implementation for (Fused|MatMulN)"):
        open_session(cuda_package(*model, precision) / name, ["CPUExecutionProvider"], threads=1)


@MODELS
@PRECISIONS
def test_operators_of_the_decoder(cuda_package: Packages, model: tuple[Shape, Task], precision: str) -> None:
    shape, _ = model
    graph = load(cuda_package(*model, precision), DECODER)
    found, layers, levels = operators(graph), shape.text.num_hidden_layers, len(shape.vision.deepstack_visual_indexes)
    assert found["GroupQueryAttention"] == layers
    assert found["RotaryEmbedding"] == 2 * layers
    assert found["SimplifiedLayerNormalization"] == 4 * layers + 1
    assert found["QuickGelu"] == layers
    assert found["MatMulNBits" if precision != "bf16" else "FusedMatMul"] >= 7 * layers
    assert found["GatherND"] == 2  # the last token's attention and residual
    assert found["ScatterND"] == 1 + levels
    assert all(not node.attribute for node in nodes(graph, "ScatterND"))  # adding has no bfloat16 kernel
    # No kernel, none for grouped heads and a boolean mask in every version, or not needed without pairs of rows.
    assert not found.keys() & {"MatMulIntegerToFloat", "GatherBlockQuantized", "Attention", "Where", "Slice", "Mod"}
    for node in nodes(graph, "GroupQueryAttention"):
        assert list(node.input[5:]) == ["last_position", "capacity"]  # input 16 came after 1.31


@MODELS
def test_pictures_attend_without_cudnn(cuda_package: Packages, model: tuple[Shape, Task]) -> None:
    """MultiHeadAttention asks for it at every call. Anything more than three inputs and Attention leaves flash."""
    graph = load(cuda_package(*model), VISION)
    found = nodes(graph, "Attention")
    assert len(found) == model[0].vision.depth and not nodes(graph, "MultiHeadAttention")
    for node in found:
        assert len(node.input) == 3 and len(node.output) == 1
        assert {each.name: each.i for each in node.attribute} == {
            "q_num_heads": model[0].vision.num_heads,
            "kv_num_heads": model[0].vision.num_heads,
        }


@MODELS
def test_present_is_never_written_into_the_buffer_of_past(cuda_package: Packages, model: tuple[Shape, Task]) -> None:
    """Their shapes, as onnxruntime's planner compares them, differ."""
    graph = load(cuda_package(*model, "bf16"), DECODER).graph
    given = {each.name: each for each in (*graph.input, *graph.value_info)}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    attentions = [node for node in graph.node if node.op_type in IN_PLACE]
    assert len(attentions) == model[0].text.num_hidden_layers
    for node in attentions:
        for source, target in IN_PLACE[node.op_type]:
            past, present = given[casts[node.input[source]]], given[node.output[target]]
            assert dimensions(past)[2] == "C" and dimensions(present)[2] == "C+S"
            assert present.type.tensor_type.elem_type == BFLOAT16


@MODELS
@PRECISIONS
def test_products_are_in_bfloat16_and_the_rest_stays_in_blocks(
    cuda_package: Packages, model: tuple[Shape, Task], precision: str
) -> None:
    folder = cuda_package(*model, precision)
    for name, is_int4 in ((DECODER, precision == "int4"), (VISION, False)):
        graph = load(folder, name)
        found = nodes(graph, "MatMulNBits")
        assert bool(found) == (precision != "bf16")
        for node in found:
            settings = {each.name: each.i for each in node.attribute}
            bits = 4 if is_int4 and not any(part in node.input[1] for part in ("k_proj", "v_proj")) else 8
            assert settings["bits"] == bits and settings["block_size"] == (32 if bits == 4 else 128)
            assert settings["accuracy_level"] == 0  # activations stay as they are
            assert len(node.input) == (4 if bits == 4 else 3)  # zero points, and never a bias
        kinds = {each.name: each.data_type for each in weights(graph)}
        assert kinds.pop("score.weight", FLOAT) == FLOAT
        assert set(kinds.values()) <= {BFLOAT16, onnx.TensorProto.UINT8}
    assert not (folder / DECODER_UINT8).exists()


def test_borders_are_those_of_the_cpu(package: Packages, cuda_package: Packages) -> None:
    """The runtime feeds and gets the same arrays, whatever the target."""
    for name in (DECODER, VISION):
        one, other = (load(each(TINY_2B, "embedding"), name).graph for each in (package, cuda_package))
        for side in ("input", "output"):
            for first, second in zip(getattr(one, side), getattr(other, side), strict=True):
                assert (first.name, dimensions(first)) == (second.name, dimensions(second))
                assert first.type.tensor_type.elem_type == second.type.tensor_type.elem_type


def test_what_is_pooled_is_normed_and_scored_in_float32(cuda_package: Packages) -> None:
    model = load(cuda_package(TINY_8B, "reranker"), DECODER)
    types, norms = value_types(model.graph), nodes(model, "SimplifiedLayerNormalization")
    assert types["logit"] == types[nodes(model, "FusedMatMul")[-1].input[0]] == FLOAT
    assert [types[node.input[0]] for node in norms[-2:]] == [BFLOAT16, FLOAT]


@PRECISIONS
def test_the_manifest_says_what_is_stored(cuda_package: Packages, precision: str) -> None:
    manifest = Manifest.read(cuda_package(TINY_2B, "embedding", precision))
    assert (manifest.target, manifest.precision) == ("cuda", precision)
    blocks = {"bf16": "bf16", "int8": "int8-block128-symmetric", "int4": "int4-block32-asymmetric"}[precision]
    assert manifest.matrices["model.language_model.embed_tokens.weight"] == "bf16"
    assert manifest.matrices["model.language_model.layers.1.mlp.up_proj.weight"] == blocks
    assert manifest.matrices["model.visual.patch_embed.proj.weight"] == "bf16"
    assert (manifest.calibration is None) == (manifest.loss is None) == (precision == "bf16")
    assert manifest.loss is None or manifest.loss.cosine_mean > (0.99 if precision == "int8" else 0.8)


def test_bfloat16_weights_are_those_of_the_checkpoint(package: Packages, cuda_package: Packages) -> None:
    """A bfloat16 checkpoint loses nothing."""
    floats = dict(stored(package(TINY_2B, "embedding"), VISION))
    shorts = dict(stored(cuda_package(TINY_2B, "embedding"), VISION))
    assert floats.keys() == shorts.keys()
    for name, short in shorts.items():
        assert np.array_equal((short.astype(np.uint32) << 16).view(np.float32), floats[name]), name
