"""The model files of a tiny package: operators, inputs and outputs, structure."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx_files import dimensions, load, nodes, operators
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from export.graph import CONTRIB, IR_VERSION, OPSET
from runtime.manifest import DECODER, VISION

Packages = Callable[[Shape, Task], Path]
SHAPES = pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])


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
    assert found["FastGelu"] == vision.depth  # tanh's form
    assert all(len(node.input) == 2 for node in nodes(model, "FastGelu"))
    assert [list(node.attribute) for node in nodes(model, "Gelu")] == [[]] * mergers  # exact
    assert [output.name for output in model.graph.output] == ["tokens", "deepstack"]
    assert not found.keys() & {"Conv", "MatMul", "Split", "Softmax", "Resize", "Cos", "Sin", "If", "Loop"}


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
