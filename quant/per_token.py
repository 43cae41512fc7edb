"""W8A8: int8 weights with one scale a row of the checkpoint, uint8 activations with one scale a token.

The CPU's fastest product (MatMulIntegerToFloat, uint8 × int8) with nothing shared between tokens, so that a result
depends neither on the batch nor on the padding.

Bytes: codes int8 [K, N], |code| ≤ 127, transposed for the operator; scales float32 [N]; weight ≈ code[:, n] · scale[n].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quant.schemes import GraphBuilder, Linear, Matrix, Value, not_finite

LARGEST = 127
ZERO_POINT = 128  # of the activations; int8 × int8 is far slower on x86
SMALLEST_TOKEN = 1e-8  # a token of zeros is divided by this
# (graph, matrix) → its codes [K, N], int8 or uint8 around ZERO_POINT, and scales float32 [N]
Weights = Callable[[GraphBuilder, Matrix], tuple[Value, Value]]


@dataclass(frozen=True)
class PerToken:
    """The fast int8 tier of the CPU."""

    name: str = "int8-per-token"

    def quantize(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [n, K] → codes int8 [n, K], scales float32 [n]; a row of zeros has scale 1."""
        scales = row_scales(rows)
        return np.rint(rows / scales[:, None]).astype(np.int8), scales

    def dequantize(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The inverse of `quantize`, float32 [n, K]."""
        values: np.ndarray = codes.astype(np.float32) * scales[:, None]
        return values

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """Quantise x [..., K] once, multiply by each layer → [..., N]."""
        return token_products(graph, x, layers, self._weights)

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")

    def _weights(self, graph: GraphBuilder, matrix: Matrix) -> tuple[Value, Value]:
        size, width = matrix.shape

        def codes() -> Iterator[np.ndarray]:
            whole = np.concatenate([self.quantize(block)[0] for block in matrix.blocks()])
            yield whole.T

        def scales() -> Iterator[np.ndarray]:
            for block in matrix.blocks():
                yield self.quantize(block)[1]

        stored = graph.weight(matrix.name, "int8", (width, size), codes)
        return stored, graph.weight(f"{matrix.name}:scales", "float32", (size,), scales)


def row_scales(rows: np.ndarray) -> np.ndarray:
    """What divides each row of float32 [n, K] into ±LARGEST, float32 [n]; 1 for a row of zeros."""
    scales: np.ndarray = np.abs(rows).max(axis=1) / np.float32(LARGEST)
    scales[scales < np.finfo(np.float32).tiny] = 1  # a subnormal scale is too coarse: codes would overflow
    return scales


def token_products(
    graph: GraphBuilder, x: Value, layers: Sequence[Linear], weights: Weights, weight_zero: Value | None = None
) -> list[Value]:
    """Quantise x [..., K] once with one scale a token, multiply by each layer's 8-bit codes → [..., N].

    `weight_zero`: the zero point of uint8 codes; int8 ones have none.
    """
    axis, smallest = graph.constant(np.array([-1], np.int64)), graph.constant(np.array(SMALLEST_TOKEN, np.float32))
    # Both ends are read faster than |x| is written.
    lowest = graph.op("Neg", graph.op("ReduceMin", x, axis))
    largest = graph.op("Max", graph.op("ReduceMax", x, axis), lowest, smallest)  # [..., 1]
    largest = graph.op("Add", largest, not_finite(graph, x))
    step = graph.constant(np.array(1 / LARGEST, np.float32))
    zero = graph.constant(np.array(ZERO_POINT, np.uint8))
    codes = graph.op("QuantizeLinear", graph.op("Div", x, largest), step, zero)  # uint8 [..., K]
    outputs = []
    for layer in layers:
        weight, scales = weights(graph, layer.weight)
        inputs = [codes, weight, step, scales, zero, *([] if weight_zero is None else [weight_zero])]
        y = graph.op("MatMulIntegerToFloat", *inputs, domain="com.microsoft")
        if layer.bias is not None or not layer.scale_free:  # a bias belongs to the whole product
            y = graph.op("Mul", y, largest)
        if layer.bias is not None:
            bias = graph.weight(layer.bias.name, "float32", layer.bias.shape[:1], layer.bias.blocks)
            y = graph.op("Add", y, bias)
        outputs.append(y)
    return outputs
