"""What calibration keeps of a matrix's input: the mean square and the largest value of each channel."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of one matrix's input x [tokens, K]: `mean_square` (weighted) and `largest` |x|, float32 [K] each."""

    mean_square: np.ndarray
    largest: np.ndarray

    def divided(self, scales: np.ndarray) -> "InputStatistics":
        """The statistics of x / scales: what a fold leaves."""
        return InputStatistics(self.mean_square / np.square(scales), self.largest / scales)


class Accumulator:
    """Adds up the statistics of many runs; weights make texts and pictures count alike."""

    def __init__(self) -> None:
        self._squares: dict[str, np.ndarray] = {}
        self._largest: dict[str, np.ndarray] = {}
        self._weight: dict[str, float] = {}

    def add(self, name: str, squares: np.ndarray, largest: np.ndarray, weight: float) -> None:
        """One run's weighted sum of squares [K], largest |x| [K] and the sum of the weights."""
        if name not in self._squares:
            self._squares[name] = np.zeros(len(squares), np.float64)
            self._largest[name] = np.zeros(len(largest), np.float32)
            self._weight[name] = 0.0
        self._squares[name] += squares
        np.maximum(self._largest[name], largest, out=self._largest[name])
        self._weight[name] += weight

    def statistics(self) -> dict[str, InputStatistics]:
        """By matrix name."""
        return {
            name: InputStatistics((squares / self._weight[name]).astype(np.float32), self._largest[name].copy())
            for name, squares in self._squares.items()
        }
