"""One matrix in memory, and graphs of one scheme run by onnxruntime."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest

from export.graph import Graph
from quant.schemes import Linear, Scheme
from runtime import Qwen3VLEmbedder
from runtime.graphs import model
from runtime.graphs.probe import products_saturate
from runtime.graphs.session import open_session


@dataclass(frozen=True, eq=False)
class MemoryMatrix:
    """A `quant.schemes.Matrix` that arrives in blocks of three rows; `reads` counts how often it was read."""

    name: str
    values: np.ndarray
    importance: np.ndarray | None = None
    stored_dtype: str = "float32"
    reads: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        self.reads.append(self.name)
        for start in range(0, len(self.values), 3):
            yield self.values[start : start + 3].copy()


def write_linear(folder: Path, scheme: Scheme, layers: Sequence[Linear]) -> Path:
    """A model of `layers` that share the input `x` [B, S, K] → `y0`, `y1`…"""
    graph = Graph("linear.onnx")
    x = graph.input("x", "float32", ["B", "S", layers[0].weight.shape[1]])
    for index, y in enumerate(scheme.linear(graph, x, layers)):
        graph.output(f"y{index}", y, "float32", ["B", "S", layers[index].weight.shape[0]])
    graph.write(folder, lambda count: None)
    return folder / graph.name


def run_linear(
    scheme: Scheme, layers: Sequence[Linear], inputs: Sequence[np.ndarray], threads: int = 1
) -> list[list[np.ndarray]]:
    """The outputs of all layers for each of `inputs` [B, S, K]."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        session = open_session(write_linear(Path(folder), scheme, layers), ["CPUExecutionProvider"], threads)
        return [session.run(None, {"x": x}) for x in inputs]


def run_rows(scheme: Scheme, table: MemoryMatrix, ids: np.ndarray) -> np.ndarray:
    """Rows of `table` at `ids`."""
    graph = Graph("rows.onnx")
    values = scheme.rows(graph, table, graph.input("ids", "int64", ["B", "S"]))
    graph.output("rows", values, "float32", ["B", "S", table.shape[1]])
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        graph.write(Path(folder), lambda count: None)
        session = open_session(Path(folder) / graph.name, ["CPUExecutionProvider"], threads=1)
        rows: np.ndarray = session.run(None, {"ids": ids})[0]
    return rows


def operators(model: Path) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in onnx.load(model, load_external_data=False).graph.node)


def layer(
    values: np.ndarray,
    name: str = "w",
    *,
    bias: np.ndarray | None = None,
    scale_free: bool = False,
    after_gelu: bool = False,
) -> Linear:
    """A Linear of `values` [N, K] and `bias` [N]."""
    stored = None if bias is None else MemoryMatrix(f"{name}.bias", bias[:, None])
    return Linear(MemoryMatrix(name, values), stored, scale_free, after_gelu)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to `expected`."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Where this skips, a package runs decoder.uint8.onnx, whose form these tests run everywhere.
needs_exact_int8 = pytest.mark.skipif(products_saturate(), reason="this processor saturates uint8 × int8 products")


def vectors_on_both_kinds(
    folder: Path, items: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> list[np.ndarray]:
    """What a package gives as on a processor that multiplies int8 exactly, and as on one that does not."""
    found = []
    for saturates in (False, True):
        monkeypatch.setattr(model, "products_saturate", lambda saturates=saturates: saturates)
        found.append(Qwen3VLEmbedder(folder).process(items))
    return found
