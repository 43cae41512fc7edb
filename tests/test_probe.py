"""The probe that shows a processor's inexact int8 products, and what opening a package says of it."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B
from onnx_files import load, operators

from export.graph import CONTRIB, Graph
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.manifest import PROBE, Manifest, describe_file
from runtime.probe import PROBE_SHAPE, WEIGHT_CODE, products_are_exact

CPU = ["CPUExecutionProvider"]
# What VNNI-less x86 makes of two products of the largest codes: the sum is cut at 16 bits.
SATURATED = 2**15 - 1


@pytest.mark.parametrize(("precision", "probed"), [("fp32", False), ("int8", True), ("int8-portable", False)])
def test_packages_with_per_token_products_are_probed(
    package: Callable[..., Path], precision: str, probed: bool
) -> None:
    folder = package(TINY_2B, "embedding", precision)
    manifest = Manifest.read(folder)
    assert (PROBE in {file.name for file in manifest.files}) == (folder / PROBE).exists() == probed
    assert ("int8-per-token" in manifest.matrices.values()) == probed


def test_int4_is_probed_for_its_vision_encoder(package: Callable[..., Path]) -> None:
    folder = package(TINY_2B, "embedding", "int4")
    assert (folder / PROBE).exists() and "MatMulIntegerToFloat" in operators(load(folder, "vision.onnx"))


def test_a_package_is_opened_with_a_warning_exactly_where_products_are_inexact(package: Callable[..., Path]) -> None:
    folder = package(TINY_2B, "embedding", "int8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Qwen3VLEmbedder(folder)
    exact = products_are_exact(folder / PROBE, CPU)
    assert [str(each.message).startswith("this processor multiplies int8 inexactly") for each in caught] == (
        [] if exact else [True]
    )


def test_the_runtimes_sessions_are_exact_on_every_processor(package: Callable[..., Path]) -> None:
    """Also where uint8 x int8 saturates without the option of `create_session`."""
    assert products_are_exact(package(TINY_2B, "embedding", "int8") / PROBE, CPU)


def test_the_probe_runs_the_operator_of_the_package(package: Callable[..., Path]) -> None:
    folder = package(TINY_2B, "embedding", "int8")
    probe, decoder = operators(load(folder, PROBE)), operators(load(folder, "decoder.onnx"))
    assert set(probe) == {"MatMulIntegerToFloat"} and decoder["MatMulIntegerToFloat"] > 0
    assert not list(folder.glob(f"{PROBE}.data"))


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_inexact_products_are_said_with_the_command_that_helps(
    package: Callable[..., Path], tmp_path: Path, task: str
) -> None:
    """A package whose probe gives what such a processor gives."""
    folder = tmp_path / "package"
    shutil.copytree(package(TINY_2B, task, "int8"), folder)
    manifest = Manifest.read(folder)
    write_saturated_probe(folder)
    files = tuple(describe_file(folder / file.name) for file in manifest.files)
    replace(manifest, files=files).sealed().write(folder)
    assert not products_are_exact(folder / PROBE, CPU)
    with pytest.warns(UserWarning) as caught:
        (Qwen3VLEmbedder if task == "embedding" else Qwen3VLReranker)(folder)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert str(folder) in message
    assert message.endswith("make the portable package: python -m export --model tiny --int8 --portable")


def write_saturated_probe(folder: Path) -> None:
    """A probe of the same shape with products as if pairs of them were cut at 16 bits."""
    rows, width, columns = PROBE_SHAPE
    graph = Graph(PROBE)
    codes = graph.input("codes", "uint8", [rows, width])
    weights = graph.constant(np.full((width, columns), WEIGHT_CODE, np.int8))
    scale = graph.constant(np.array(SATURATED / (2 * 255 * WEIGHT_CODE), np.float32))
    scales, zero = graph.constant(np.ones(columns, np.float32)), graph.constant(np.array(0, np.uint8))
    product = graph.op("MatMulIntegerToFloat", codes, weights, scale, scales, zero, domain=CONTRIB)
    graph.output("product", product, "float32", [rows, columns])
    graph.write_model(folder)
