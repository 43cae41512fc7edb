"""MatMulNBits: 4- or 8-bit weights in blocks along the input; on the CPU the operator quantises the activations.

Bytes: codes uint8 [N, blocks, block · bits / 8], two 4-bit codes a byte, the lower half first; scales [N, blocks],
float32 or the type that the kernels want; zero points uint8 [N, ⌈blocks · bits / 8⌉] packed alike, absent where
symmetric (then 2^(bits−1)). weight = (code − zero) · scale. A last block that K does not fill is padded with zeros.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from quant.kernels import CPU, NUMPY_DTYPES, Kernels
from quant.schemes import GraphBuilder, Linear, Matrix, Value, add_bias, cast, float_weight, not_finite
from runtime.graphs.session import default_threads

# Scales tried by the weighted search, as parts of the one that covers the whole range of a block; a wider one can
# bring the heavy inputs closer to the grid.
SHRINKS = np.linspace(1.1, 0.7, 13, dtype=np.float32)
# What a search goes over again and again should stay in the processor's caches.
PIECE_ELEMENTS = 2**18


@dataclass(frozen=True)
class Blocks:
    """A quantised row block: codes uint8 [n, blocks, block], scales float32 [n, blocks], zeros uint8 or None."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


@dataclass(frozen=True)
class Blockwise:
    """`bits` 4 or 8; asymmetric blocks have a zero point of their own."""

    bits: int
    block: int
    symmetric: bool
    kernels: Kernels = CPU
    name: str = field(init=False)

    def __post_init__(self) -> None:
        kind = "symmetric" if self.symmetric else "asymmetric"
        object.__setattr__(self, "name", f"int{self.bits}-block{self.block}-{kind}")

    def quantize(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Blocks:
        """float32 [n, K] → Blocks; with `importance` [K] (mean square of each input) each block's scale is searched.

        Without it, equal to onnxruntime's quantize_matmul_4bits and quantize_matmul_8bits.
        """
        step = max(1, PIECE_ELEMENTS // rows.shape[1])
        pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
        with ThreadPoolExecutor(default_threads()) as pool:
            parts = list(pool.map(partial(self._quantize_piece, importance=importance), pieces))
        return _joined(parts)

    def _quantize_piece(self, rows: np.ndarray, importance: np.ndarray | None) -> Blocks:
        levels = 2**self.bits
        padding = -rows.shape[1] % self.block
        blocks = np.pad(rows, [(0, 0), (0, padding)]).reshape(len(rows), -1, self.block)
        if self.symmetric:
            extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
            scales, zeros = extreme / np.float32(-levels // 2), np.zeros(1, np.float32) + levels // 2
        else:
            low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
            scales, zeros = (high - low) / np.float32(levels - 1), low
        weights = None if importance is None else np.pad(importance, (0, padding)).reshape(-1, self.block)
        return self._searched(blocks, scales, zeros, weights)

    def dequantize(self, blocks: Blocks, width: int) -> np.ndarray:
        """The inverse of `quantize`: float32 [n, width]."""
        zeros = np.float32(2 ** (self.bits - 1)) if blocks.zeros is None else blocks.zeros[..., None].astype(np.float32)
        values = (blocks.codes.astype(np.float32) - zeros) * blocks.scales[..., None]
        rows: np.ndarray = values.reshape(len(values), -1)[:, :width]
        return rows

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        """What is left of float32 [n, K] once stored."""
        return self.dequantize(self.quantize(rows), rows.shape[1])

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """One MatMulNBits a layer: x [..., K] goes in as it is."""
        products = [self._product(graph, x, layer) for layer in layers]
        if not self.kernels.accuracy_level or all(layer.scale_free for layer in layers):
            return products
        lost = not_finite(graph, x)  # [..., 1]
        return [
            product if layer.scale_free else graph.op("Add", product, lost)
            for product, layer in zip(products, layers, strict=True)
        ]

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """Not for tables."""
        raise NotImplementedError(f"{table.name}: {self.name} is a scheme for products, not for tables.")

    def _searched(self, blocks: np.ndarray, scales: np.ndarray, low: np.ndarray, weights: np.ndarray | None) -> Blocks:
        """Codes for the whole range, or for the multiple of it with the least weighted square error."""
        best = self._rounded(blocks, scales.copy(), low)  # what is found replaces these, the whole range stays
        if weights is None:
            return best
        least = self._error(blocks, best, weights)
        for shrink in SHRINKS:
            candidate = self._rounded(blocks, scales * shrink, low * (1 if self.symmetric else shrink))
            error = self._error(blocks, candidate, weights)
            better = error < least
            least = np.where(better, error, least)
            best.codes[better], best.scales[better] = candidate.codes[better], candidate.scales[better]
            if best.zeros is not None and candidate.zeros is not None:
                best.zeros[better] = candidate.zeros[better]
        return best

    def _rounded(self, blocks: np.ndarray, scales: np.ndarray, low: np.ndarray) -> Blocks:
        """onnxruntime's arithmetic: times the reciprocal, halves up; a block too small for one becomes zeros."""
        top = 2**self.bits - 1
        stored = scales.astype(NUMPY_DTYPES[self.kernels.weights], copy=False)
        scales = stored.astype(np.float32, copy=False)  # codes fit the scales that are stored
        divisors = np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(np.inf), scales)
        zeros = low if self.symmetric else np.clip(np.floor(np.float32(0.5) - low / divisors), 0, top)
        codes = np.floor(blocks * (np.float32(1) / divisors)[..., None] + zeros[..., None] + np.float32(0.5))
        own_zeros = None if self.symmetric else zeros.astype(np.uint8)
        return Blocks(np.clip(codes, 0, top).astype(np.uint8), scales, own_zeros)

    def _error(self, blocks: np.ndarray, candidate: Blocks, weights: np.ndarray) -> np.ndarray:
        values = self.dequantize(candidate, blocks.shape[1] * self.block).reshape(blocks.shape)
        error: np.ndarray = np.einsum("nbk,bk->nb", np.square(values - blocks), weights)
        return error

    def _product(self, graph: GraphBuilder, x: Value, layer: Linear) -> Value:
        (size, width), kernels = layer.weight.shape, self.kernels
        inputs = [x, *self._weights(graph, layer.weight)]
        if layer.bias is not None and kernels.fused_bias:
            inputs += [None] * (5 - len(inputs))
            inputs.append(float_weight(graph, layer.bias, layer.bias.shape[:1], kernels))
        product = graph.op(
            "MatMulNBits",
            *inputs,
            domain="com.microsoft",
            K=width,
            N=size,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=kernels.accuracy_level,
        )
        if layer.bias is None or kernels.fused_bias:
            return product
        return add_bias(graph, product, layer.bias, kernels)

    def _weights(self, graph: GraphBuilder, matrix: Matrix) -> list[Value | None]:
        """Codes, scales and, where they are asymmetric, zero points."""
        name, (size, width), stored = matrix.name, matrix.shape, _Stored(self, matrix)
        count = -(-width // self.block)
        codes = graph.weight(name, "uint8", (size, count, self.block * self.bits // 8), stored.codes)
        scales = graph.weight(f"{name}:scales", self.kernels.weights, (size, count), stored.scales)
        values = [codes, cast(graph, scales, self.kernels.weights, self.kernels.activations)]
        if not self.symmetric:
            values.append(graph.weight(f"{name}:zeros", "uint8", (size, -(-count * self.bits // 8)), stored.zeros))
        return values


class _Stored:
    """A matrix quantised once for all of its bytes, which are written one after the other."""

    def __init__(self, scheme: Blockwise, matrix: Matrix):
        self._scheme, self._matrix = scheme, matrix

    @cached_property
    def _blocks(self) -> Blocks:
        """As `Blockwise.quantize`, the codes packed."""
        scheme, matrix = self._scheme, self._matrix
        # With 8 bits the search gains nothing measurable and takes most of the time.
        importance = matrix.importance if scheme.bits == 4 else None
        parts = [scheme.quantize(rows, importance) for rows in matrix.blocks()]
        return _joined([replace(part, codes=pack(part.codes, scheme.bits)) for part in parts])

    def codes(self) -> Iterator[np.ndarray]:
        """The first of its bytes."""
        yield self._blocks.codes

    def scales(self) -> Iterator[np.ndarray]:
        """The last of them where it is symmetric."""
        yield self._blocks.scales
        if self._scheme.symmetric:
            del self._blocks

    def zeros(self) -> Iterator[np.ndarray]:
        """The last of them."""
        zeros = self._blocks.zeros
        assert zeros is not None, "symmetric blocks have no zero points"
        del self._blocks
        yield pack(zeros, self._scheme.bits)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes [..., n] → bytes [..., ⌈n · bits / 8⌉], the lower half of a byte first."""
    if bits == 8:
        return codes
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    packed: np.ndarray = padded[..., 0::2] | (padded[..., 1::2] << 4)
    return packed


def _joined(parts: Sequence[Blocks]) -> Blocks:
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Blocks(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
    )
