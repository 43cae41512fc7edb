"""Evenly spaced float32 numbers exactly as torch places them: the reference rounds and floors them to indices."""

import numpy as np
from numpy.typing import NDArray


def linspace(last: float, count: int) -> NDArray[np.float32]:
    """torch.linspace(0, last, count) bit by bit, float32 [count]; numpy's own differs in the last bit.

    torch counts from the left in the first half and from the right in the second, where product and sum are rounded
    once (FMA); float64 holds the products exactly.
    """
    if count == 1:
        return np.zeros(1, np.float32)
    end = np.float32(last)
    step = np.float64(end / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = step * index, np.float64(end) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)
