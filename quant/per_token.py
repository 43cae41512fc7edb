"""W8A8: int8 weights with one scale a row of the checkpoint, uint8 activations with one scale a token.

The CPU's fastest product (MatMulIntegerToFloat, uint8 × int8) with nothing shared between tokens, so that a result
depends neither on the batch nor on the padding. Activations are symmetric around a zero point in the middle; those
that come out of a GELU, which gives next to nothing below zero, have it near the bottom.

Bytes: codes int8 [K, N], |code| ≤ 127, transposed for the operator; scales float32 [N]; weight ≈ code[:, n] · scale[n].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quant.schemes import GraphBuilder, Linear, Matrix, Value, not_finite

LARGEST = 127
SMALLEST_TOKEN = 1e-8  # a token of zeros is divided by this


@dataclass(frozen=True)
class Grid:
    """The codes of an activation: which one is zero, and how many lie on either side of it."""

    zero: int
    below: int
    above: int


ZERO_POINT = 128  # uint8 × int8 is far faster on x86 than int8 × int8
SYMMETRIC = Grid(ZERO_POINT, LARGEST, LARGEST)
# GELU goes down to -0.17, for which there is room in a token whose largest is 1.2 or more.
AFTER_GELU = Grid(32, 32, 223)


@dataclass(frozen=True, eq=False)
class Codes:
    """A quantised input [..., K]; what its codes mean is multiplied by the `scales` [..., 1] of the tokens."""

    values: Value
    zero: Value
    scales: Value


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
        codes = token_codes(graph, x, layers)
        return [finished(graph, self._product(graph, codes, layer.weight), layer, codes.scales) for layer in layers]

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")

    def _product(self, graph: GraphBuilder, x: Codes, matrix: Matrix) -> Value:
        size, width = matrix.shape

        def codes() -> Iterator[np.ndarray]:
            whole = np.concatenate([self.quantize(block)[0] for block in matrix.blocks()])
            yield whole.T

        def scales() -> Iterator[np.ndarray]:
            for block in matrix.blocks():
                yield self.quantize(block)[1]

        stored = graph.weight(matrix.name, "int8", (width, size), codes)
        return integer_product(graph, x, stored, graph.weight(f"{matrix.name}:scales", "float32", (size,), scales))


def row_scales(rows: np.ndarray) -> np.ndarray:
    """What divides each row of float32 [n, K] into ±LARGEST, float32 [n]; 1 for a row of zeros."""
    scales: np.ndarray = np.abs(rows).max(axis=1) / np.float32(LARGEST)
    scales[scales < np.finfo(np.float32).tiny] = 1  # a subnormal scale is too coarse: codes would overflow
    return scales


def token_codes(graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> Codes:
    """Quantise x [..., K], which `layers` share, with one scale a token."""
    grid = AFTER_GELU if layers[0].after_gelu else SYMMETRIC
    axis, lost = graph.constant(np.array([-1], np.int64)), not_finite(graph, x)
    # Both ends are read faster than |x| is written.
    below = graph.op("Mul", graph.op("ReduceMin", x, axis), _number(graph, -1 / grid.below))
    above = graph.op("Mul", graph.op("ReduceMax", x, axis), _number(graph, 1 / grid.above))
    scales = graph.op("Max", above, below, _number(graph, SMALLEST_TOKEN / grid.above))  # [..., 1]
    scales = graph.op("Add", scales, lost)
    zero = graph.constant(np.array(grid.zero, np.uint8))
    zeros = graph.op("QuantizeLinear", lost, _number(graph, 1), zero)  # [..., 1]
    # A token is a block of its own: dividing by the scales in another pass would take twice to three times as long.
    width = layers[0].weight.shape[1]
    return Codes(graph.op("QuantizeLinear", x, scales, zeros, axis=-1, block_size=width), zero, scales)


def finished(graph: GraphBuilder, y: Value, layer: Linear, scales: Value) -> Value:
    """A product y [..., N] with the scales [..., 1] of its tokens, where they are wanted, and its bias."""
    if layer.bias is not None or not layer.scale_free:  # a bias belongs to the whole product
        y = graph.op("Mul", y, scales)
    if layer.bias is not None:
        bias = graph.weight(layer.bias.name, "float32", layer.bias.shape[:1], layer.bias.blocks)
        y = graph.op("Add", y, bias)
    return y


def integer_product(graph: GraphBuilder, x: Codes, weight: Value, scales: Value, zero: Value | None = None) -> Value:
    """Codes [..., K] by 8-bit codes [..., K, N] → float32 [..., N]; `zero` point of uint8 weights, if any."""
    inputs = [x.values, weight, _number(graph, 1), scales, x.zero, *([] if zero is None else [zero])]
    return graph.op("MatMulIntegerToFloat", *inputs, domain="com.microsoft")


def _number(graph: GraphBuilder, number: float) -> Value:
    return graph.constant(np.array(number, np.float32))
