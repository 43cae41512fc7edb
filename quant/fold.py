"""Function-preserving scales: what one matrix gives, the next takes back, so the float model stays the same.

A producer (a norm's weight, or the rows of a matrix) is divided by s, the columns of its consumers multiplied by s.
SmoothQuant (Xiao et al., 2022) moves large activations into the weights this way; AWQ (Lin et al., 2023) makes
important inputs larger before they are rounded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TypeGuard

import numpy as np

from quant.blockwise import Blockwise
from quant.statistics import InputStatistics
from quant.two_level import TwoLevel

# Tuned on SmolLM2-135M (bench/REAL_WEIGHTS.md), where 0.5 to 0.65 are within noise of each other.
SMOOTHING = 0.6
# A scale outside would only move the trouble; dead channels would ask for infinity.
SMALLEST, LARGEST = 1e-2, 1e2
EXPONENTS = np.linspace(0, 1, 11)

Error = Callable[[np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Fold:
    """Factors of a tensor, None for ones: row i times rows[i], column k times columns[k]."""

    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def apply(self, block: np.ndarray, start: int) -> np.ndarray:
        """Rows `start`… of the tensor, float32 [n, K], scaled."""
        if self.rows is not None:
            block = block * self.rows[start : start + len(block), None]
        if self.columns is not None:
            block = block * self.columns
        return block

    def then(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> "Fold":
        """This fold followed by another."""
        return Fold(_product(self.rows, rows), _product(self.columns, columns))


def smoothing_scales(statistics: InputStatistics, weight_largest: np.ndarray) -> np.ndarray:
    """SmoothQuant's s = |x|^α / max|w|^(1−α) for each channel, float32 [K]; `weight_largest` over all consumers.

    |x| is the geometric mean of the largest and the root mean square: the largest alone follows single tokens.
    """
    root = np.sqrt(statistics.mean_square)
    activation = np.maximum(np.sqrt(statistics.largest) * np.sqrt(root), 1e-5)
    weight = np.maximum(weight_largest, 1e-5)
    return bounded(activation**SMOOTHING / weight ** (1 - SMOOTHING))


def awq_scales(statistics: InputStatistics, error: Error) -> np.ndarray:
    """The s = rms(x)^α with the least `error(s)`, α between 0 and 1, float32 [K]."""
    root = np.sqrt(np.maximum(statistics.mean_square, 1e-12))
    candidates = [bounded(root**exponent) for exponent in EXPONENTS]
    best: np.ndarray = min(candidates, key=error)
    return best


def rounding_error(scheme: Blockwise | TwoLevel, rows: np.ndarray, importance: np.ndarray, scales: np.ndarray) -> float:
    """Σ importance · (weight error)² of rows [n, K] stored with `scales` [K] folded into their columns."""
    scaled = rows * scales
    stored = scheme.rounded(scaled)
    return float((np.square((stored - scaled) / scales) * importance).sum())


def is_four_bit(scheme: object) -> TypeGuard[Blockwise | TwoLevel]:
    """Whether AWQ's scales suit a scheme; those of SmoothQuant suit the others."""
    return isinstance(scheme, TwoLevel) or (isinstance(scheme, Blockwise) and scheme.bits == 4)


def bounded(scales: np.ndarray) -> np.ndarray:
    """Scales with geometric mean 1, clipped to SMALLEST … LARGEST, float32."""
    centred = scales / np.exp(np.mean(np.log(scales)))
    return np.asarray(np.clip(centred, SMALLEST, LARGEST), np.float32)


def shared_scales(scales: np.ndarray, producer_of: np.ndarray) -> np.ndarray:
    """Scales [K] reduced to one for each producer, the largest it is asked for; producer_of[k] feeds channel k."""
    shared = np.zeros(int(producer_of.max()) + 1, np.float32)
    np.maximum.at(shared, producer_of, scales)
    return shared


def largest_by_column(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """max|w| over the rows of all blocks [n, K] → float32 [K]."""
    return reduce(np.maximum, (np.abs(block).max(axis=0) for block in blocks))


def _product(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return second if first is None else first if second is None else first * second
