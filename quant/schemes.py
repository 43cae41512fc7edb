"""How a matrix is stored and multiplied: a scheme declares its bytes and emits its nodes.

A scheme sees a graph only through `GraphBuilder` and a weight only through `Matrix`: it knows no model and no onnx.
Layers that share an input are handed over together, so a scheme that quantises the input does it once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from quant.kernels import CPU, Kernels

Value = Any
ONNX_TYPES = {"float32": 1, "bfloat16": 16}


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

    `scale_free`: a norm follows, so a positive factor a token may be left out of the result. `after_gelu`: x comes out
    of a GELU, so next to nothing of it is below zero.
    """

    weight: Matrix
    bias: Matrix | None = None
    scale_free: bool = False
    after_gelu: bool = False


class Scheme(Protocol):
    """A way to store matrices."""

    @property
    def name(self) -> str:
        """Name as the manifest records it."""

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """x [..., K] through each of `layers` → [..., N]."""

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Rows of `table` [N, K] at integer `ids` [...] → [..., K] in the type of the activations."""


def products(graph: GraphBuilder, x: Value, layers: Sequence[Linear], schemes: Sequence[Scheme]) -> list[Value]:
    """x [..., K] through layers that share it → one [..., N] each; consecutive equal schemes go together.

    What two schemes calculate alike of x is in the graph twice; onnxruntime merges it when the graph is opened.
    """
    outputs: list[Value] = []
    for scheme, pairs in groupby(zip(schemes, layers, strict=True), key=lambda pair: pair[0]):
        outputs += scheme.linear(graph, x, [layer for _, layer in pairs])
    return outputs


def cast(graph: GraphBuilder, x: Value, stored: str, wanted: str) -> Value:
    """A value of the type `stored` as `wanted`; no operator where they are the same."""
    return x if stored == wanted else graph.op("Cast", x, to=ONNX_TYPES[wanted])


def float_weight(graph: GraphBuilder, matrix: Matrix, shape: Sequence[int], kernels: Kernels) -> Value:
    """An initializer in the type that `kernels` store, as a value in the type they compute in."""
    weight = graph.weight(matrix.name, kernels.weights, shape, matrix.blocks)
    return cast(graph, weight, kernels.weights, kernels.activations)


def add_bias(graph: GraphBuilder, y: Value, bias: Matrix, kernels: Kernels) -> Value:
    """y [..., N] plus a bias stored as [N, 1]."""
    return graph.op("Add", y, float_weight(graph, bias, bias.shape[:1], kernels))


def not_finite(graph: GraphBuilder, x: Value) -> Value:
    """0 for each row of x [..., K], NaN where one of its numbers is not finite → [..., 1].

    A kernel that rounds its activations to integers makes numbers of NaN. Added to what it gives, this keeps them.
    """
    total = graph.op("ReduceSum", x, graph.constant(np.array([-1], np.int64)))
    return graph.op("Mul", total, graph.constant(np.array(0, np.float32)))


@dataclass(frozen=True)
class Float:
    """Plain [N, K] in the checkpoint's own orientation: rows stream through without a transposed copy."""

    kernels: Kernels = CPU

    @property
    def name(self) -> str:
        """fp32 or bf16, by the type the weights are stored in."""
        return {"float32": "fp32", "bfloat16": "bf16"}[self.kernels.weights]

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """FusedMatMul with transB (prepacked like MatMul), then Add for a bias."""
        outputs = []
        for layer in layers:
            weight = float_weight(graph, layer.weight, layer.weight.shape, self.kernels)
            y = graph.op("FusedMatMul", x, weight, domain="com.microsoft", transB=1)  # [..., N]
            outputs.append(y if layer.bias is None else add_bias(graph, y, layer.bias, self.kernels))
        return outputs

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Gather from a table of floats."""
        stored = graph.weight(table.name, self.kernels.weights, table.shape, table.blocks)
        return cast(graph, graph.op("Gather", stored, ids), self.kernels.weights, self.kernels.activations)


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
