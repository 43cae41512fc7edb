"""How a matrix is stored and multiplied: a scheme declares its bytes and emits its nodes.

A scheme sees a graph only through `GraphBuilder` and a weight only through `Matrix`: it knows no model and no onnx_ir.
Layers that share an input are handed over together, so a scheme that quantises the input does it once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Value = Any


class GraphBuilder(Protocol):
    """The part of `export.graph.Graph` that a scheme needs."""

    def op(self, operator: str, *inputs: Value | None, domain: str = "", **attributes: object) -> Value:
        """Append an operator with one output."""

    def constant(self, content: np.ndarray) -> Value:
        """A small constant inside the model file."""

    def weight(self, name: str, dtype: str, shape: Sequence[int], blocks: Callable[[], Iterator[np.ndarray]]) -> Value:
        """An initializer streamed to the data file."""


class Matrix(Protocol):
    """A float weight that can be read in row blocks; `shape` is [N, K] as in the checkpoint (y = x Wᵀ)."""

    @property
    def name(self) -> str:
        """Initializer name: the checkpoint's own, with a suffix for a part of a tensor."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (output size N) and columns (input size K)."""

    @property
    def stored_dtype(self) -> str:
        """The checkpoint's own type: float32, bfloat16 or float16."""

    @property
    def importance(self) -> np.ndarray | None:
        """Mean square of each of the K inputs as calibration saw it, float32 [K]; None without calibration."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Row blocks as float32 [rows, K], in order."""


@dataclass(frozen=True)
class Linear:
    """One product x Wᵀ + b; the bias has shape [N, 1] and is None where the layer has none.

    `scale_free`: a norm follows, so a positive factor a token may be left out of the result.
    """

    weight: Matrix
    bias: Matrix | None = None
    scale_free: bool = False


class Scheme(Protocol):
    """A way to store matrices."""

    @property
    def name(self) -> str:
        """Name as the manifest records it."""

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """x [..., K] through each of `layers` → [..., N]."""

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Rows of `table` [N, K] at integer `ids` [...] → float32 [..., K]."""


@dataclass(frozen=True)
class Float32:
    """Plain float32 [N, K] in the checkpoint's own orientation: rows stream through without a transposed copy."""

    name: str = "fp32"

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """FusedMatMul with transB (prepacked like MatMul), then Add for a bias."""
        outputs = []
        for layer in layers:
            weight = graph.weight(layer.weight.name, "float32", layer.weight.shape, layer.weight.blocks)
            y = graph.op("FusedMatMul", x, weight, domain="com.microsoft", transB=1)  # [..., N]
            if layer.bias is not None:
                bias = graph.weight(layer.bias.name, "float32", layer.bias.shape[:1], layer.bias.blocks)
                y = graph.op("Add", y, bias)
            outputs.append(y)
        return outputs

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Gather from a float32 table."""
        return graph.op("Gather", graph.weight(table.name, "float32", table.shape, table.blocks), ids)


@dataclass(frozen=True)
class AsStored:
    """A table in the checkpoint's own 16-bit type, raised to float32 after the lookup: exact, half the bytes."""

    name: str = "as-stored"

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """Not for products: the CPU has no fast 16-bit one that is exact."""
        raise NotImplementedError(f"{layers[0].weight.name}: as-stored is a scheme for tables, not for products.")

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Gather, then Cast to float32 (ONNX type 1)."""
        weight = graph.weight(table.name, table.stored_dtype, table.shape, table.blocks)
        found = graph.op("Gather", weight, ids)
        return found if table.stored_dtype == "float32" else graph.op("Cast", found, to=1)
