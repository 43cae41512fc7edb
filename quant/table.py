"""A token table in int8 with one scale a row, read by GatherBlockQuantized: only touched rows become resident.

Bytes: codes uint8 [N, K] with zero point 128, scales float32 [N, 1]; value = (code − 128) · scale.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quant.schemes import GraphBuilder, Linear, Matrix, Value

LARGEST, ZERO_POINT, SMALLEST_BLOCK = 127, 128, 16


@dataclass(frozen=True)
class Int8Rows:
    """One scale a row: the block is the smallest power of two that holds a row."""

    name: str = "int8-rows"

    def quantize(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [n, K] → codes uint8 [n, K], scales float32 [n, 1]; a row of zeros has scale 1."""
        scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(LARGEST)
        scales[scales < np.finfo(np.float32).tiny] = 1  # a subnormal scale is too coarse: codes would overflow
        return (np.rint(rows / scales) + ZERO_POINT).astype(np.uint8), scales

    def dequantize(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The inverse of `quantize`, float32 [n, K]."""
        values: np.ndarray = (codes.astype(np.float32) - ZERO_POINT) * scales
        return values

    def linear(self, graph: GraphBuilder, x: Value, layers: Sequence[Linear]) -> list[Value]:
        """Not for products."""
        raise NotImplementedError(f"{layers[0].weight.name}: {self.name} is a scheme for tables, not for products.")

    def rows(self, graph: GraphBuilder, table: Matrix, ids: Value) -> Value:
        """GatherBlockQuantized → float32 [..., K]."""
        size, width = table.shape
        block = max(SMALLEST_BLOCK, 1 << (width - 1).bit_length())

        def codes() -> Iterator[np.ndarray]:
            for rows in table.blocks():
                yield self.quantize(rows)[0]

        def scales() -> Iterator[np.ndarray]:
            for rows in table.blocks():
                yield self.quantize(rows)[1]

        return graph.op(
            "GatherBlockQuantized",
            graph.weight(table.name, "uint8", (size, width), codes),
            ids,
            graph.weight(f"{table.name}:scales", "float32", (size, 1), scales),
            domain="com.microsoft",
            bits=8,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
