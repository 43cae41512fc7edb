"""The float schemes through onnxruntime, against numpy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from export.graph import Graph
from quant.schemes import AsStored, Float, Linear
from runtime.graphs.session import create_session

# Sums of 40 float32 products of order 1, in another order than numpy's.
TOLERANCE = 1e-5
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Rows:
    """A matrix [N, K] of a stored type that is handed out three rows at a time."""

    name: str
    content: NDArray[Any]
    importance: None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.content.shape
        return rows, columns

    @property
    def stored_dtype(self) -> str:
        return self.content.dtype.name

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self.content), 3):
            yield self.content[start : start + 3].astype(np.float32)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def run(graph: Graph, folder: Path, **feeds: NDArray[Any]) -> list[NDArray[np.float32]]:
    graph.write(folder, lambda count: None)
    assert (folder / graph.data_name).stat().st_size == graph.data_bytes
    session = create_session(str(folder / graph.name), ort.SessionOptions())
    outputs: list[NDArray[np.float32]] = session.run(None, feeds)
    return outputs


def test_float32_products_equal_numpy(tmp_path: Path) -> None:
    graph, content = Graph("model.onnx"), random(2, 5, 40)
    weights = [Rows(f"w{rows}", random(rows, 40, seed=rows)) for rows in (7, 1, 12)]
    bias = Rows("b", random(12, 1, seed=3))
    layers = [Linear(weights[0]), Linear(weights[1]), Linear(weights[2], bias)]
    for layer, y in zip(
        layers, Float().linear(graph, graph.input("x", "float32", ["B", "S", 40]), layers), strict=True
    ):
        graph.output(f"y_{layer.weight.name}", y, "float32", ["B", "S", layer.weight.shape[0]])
    found = run(graph, tmp_path, x=content)
    expected = [content @ weight.content.T for weight in weights]
    expected[2] += bias.content[:, 0]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < TOLERANCE


@pytest.mark.parametrize("stored", DTYPES)
def test_products_with_short_weights_are_stored_as_float32(tmp_path: Path, stored: str) -> None:
    graph, content = Graph("model.onnx"), random(3, 40)
    weight = Rows("w", random(7, 40, seed=1).astype(DTYPES[stored]))
    [y] = Float().linear(graph, graph.input("x", "float32", ["B", 40]), [Linear(weight)])
    graph.output("y", y, "float32", ["B", 7])
    assert graph.data_bytes == 4 * 7 * 40
    [found] = run(graph, tmp_path, x=content)
    assert np.abs(found - content @ weight.content.astype(np.float32).T).max() < TOLERANCE


def looked_up(scheme: Float | AsStored, table: Rows, ids: NDArray[np.int64], folder: Path) -> NDArray[np.float32]:
    graph = Graph("model.onnx")
    rows = scheme.rows(graph, table, graph.input("ids", "int64", ["B", "S"]))
    graph.output("rows", rows, "float32", ["B", "S", table.shape[1]])
    [found] = run(graph, folder, ids=ids)
    itemsize = 4 if isinstance(scheme, Float) else table.content.dtype.itemsize
    assert graph.data_bytes == table.content.size * itemsize
    return found


@pytest.mark.parametrize("scheme", [Float(), AsStored()], ids=["fp32", "as-stored"])
@pytest.mark.parametrize("stored", DTYPES)
def test_rows_are_exact(tmp_path: Path, scheme: Float | AsStored, stored: str) -> None:
    # Every number the short types have: zeros of both signs, subnormals and infinities among them.
    patterns = np.arange(2**16, dtype=np.uint16)
    content = random(256, 256) if stored == "float32" else patterns.view(DTYPES[stored]).reshape(256, 256)
    with np.errstate(invalid="ignore"):  # bfloat16's own test for NaN warns of NaNs
        content = np.where(np.isnan(content), DTYPES[stored](0), content)
    ids = np.random.default_rng(1).permutation(256).reshape(4, 64)
    found = looked_up(scheme, Rows("table", content), ids, tmp_path)
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), content[ids].astype(np.float32).view(np.uint32))


def test_tables_as_stored_are_not_for_products() -> None:
    graph = Graph("model.onnx")
    x = graph.input("x", "float32", ["B", 4])
    with pytest.raises(NotImplementedError, match=r"some\.weight: as-stored is a scheme for tables"):
        AsStored().linear(graph, x, [Linear(Rows("some.weight", random(2, 4)))])


def test_the_names_of_the_manifest() -> None:
    assert (Float().name, AsStored().name) == ("fp32", "as-stored")
