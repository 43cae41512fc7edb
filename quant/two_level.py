"""4-bit weights that are multiplied by the int8 kernel: two levels of scales, unpacked inside the graph.

weight = (code − zero) · multiplier · scale: a 4-bit code, a small whole zero and multiplier for each block along the
input, a float scale for each row (compare the progressive quantisation of QServe, Lin et al., 2024). The first three make
an int8 weight, |weight| ≤ 127, and the product is that of `PerToken`. The weights stay in 4 bits in memory: they are
unpacked at every call, one matrix at a time, which costs the same for one token as for a thousand.

Bytes: codes uint8 [K/2, N], input k in the lower half, input K/2 + k in the upper one; zeros and multipliers int8
[K/block, 1, N]; scales float32 [N].
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from quant.blockwise import PIECE_ELEMENTS, SHRINKS
from quant.schemes import GraphBuilder, Linear, Matrix, Value
from runtime.session import default_threads

CODES, LARGEST = 16, 127


@dataclass(frozen=True)
class Levels:
    """Quantised rows: codes uint8, zeros and multipliers int8 [n, blocks], scales float32 [n]."""

    codes: np.ndarray
    zeros: np.ndarray
    multipliers: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class TwoLevel:
    block: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"int4-two-level-block{self.block}")

    def quantize(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Levels:
        step = max(1, PIECE_ELEMENTS // rows.shape[1])
        pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
        with ThreadPoolExecutor(default_threads()) as pool:
            parts = list(pool.map(partial(self._quantize_piece, importance=importance), pieces))
        return Levels(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("codes", "zeros", "multipliers", "scales")))

    def _quantize_piece(self, rows, importance):
        blocks = rows.reshape(len(rows), -1, self.block)
        scales = np.abs(rows).max(axis=1) / np.float32(LARGEST)
        scales[scales < np.finfo(np.float32).tiny] = 1
        units = blocks / scales[:, None, None]
        weights = None if importance is None else importance.reshape(-1, self.block)
        low, high = units.min(axis=2), units.max(axis=2)
        best = None
        for shrink in (SHRINKS if weights is not None else SHRINKS[:0].tolist() + [np.float32(1.0)]):
            m = np.clip(np.rint((high - low) * shrink / (CODES - 1)), 1, 127)
            z = np.rint(-(low+high)/2/m + 7.5) if False else np.rint(-low * shrink / m)
            for dz in ((0,) if weights is None else (0,)):
                zz = z + dz
                q = np.clip(np.rint(units / m[..., None]), -np.floor(LARGEST / m)[..., None], np.floor(LARGEST / m)[..., None])
                c = np.clip(q + zz[..., None], 0, CODES - 1)
                v = (c - zz[..., None]) * m[..., None]
                # a code may now lie outside int8
                lo_ok = np.abs(v).max(axis=2) <= LARGEST
                e = np.square(v - units)
                e = e.sum(axis=2) if weights is None else np.einsum("nbk,bk->nb", e, weights)
                e = np.where(lo_ok, e, np.inf)
                if best is None:
                    best = [e, c, zz, m]
                else:
                    better = e < best[0]
                    for i, x in enumerate((e, c, zz, m)):
                        best[i] = np.where(better[..., None] if x.ndim == 3 else better, x, best[i])
        e, c, z, m = best
        assert np.isfinite(e).all()
        return Levels(c.astype(np.uint8), z.astype(np.int8), m.astype(np.int8), scales)

    def dequantize(self, levels: Levels, width: int) -> np.ndarray:
        v = (levels.codes.astype(np.float32) - levels.zeros[..., None]) * levels.multipliers[..., None]
        return v.reshape(len(v), -1)[:, :width] * levels.scales[:, None]
