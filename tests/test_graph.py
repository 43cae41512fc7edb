"""The model files of a tiny package as they lie on disk: operators, inputs, initializers, data files."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Dtype, Shape, tensor_shapes, write_checkpoint
from safetensors import safe_open

from export.graph import CONTRIB, IR_VERSION, LINE, OPSET, PAGE, Graph
from export.package import ExportOptions, export_package
from runtime.manifest import DECODER, MANIFEST_NAME, TOKENIZER, VISION

Packages = Callable[[Shape, Task], Path]
# What onnx calls the types of a data file, and numpy.
NUMPY = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16, onnx.TensorProto.BFLOAT16: np.uint16}
SHAPES = pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
FILES = (DECODER, f"{DECODER}.data", VISION, f"{VISION}.data", TOKENIZER, MANIFEST_NAME)


def load(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / name, load_external_data=False)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]


def constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.DEFAULT]


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


@SHAPES
def test_operators_of_the_decoder(package: Packages, shape: Shape) -> None:
    found = operators(load(package(shape, "embedding"), DECODER))
    layers, deepstack = shape.text.num_hidden_layers, len(shape.vision.deepstack_visual_indexes)
    assert found["GroupQueryAttention"] == layers - 1
    assert found["Attention"] == 1
    assert found["RotaryEmbedding"] == 2 * layers
    assert found["SimplifiedLayerNormalization"] == 4 * layers + 1
    assert found["QuickGelu"] == layers
    assert found["FusedMatMul"] == 7 * layers
    assert found["ScatterND"] == 1 + deepstack
    assert found["Identity"] == 1
    assert found["GatherND"] == 4  # the last layer's normed states, cos, sin and residual
    # Slower than what is used instead, or signs of positions and masks made in the graph.
    assert not found.keys() & {"MatMul", "Gemm", "Split", "Softmax", "Sigmoid", "Cos", "Sin", "Range", "If", "Loop"}


@SHAPES
def test_deepstack_is_added_after_the_first_layers(package: Packages, shape: Shape) -> None:
    model = load(package(shape, "embedding"), DECODER)
    scatters = nodes(model, "ScatterND")
    reductions = [[attribute.s for attribute in node.attribute] for node in scatters]
    assert reductions == [[], *[[b"add"]] * len(shape.vision.deepstack_visual_indexes)]
    order = [node.op_type for node in model.graph.node if node.op_type in ("ScatterND", "GroupQueryAttention")]
    assert order[:7] == ["ScatterND", *["GroupQueryAttention", "ScatterND"] * 3]


@SHAPES
@pytest.mark.parametrize(("task", "output"), [("embedding", "embedding"), ("reranker", "logit")])
def test_inputs_and_outputs_of_the_decoder(package: Packages, shape: Shape, task: Task, output: str) -> None:
    graph = load(package(shape, task), DECODER).graph
    text, levels = shape.text, len(shape.vision.deepstack_visual_indexes)
    past = [f"{kind}.{layer}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
    inputs = {value.name: dimensions(value) for value in graph.input}
    outputs = {value.name: dimensions(value) for value in graph.output}
    assert set(outputs) == {output, *(f"present_{name}" for name in past)}
    assert outputs[output] == (["B", text.hidden_size] if task == "embedding" else ["B"])
    heads = text.num_key_value_heads
    for name in past:
        assert inputs.pop(f"past_{name}") == ["B", heads, "C", text.head_dim]
        assert outputs[f"present_{name}"] == ["B", heads, "C+S", text.head_dim]
    assert inputs == {
        "input_ids": ["B", "S"],
        "visual_tokens": ["V", text.hidden_size],
        "visual_index": ["V", 2],
        "deepstack": [levels, "V", text.hidden_size],
        "rotary_cos": ["B", "S", text.head_dim // 2],
        "rotary_sin": ["B", "S", text.head_dim // 2],
        "query_lengths": ["B"],
        "last_position": ["B"],
        "capacity": [],
        "last_index": ["B", 1, 1],
        "token_mask": ["B", "S", 1],
        "last_mask": ["B", 1, 1, "C+S"],
    }


def test_grouped_attention_knows_each_rows_length(package: Packages) -> None:
    for node in nodes(load(package(TINY_2B, "embedding"), DECODER), "GroupQueryAttention"):
        assert list(node.input[5:]) == ["last_position", "capacity", *[""] * 9, "query_lengths"]
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        assert settings == {"num_heads": 4, "kv_num_heads": 2}
        assert node.output[1].startswith("present_key.") and node.output[2].startswith("present_value.")


@SHAPES
def test_operators_of_the_vision_encoder(package: Packages, shape: Shape) -> None:
    model = load(package(shape, "embedding"), VISION)
    found, vision = operators(model), shape.vision
    mergers = 1 + len(vision.deepstack_visual_indexes)
    assert found["MultiHeadAttention"] == vision.depth
    for node in nodes(model, "MultiHeadAttention"):  # anything more and it leaves the flash path
        assert len(node.input) == 3
        assert [attribute.name for attribute in node.attribute] == ["num_heads"]
    assert found["RotaryEmbedding"] == 2 * vision.depth
    assert found["LayerNormalization"] == 2 * vision.depth + mergers
    assert found["FusedMatMul"] == 1 + 6 * vision.depth + 2 * mergers
    approximations = Counter(tuple(each.s for each in node.attribute) for node in nodes(model, "Gelu"))
    assert approximations == {(b"tanh",): vision.depth, (): mergers}
    assert [output.name for output in model.graph.output] == ["tokens", "deepstack"]
    assert not found.keys() & {"Conv", "MatMul", "Split", "Softmax", "Resize", "Cos", "Sin", "If", "Loop"}


@SHAPES
def test_initializers_are_named_as_in_the_checkpoint(package: Packages, shape: Shape) -> None:
    folder = package(shape, "embedding")
    names = {weight.name for name in (DECODER, VISION) for weight in weights(load(folder, name))}
    split = {name for name in names if name.endswith("]")}
    whole = {name.partition("[")[0] for name in split}
    assert whole == {name for name in tensor_shapes(shape) if ".attn.qkv." in name}
    assert split == {f"{name}[{part}]" for name in whole for part in "qkv"}
    assert names - split | whole == tensor_shapes(shape).keys() - {"lm_head.weight"}


@pytest.mark.parametrize("name", [DECODER, VISION])
@SHAPES
def test_only_weights_are_in_the_data_file(package: Packages, shape: Shape, name: str) -> None:
    folder = package(shape, "reranker")
    model = load(folder, name)
    assert (folder / name).stat().st_size < 100_000
    for constant in constants(model):
        assert len(constant.raw_data) < 1024
    end = 0
    for weight in weights(model):
        place = external(weight)
        offset, length = int(place["offset"]), int(place["length"])
        alignment = PAGE if length >= PAGE else LINE
        assert place["location"] == f"{name}.data"
        assert offset == -(-end // alignment) * alignment, "aligned, and no further from the last than that"
        assert length == int(np.prod(weight.dims)) * NUMPY[weight.data_type]().itemsize
        end = offset + length
    assert end == (folder / f"{name}.data").stat().st_size
    assert PAGE % 4096 == 0 and LINE % 64 == 0


@pytest.mark.parametrize("name", [DECODER, VISION])
@SHAPES
def test_the_structure_passes_the_onnx_checker(package: Packages, tmp_path: Path, shape: Shape, name: str) -> None:
    model = load(package(shape, "embedding"), name)
    assert model.ir_version == IR_VERSION
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET, CONTRIB: 1}
    for node in nodes(model, "SimplifiedLayerNormalization"):
        node.domain = CONTRIB  # onnxruntime has it in the standard domain, where onnx knows none of that name
    shutil.copyfile(package(shape, "embedding") / f"{name}.data", tmp_path / f"{name}.data")
    onnx.save(model, tmp_path / name)
    onnx.checker.check_model(tmp_path / name)


def test_every_name_is_given_once(package: Packages) -> None:
    for name in (DECODER, VISION):
        graph = load(package(TINY_2B, "embedding"), name).graph
        values = [output for node in graph.node for output in node.output]
        values += [each.name for each in (*graph.input, *graph.initializer)]
        assert len(values) == len(set(values))
        assert len({node.name for node in graph.node}) == len(graph.node)


def exported(folder: Path, **options: object) -> Path:
    """The package of a freshly written tiny checkpoint; always under the same name."""
    write_checkpoint(folder / "checkpoint", TINY_2B, **options)  # type: ignore[arg-type]
    export_package(folder / "checkpoint", folder / "package", ExportOptions("tiny"))
    return folder / "package"


def test_two_exports_are_equal_byte_by_byte(package: Packages, tmp_path: Path) -> None:
    first, second = package(TINY_2B, "embedding"), exported(tmp_path)
    assert sorted(path.name for path in second.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_shards_give_the_same_package(package: Packages, tmp_path: Path) -> None:
    first, second = package(TINY_2B, "embedding"), exported(tmp_path, shard_bytes=300_000)
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 3
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def stored(folder: Path, name: str) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every weight of a data file under its name."""
    raw = (folder / f"{name}.data").read_bytes()
    for weight in weights(load(folder, name)):
        place = external(weight)
        part = raw[int(place["offset"]) :][: int(place["length"])]
        yield weight.name, np.frombuffer(part, NUMPY[weight.data_type]).reshape(weight.dims)


