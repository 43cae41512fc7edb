"""The probe that shows a processor's inexact int8 products, and what opening a package says of it."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B
from onnx_files import load, operators

from export.graph import CONTRIB, Graph
from export.probe import build_probe
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.graphs import probe
from runtime.graphs.probe import PROBE, PROBE_SHAPE, WEIGHT_CODE, products_saturate, stored_weights_are_exact
from runtime.manifest import Manifest

# What x86 without VNNI makes of two products of the largest codes: the sum is cut at 16 bits.
SATURATED = 2**15 - 1


@pytest.fixture
def saturating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that saturates whatever onnxruntime is told, as the probe sees it."""
    write_saturated_probe(tmp_path)
    monkeypatch.setattr(probe, "PROBE", tmp_path / PROBE.name)
    cached = products_saturate, stored_weights_are_exact
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_the_runtimes_probe_is_what_the_exporter_builds(tmp_path: Path) -> None:
    build_probe().write_model(tmp_path)
    assert (tmp_path / PROBE.name).read_bytes() == PROBE.read_bytes()


def test_the_probe_runs_the_operator_of_the_package(package: Callable[..., Path]) -> None:
    folder = package(TINY_2B, "embedding", "int8")
    assert set(operators(load(PROBE.parent, PROBE.name))) == {"MatMulIntegerToFloat"}
    assert operators(load(folder, "decoder.onnx"))["MatMulIntegerToFloat"] > 0


def test_the_runtimes_sessions_are_exact_on_every_processor() -> None:
    """Also where uint8 x int8 saturates without the option of `create_session`."""
    assert stored_weights_are_exact()


def test_exact_packages_are_opened_without_a_warning(package: Callable[..., Path]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Qwen3VLEmbedder(package(TINY_2B, "embedding", "int8"))
    assert not caught


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_inexact_products_are_said_with_the_command_that_helps(
    package: Callable[..., Path], saturating: None, task: str
) -> None:
    folder = package(TINY_2B, task, "int8")
    assert "int8-per-token" in Manifest.read(folder).matrices.values() and products_saturate()
    with pytest.warns(UserWarning) as caught:
        (Qwen3VLEmbedder if task == "embedding" else Qwen3VLReranker)(folder)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert str(folder) in message
    assert message.endswith("make the portable package: python -m export --model tiny --int8 --portable")


@pytest.mark.parametrize("precision", ["fp32", "int8-portable"])
def test_packages_without_such_products_need_no_warning(
    package: Callable[..., Path], saturating: None, precision: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Qwen3VLEmbedder(package(TINY_2B, "embedding", precision))
    # The portable package's vision encoder is in blocks, too.
    assert not caught


def write_saturated_probe(folder: Path) -> None:
    """A probe of the same shape with products as if pairs of them were cut at 16 bits."""
    rows, width, columns = PROBE_SHAPE
    graph = Graph(PROBE.name)
    codes = graph.input("codes", "uint8", [rows, width])
    given = graph.input("weights", "int8", [width, columns])
    stored = graph.constant(np.full((width, columns), WEIGHT_CODE, np.int8))
    scale = graph.constant(np.array(SATURATED / (2 * 255 * WEIGHT_CODE), np.float32))
    scales, zero = graph.constant(np.ones(columns, np.float32)), graph.constant(np.array(0, np.uint8))
    for name, weights in (("stored", stored), ("given", given)):
        product = graph.op("MatMulIntegerToFloat", codes, weights, scale, scales, zero, domain=CONTRIB)
        graph.output(name, product, "float32", [rows, columns])
    graph.write_model(folder)
