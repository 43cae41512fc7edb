"""4-bit weights for the int8 product: whole-numbered scales in blocks, a float scale a row.

weight ≈ (code · multiplier + offset) · scale: a 4-bit code, a multiplier and an offset for each block along the input,
a float scale for each row (compare the progressive quantisation of QServe, Lin et al., 2024). The bracket is an int8
weight, and the product is that of `PerToken`. The graph unpacks it at every call, one matrix at a time: in memory there
are 4-bit weights, used where they are mapped, and the cost is the same for one token as for a thousand.

Bytes: codes uint8 [K/2, N], input k in the lower half of a byte, input K/2 + k in the upper one; multipliers uint8 and
offsets uint8 (an int8's bits) [K/block, 1, N]; scales float32 [N].
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from math import gcd

import numpy as np

from quant.blockwise import PIECE_ELEMENTS, SHRINKS
from quant.per_token import LARGEST, ZERO_POINT, row_scales, token_products
from quant.schemes import GraphBuilder, Linear, Matrix, Value
from runtime.session import default_threads

TOP = 15  # the largest code
INT8 = 3  # onnx.TensorProto.INT8
TIES_UP = 1e-3  # what makes a half more than a half; -1 becomes 0 by saturation


@dataclass(frozen=True)
class Levels:
    """Quantised rows: codes uint8 [n, blocks, block], multipliers and offsets int16 [n, blocks], scales float32 [n]."""

    codes: np.ndarray
    multipliers: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray

    def weights(self) -> np.ndarray:
        """The int8 weights [n, K]."""
        values = self.codes * self.multipliers[..., None] + self.offsets[..., None]
        weights: np.ndarray = values.astype(np.int8).reshape(len(values), -1)
        return weights


@dataclass(frozen=True)
class TwoLevel:
    """The small tier of the CPU; with `to_uint8` unpacked to codes around ZERO_POINT: exact where int8 saturates."""

    block: int
    to_uint8: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"int4-two-level-block{self.block}")

    def quantize(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Levels:
        """float32 [n, K] → Levels; with `importance` [K] (mean square of each input) the multipliers are searched."""
        step = max(1, PIECE_ELEMENTS // rows.shape[1])
        pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
        with ThreadPoolExecutor(default_threads()) as pool:
            parts = list(pool.map(partial(self._quantize_piece, importance=importance), pieces))
        return _joined(parts)

    def dequantize(self, levels: Levels) -> np.ndarray:
        """The inverse of `quantize`: float32 [n, K]."""
        values: np.ndarray = levels.weights() * levels.scales[:, None]
        return values

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        """What is left of float32 [n, K] once stored."""
        return self.dequantize(self.quantize(rows))

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """Quantise x [..., K] once, unpack and multiply by each layer → [..., N]."""
        zero = graph.constant(np.array(ZERO_POINT, np.uint8)) if self.to_uint8 else None
        return token_products(graph, x, layers, self._weights, zero)

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")

    def _unpacked(self, graph: GraphBuilder, matrix: Matrix, quantised: "_Quantised") -> Value:
        """The nodes that make 8-bit weights [K, N] of the stored bytes; all of it is arithmetic modulo 256."""
        (size, width), block = matrix.shape, self._block(matrix.shape[1])

        def packed() -> Iterator[np.ndarray]:
            codes = quantised.levels.codes.reshape(size, width)
            yield (codes[:, : width // 2] | (codes[:, width // 2 :] << 4)).T

        def multipliers() -> Iterator[np.ndarray]:
            yield quantised.levels.multipliers.T.astype(np.uint8)

        def offsets() -> Iterator[np.ndarray]:
            yield quantised.levels.offsets.T.astype(np.uint8)

        both = graph.weight(matrix.name, "uint8", (width // 2, size), packed)
        upper = upper_half(graph, both)
        # Two operators that onnxruntime vectorises take a third of the time of BitwiseAnd.
        lower = graph.op("Sub", both, graph.op("Mul", upper, graph.constant(np.array(TOP + 1, np.uint8))))
        codes = graph.op("Concat", lower, upper, axis=0)  # [K,N]
        codes = graph.op("Reshape", codes, graph.constant(np.array([width // block, block, size])))
        shape = (width // block, 1, size)
        codes = graph.op("Mul", codes, graph.weight(f"{matrix.name}:multipliers", "uint8", shape, multipliers))
        codes = graph.op("Add", codes, graph.weight(f"{matrix.name}:offsets", "uint8", shape, offsets))
        codes = graph.op("Reshape", codes, graph.constant(np.array([width, size])))
        if self.to_uint8:
            return graph.op("Add", codes, graph.constant(np.array(ZERO_POINT, np.uint8)))
        return graph.op("Cast", codes, to=INT8)

    def _weights(self, graph: GraphBuilder, matrix: Matrix) -> tuple[Value, Value]:
        quantised = _Quantised(self, matrix)
        weights = self._unpacked(graph, matrix, quantised)

        def scales() -> Iterator[np.ndarray]:
            yield quantised.levels.scales
            del quantised.levels  # these are the last of its bytes

        return weights, graph.weight(f"{matrix.name}:scales", "float32", matrix.shape[:1], scales)

    def _block(self, width: int) -> int:
        """The block, or the largest part of it that divides half the input."""
        return gcd(self.block, width // 2)

    def _quantize_piece(self, rows: np.ndarray, importance: np.ndarray | None) -> Levels:
        block = self._block(rows.shape[1])
        blocks = rows.reshape(len(rows), -1, block)
        scales = row_scales(rows)
        units = blocks / scales[:, None, None]
        low, high = units.min(axis=2), units.max(axis=2)
        weights = np.ones(blocks.shape[1:], np.float32) if importance is None else importance.reshape(-1, block)
        total = np.maximum(weights.sum(axis=1), np.finfo(np.float32).tiny)
        best: tuple[np.ndarray, ...] | None = None
        whole = (high - low) / TOP
        # Rounded up it covers the whole block; where multipliers are small, the nearest may not.
        tried = [np.ceil(whole), *(np.rint(whole * shrink) for shrink in (SHRINKS if importance is not None else [1]))]
        for multipliers in tried:
            multipliers = np.clip(multipliers, 1, 2 * LARGEST // TOP + 1)
            offsets = np.clip(np.rint((low + high - TOP * multipliers) / 2), -LARGEST, LARGEST)
            for _ in range(2):  # around the middle, then around what these codes leave over
                codes = _rounded(units, multipliers, offsets)
                products = codes * multipliers[..., None]
                left = units - products
                error = np.einsum("nbk,bk->nb", np.square(left - offsets[..., None]), weights)
                found = error, codes, multipliers, offsets
                best = found if best is None else _better(found, best)
                offsets = np.clip(np.rint(np.einsum("nbk,bk->nb", left, weights) / total), -LARGEST, LARGEST)
        assert best is not None
        _, codes, multipliers, offsets = best
        return Levels(codes.astype(np.uint8), multipliers.astype(np.int16), offsets.astype(np.int16), scales)


class _Quantised:
    """A whole matrix, quantised once for all of its bytes, which are written one after the other."""

    def __init__(self, scheme: TwoLevel, matrix: Matrix):
        self._scheme, self._matrix = scheme, matrix

    @cached_property
    def levels(self) -> Levels:
        """As `TwoLevel.quantize`."""
        return _joined([self._scheme.quantize(rows, self._matrix.importance) for rows in self._matrix.blocks()])


def upper_half(graph: GraphBuilder, both: Value) -> Value:
    """uint8 [...] // 16, as round((both - 8) / 16) with ties upwards: onnxruntime vectorises this, not BitShift."""
    part = graph.constant(np.array((1 + TIES_UP) / (TOP + 1), np.float32))
    one, one_zero = graph.constant(np.array(1, np.float32)), graph.constant(np.array(0, np.uint8))
    middle, factor = graph.constant(np.array((TOP + 1) // 2, np.uint8)), graph.constant(np.array([1], np.uint8))
    inputs = both, part, middle, factor, one, one_zero, one, one_zero
    return graph.op("QLinearMul", *inputs, domain="com.microsoft")


def _rounded(units: np.ndarray, multipliers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The nearest codes [n, blocks, block] whose weights are int8."""
    lowest = np.maximum(np.ceil((-LARGEST - offsets) / multipliers), 0)
    highest = np.minimum(np.floor((LARGEST - offsets) / multipliers), TOP)
    codes = np.rint((units - offsets[..., None]) / multipliers[..., None])
    nearest: np.ndarray = np.clip(codes, lowest[..., None], highest[..., None], out=codes)
    return nearest


def _better(found: tuple[np.ndarray, ...], best: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Of two candidates (error first), the better one for each block."""
    better = found[0] < best[0]
    for new, old in zip(found, best, strict=True):
        old[better] = new[better]
    return best


def _joined(parts: Sequence[Levels]) -> Levels:
    return Levels(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Levels)))