@pytest.mark.parametrize(
    ("dtype", "table"),
    [("bfloat16", np.uint16), ("float16", np.float16), ("float32", np.float32)],
    ids=["bf16", "f16", "f32"],
)
def test_weights_are_those_of_the_checkpoint(tmp_path: Path, dtype: Dtype, table: type) -> None:
    folder = exported(tmp_path, dtype=dtype)
    seen = set()
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "numpy") as checkpoint:
        for name, content in (*stored(folder, DECODER), *stored(folder, VISION)):
            whole, _, part = name.partition("[")
            expected = checkpoint.get_tensor(whole)
            if part:
                expected = np.split(expected, 3)["qkv".index(part[0])]
            expected = expected.reshape(content.shape)
            if whole.endswith("embed_tokens.weight"):
                assert content.dtype == table
                assert content.tobytes() == expected.tobytes()
            else:
                assert content.dtype == np.float32
                assert np.array_equal(content, expected.astype(np.float32)), name
            seen.add(whole)
        assert seen == set(checkpoint.keys())
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert manifest["matrices"]["model.language_model.embed_tokens.weight"] == "as-stored"


def test_a_weight_declared_twice_or_cut_is_our_own_mistake(tmp_path: Path) -> None:
    graph = Graph("model.onnx")
    graph.weight("w", "float32", (2, 3), lambda: iter([np.zeros((1, 3), np.float32)]))
    with pytest.raises(AssertionError, match="initializer w declared twice"):
        graph.weight("w", "float32", (2, 3), lambda: iter([]))
    with pytest.raises(AssertionError, match="w wrote 12 of 24 bytes"):
        graph.write(tmp_path, lambda count: None)


def test_equal_constants_are_stored_once() -> None:
    graph = Graph("model.onnx")
    one = graph.constant(np.array([1, 2], np.int64))
    assert graph.constant(np.array([1, 2], np.int64)) is one
    others = [np.array([[1, 2]], np.int64), np.array([1, 2], np.int32), np.array([1, 3], np.int64)]
    assert all(graph.constant(other) is not one for other in others)
