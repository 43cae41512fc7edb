"""4-bit weights for the int8 product: whole-numbered scales in blocks, a float scale a row.

weight ≈ code · multiplier · scale: a 4-bit code from -8 to 7, a multiplier for each block along the input, negative
where the largest weight of the block is positive, and a float scale for each row (compare the progressive quantisation
of QServe, Lin et al., 2024). Code by multiplier is an int8 weight, and the product is that of `PerToken`. The graph
unpacks it at every call, one matrix at a time: in memory there are 4-bit weights, used where they are mapped, and the
cost is the same for one token as for a thousand.

Outputs are stored in panels of n: the kernel, which reorders the weights at every call, reads a narrow panel twice as
fast as a whole matrix. The lower half of a byte belongs to the first N/2 outputs, the upper one to the others, so that
each half is unpacked and multiplied by itself. All of it is int8 arithmetic modulo 256. Inputs are stored by their
place in a block, so that multipliers are read in long runs; the input is brought into that order once.

Bytes: int8 [N/2n, block, K/block, n], lower code + 16 · upper code modulo 256; for each half multipliers int8
[N/2n, 1, K/block, n] and scales float32 [N/2n, 1, n].
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from math import gcd

import numpy as np

from quant.blockwise import PIECE_ELEMENTS, SHRINKS
from quant.per_token import ZERO_POINT, Codes, finished, integer_product, row_scales, token_codes
from quant.schemes import GraphBuilder, Linear, Matrix, Value
from runtime.errors import CheckpointError
from runtime.graphs.session import default_threads

LOWEST_CODE, HIGHEST_CODE = -8, 7
CODES = HIGHEST_CODE - LOWEST_CODE + 1
UINT8 = 2  # onnx.TensorProto.UINT8
LOWEST, HIGHEST = -128, 127  # of int8
PANEL = 128  # outputs
HALVES = ("lower", "upper")
TIES_UP = 1e-2  # what makes a half more than a half

Blocks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Levels:
    """Quantised rows: codes int8 [n, blocks, block], multipliers int8 [n, blocks], scales float32 [n]."""

    codes: np.ndarray
    multipliers: np.ndarray
    scales: np.ndarray

    def weights(self) -> np.ndarray:
        """The int8 weights [n, K]."""
        values: np.ndarray = self.codes * self.multipliers[..., None]
        return values.reshape(len(values), -1)


@dataclass(frozen=True)
class TwoLevel:
    """The small tier of the CPU; with `to_uint8` unpacked to codes around ZERO_POINT: exact where int8 saturates."""

    block: int
    to_uint8: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"int4-two-level-signed-block{self.block}")

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
        codes = token_codes(graph, x, layers)
        outer = graph.op("Shape", x, end=-1)
        codes = replace(codes, values=self._by_place(graph, codes.values, layers[0].weight.shape[1]))
        products = (self._product(graph, codes, outer, layer.weight) for layer in layers)
        return [finished(graph, y, layer, codes.scales) for y, layer in zip(products, layers, strict=True)]

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")

    def _by_place(self, graph: GraphBuilder, x: Value, width: int) -> Value:
        """x [..., K] → [1, T, K], all first inputs of the blocks, then all second ones."""
        block = self._block(width)
        blocks = graph.op("Reshape", x, _shape(graph, 1, -1, width // block, block))
        return graph.op("Reshape", graph.op("Transpose", blocks, perm=[0, 1, 3, 2]), _shape(graph, 1, -1, width))

    def _product(self, graph: GraphBuilder, x: Codes, outer: Value, matrix: Matrix) -> Value:
        """Codes [1, T, K] → [..., N] where T are `outer` dimensions, both halves of the outputs one after the other."""
        size, width = matrix.shape
        if size % 2:
            raise CheckpointError(
                f"{matrix.name} has {size} outputs, and {self.name} stores two in a byte; add --portable or use --int8."
            )
        stored = _Stored(self, matrix)
        panels, columns = stored.panels
        block = self._block(width)
        packed = graph.weight(matrix.name, "int8", (panels, block, width // block, columns), stored.codes)
        # QLinearAdd reads what lies in no cache twice slower than Add does.
        both = graph.op("Add", packed, graph.constant(np.array(-LOWEST_CODE, np.int8)))
        upper = upper_half(graph, both)
        # Two operators that onnxruntime vectorises take a third of the time of BitwiseAnd.
        lower = graph.op("Sub", packed, graph.op("Mul", upper, graph.constant(np.array(CODES, np.int8))))
        halves = [self._half(graph, x, codes, stored, half) for half, codes in enumerate((lower, upper))]
        y = graph.op("Transpose", graph.op("Concat", *halves, axis=0), perm=[1, 0, 2])  # [T,N/n,n]
        return graph.op("Reshape", y, graph.op("Concat", outer, _shape(graph, size), axis=0))

    def _half(self, graph: GraphBuilder, x: Codes, codes: Value, stored: "_Stored", half: int) -> Value:
        """The product of one half of the outputs, from its codes [N/2n, block, K/block, n] → [N/2n, T, n]."""
        (_, width), name = stored.matrix.shape, f"{stored.matrix.name}:{HALVES[half]}"
        panels, columns = stored.panels
        shape = panels, 1, width // self._block(width), columns
        values = graph.op("Mul", codes, graph.weight(f"{name}:multipliers", "int8", shape, stored.multipliers(half)))
        weights = graph.op("Reshape", values, _shape(graph, panels, width, columns))
        scales = graph.weight(f"{name}:scales", "float32", (panels, 1, columns), stored.scales(half))
        if not self.to_uint8:
            return integer_product(graph, x, weights, scales)
        middle = graph.constant(np.array(ZERO_POINT, np.uint8))
        return integer_product(graph, x, graph.op("Add", graph.op("Cast", weights, to=UINT8), middle), scales, middle)

    def _block(self, width: int) -> int:
        """The block, or the largest part of it that divides the input."""
        return gcd(self.block, width)

    def _quantize_piece(self, rows: np.ndarray, importance: np.ndarray | None) -> Levels:
        block, scales = self._block(rows.shape[1]), row_scales(rows)
        shrinks = np.ones(1, np.float32) if importance is None else SHRINKS
        importance = np.ones(rows.shape[1], np.float32) if importance is None else importance
        # What is the same for a whole block then meets long rows of numbers.
        units = np.ascontiguousarray((rows / scales[:, None]).reshape(len(rows), -1, block).transpose(2, 0, 1))
        multipliers = _searched(units, np.ascontiguousarray(importance.reshape(-1, block).T), shrinks)
        codes = _rounded(units, multipliers).transpose(1, 2, 0).astype(np.int8, order="C")
        return Levels(codes, multipliers.astype(np.int8), scales)


class _Stored:
    """A matrix quantised once for all of its bytes, which are written one after the other."""

    def __init__(self, scheme: TwoLevel, matrix: Matrix):
        self.matrix, self._scheme = matrix, scheme

    @cached_property
    def levels(self) -> Levels:
        """As `TwoLevel.quantize`."""
        return _joined([self._scheme.quantize(rows, self.matrix.importance) for rows in self.matrix.blocks()])

    @property
    def panels(self) -> tuple[int, int]:
        """How many one half of the outputs has, N/2n, and the outputs n of each."""
        half = self.matrix.shape[0] // 2
        columns = gcd(PANEL, half)
        return half // columns, columns

    def codes(self) -> Iterator[np.ndarray]:
        """Both halves in a byte."""
        by_place = self.levels.codes.transpose(0, 2, 1)  # [N,block,K/block]
        lower, upper = np.split(by_place.reshape(self.matrix.shape), 2)
        return self._transposed(lower + CODES * upper)

    def multipliers(self, half: int) -> Blocks:
        """Of one half."""
        return lambda: self._transposed(np.split(self.levels.multipliers, 2)[half])

    def scales(self, half: int) -> Blocks:
        """Of one half."""

        def blocks() -> Iterator[np.ndarray]:
            yield np.split(self.levels.scales, 2)[half]
            if half:
                del self.levels  # these are the last of its bytes

        return blocks

    def _transposed(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """[N/2, R] → each panel [R, n] as int8, modulo 256."""
        _, columns = self.panels
        for start in range(0, len(values), columns):
            yield values[start : start + columns].T.astype(np.int8)


def upper_half(graph: GraphBuilder, both: Value) -> Value:
    """int8 b → floor(b / 16), as round((b - 8) / 16) with ties upwards.

    onnxruntime has vectors for adding a constant to it, half of them for a product with one, and none for BitShift.
    """
    part, ties, one = (graph.constant(np.array(each, np.float32)) for each in (1 / CODES, TIES_UP, 1))
    middle, zero = (graph.constant(np.array(each, np.int8)) for each in (CODES // 2, 0))
    up = graph.constant(np.array([1], np.int8))
    return graph.op("QLinearAdd", both, part, middle, up, ties, zero, one, zero, domain="com.microsoft")


def _searched(units: np.ndarray, weights: np.ndarray, shrinks: np.ndarray) -> np.ndarray:
    """The multipliers [n, blocks] with the least square error of units [block, n, blocks].

    All whole multipliers are tried from the smallest of `shrinks` to the largest, as parts of the one that covers the
    block with its largest weight at LOWEST_CODE. `weights` [block, blocks] are those of the inputs.
    """
    low, high = units.min(axis=0), units.max(axis=0)
    sign = np.where(high > -low, np.float32(-1), np.float32(1))
    whole = np.maximum(np.maximum(high, -low) / -LOWEST_CODE, np.minimum(high, -low) / HIGHEST_CODE)
    # Rounded up it covers the whole block; where multipliers are small, the nearest may not.
    first, last = np.rint(whole * shrinks.min()), np.maximum(np.ceil(whole), np.rint(whole * shrinks.max()))
    first, last = (np.clip(each, 1, HIGHEST // HIGHEST_CODE) for each in (first, last))
    least = np.full_like(whole, np.inf)
    best: np.ndarray = first
    for more in range(int((last - first).max()) + 1):
        multipliers = sign * np.minimum(first + more, last)
        missed = _rounded(units, multipliers)
        missed *= multipliers
        np.subtract(units, missed, out=missed)
        error = np.einsum("knb,knb,kb->nb", missed, missed, weights)
        better = error < least
        least, best = np.where(better, error, least), np.where(better, multipliers, best)
    return best


def _rounded(units: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """The nearest codes [block, n, blocks] whose weights are int8, as float32."""
    ends = LOWEST / multipliers, HIGHEST / multipliers
    lowest = np.maximum(np.ceil(np.minimum(*ends)), LOWEST_CODE)
    highest = np.minimum(np.floor(np.maximum(*ends)), HIGHEST_CODE)
    codes: np.ndarray = units / multipliers
    np.rint(codes, out=codes)
    np.minimum(np.maximum(codes, lowest, out=codes), highest, out=codes)  # clip takes four times as long
    return codes


def _shape(graph: GraphBuilder, *sizes: int) -> Value:
    return graph.constant(np.array(sizes, np.int64))


def _joined(parts: Sequence[Levels]) -> Levels:
    return Levels(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Levels)))
