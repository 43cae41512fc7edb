"""Asymmetric 4-bit products are wrong for a single row on AVX2 (onnxruntime issue 29853): none must ever see one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from onnx_files import load, nodes
from qwen_tokenizer import Task

from quant.prompts import Prompt, package_encoder, sample_prompt
from quant.taps import TappedPackage
from runtime.errors import InputError
from runtime.manifest import DECODER, VISION, Manifest

EVERY = 100_000
LAST_ROW = "last_index"
PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")
MODELS: list[tuple[Shape, Task]] = [(TINY_2B, "embedding"), (TINY_8B, "reranker")]


def four_bit(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [
        node
        for node in nodes(model, "MatMulNBits")
        if any(each.name == "bits" and each.i == 4 for each in node.attribute)
    ]


def after(model: onnx.ModelProto, value: str) -> set[str]:
    """Every value that depends on `value`; nodes stand in the order they run."""
    found = {value}
    for node in model.graph.node:
        if found & set(node.input):
            found |= set(node.output)
    return found


@pytest.fixture(params=MODELS, ids=["2B embedding", "8B reranker"])
def folder(request: pytest.FixtureRequest, package: Callable[..., Path]) -> Path:
    shape, task = request.param
    return package(shape, task, "int4")


def test_no_four_bit_product_stands_after_the_last_row_is_taken(folder: Path) -> None:
    manifest, model = Manifest.read(folder), load(folder, DECODER)
    products, single = four_bit(model), after(model, LAST_ROW)
    layers = manifest.text.num_hidden_layers
    assert len(products) == len(PRODUCTS) * (layers - 1) + len("kv")
    assert not [node.input[1] for node in products if node.input[0] in single]
    after_it = [node for node in nodes(model, "MatMulNBits") if node.input[0] in single]
    assert len(after_it) == len(PRODUCTS) - len("kv")  # those are 8-bit and symmetric: no zero points
    assert all(len(node.input) < 4 or not node.input[3] for node in after_it)


def test_the_vision_encoder_has_none(folder: Path) -> None:
    assert not four_bit(load(folder, VISION))


def shortest(folder: Path, max_length: int) -> Prompt:
    """The shortest prompt there is: one letter, cut to at most `max_length` tokens where the task allows it."""
    manifest = Manifest.read(folder)
    defaults = replace(manifest.defaults, max_length=max_length, default_instruction=".")
    encoder = package_encoder(folder, replace(manifest, defaults=defaults))
    return sample_prompt(encoder, manifest.task, {"text": "a"}, "inputs[0]")


@pytest.mark.parametrize("max_length", [2, 8192])
def test_the_shortest_prompts_alone_have_several_rows(folder: Path, max_length: int) -> None:
    package = TappedPackage(folder, Manifest.read(folder))
    prompt = shortest(folder, max_length)
    pooled = package.pooled(prompt, rows=EVERY)
    assert np.isfinite(pooled).all()
    names = [node.input[1] for node in four_bit(load(folder, DECODER))]
    counts = {len(rows) for name in names for rows in package.rows[name]}
    assert counts == {len(prompt.sequence.input_ids)} and min(counts) > 1
    query = next(name for name in package.rows if name.endswith("q_proj.weight") and name not in names)
    assert len(package.rows[query][0]) == 1  # the last layer's products do see one row, and are 8-bit


def test_a_prompt_of_one_token_is_refused(package: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"max_length is 1, expected at least 2\.$"):
        shortest(package(TINY_2B, "embedding", "int4"), max_length=1)
