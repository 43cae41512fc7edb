"""One video frame at another size: float32 antialiased bicubic, as torchvision resizes tensors.

Each output pixel is a weighted sum of its taps, rows first, then columns, without rounding in between.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CUBIC = -0.5  # the Keys coefficient that both Pillow and torch's antialiased kernel use
VECTOR = 4  # torch's x86 kernel multiplies taps four at a time without FMA; what is left over goes through FMA

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Taps:
    """Where each of the n outputs reads: first input [n], taps [n], weights float32 [n, most taps]."""

    first: NDArray[np.int64]
    count: NDArray[np.int64]
    weights: Floats


def resize_frame(frame: NDArray[np.uint8], height: int, width: int, exact: bool) -> NDArray[np.uint8]:
    """uint8 [H, W, C] → uint8 [height, width, C].

    By default Pillow's float resize, one level off torch's on less than 0.3 % of values; `exact` repeats the
    operations of torch 2.13 on x86 bit for bit, five to ten times slower.
    """
    if frame.shape[:2] == (height, width):
        return frame
    if exact:
        values = _weighted(_weighted(frame.astype(np.float32), width, axis=1), height, axis=0)
    else:
        planes = [
            Image.fromarray(frame[:, :, channel].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            for channel in range(frame.shape[2])
        ]
        values = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def bicubic_taps(size: int, new_size: int) -> Taps:
    """The taps of an antialiased bicubic resize from `size` to `new_size`, in torch's float32 arithmetic."""
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(size) / np.float32(new_size)
    stretch = max(scale, one)  # antialiasing widens the kernel when shrinking
    support = np.float32(2) * stretch
    centre = scale * (np.arange(new_size, dtype=np.float32) + half)
    first = np.maximum((centre - support + half).astype(np.int64), 0)
    last = np.minimum((centre + support + half).astype(np.int64), size)
    tap = np.arange(2 * math.ceil(support) + 1)
    count = np.minimum(last - first, len(tap))
    distance = np.abs(((tap + first[:, None]).astype(np.float32) - centre[:, None] + half) * (one / stretch))
    weights: Floats = np.where(tap < count[:, None], _cubic(distance), np.float32(0))
    total: Floats = np.zeros(new_size, np.float32)
    for column in weights.T:  # in order: np.sum would add pairwise
        total = total + column
    return Taps(first, count, weights / total[:, None])


def _cubic(distance: Floats) -> Floats:
    a = np.float32(CUBIC)
    near = _fused(_fused(distance, a + 2, -(a + 3)) * distance, distance, np.float32(1))
    far = _fused(_fused(_fused(distance, a, -5 * a), distance, 8 * a), distance, -4 * a)
    return np.where(distance < 1, near, np.where(distance < 2, far, np.float32(0)))


def _fused(left: Floats, right: Floats | np.float32, addend: Floats | np.float32) -> Floats:
    """left * right + addend rounded once, like a fused multiply-add (the float64 product is exact)."""
    product = left.astype(np.float64) * np.float64(right)
    return (product + addend).astype(np.float32)


def _weighted(values: Floats, new_size: int, axis: int) -> Floats:
    """float32 [..., size, ...] → [..., new_size, ...] along `axis`, in the order of torch's loop."""
    if values.shape[axis] == new_size:
        return values
    source = np.moveaxis(values, axis, 0)
    taps = bicubic_taps(len(source), new_size)
    column = (new_size,) + (1,) * (source.ndim - 1)
    # The first tap is a bare product; the next ones come in whole vectors as far as they go.
    vectored = (taps.count - 1) // VECTOR * VECTOR
    total: Floats = np.zeros((new_size, *source.shape[1:]), np.float32)
    for tap in range(int(taps.count.max())):
        pixels = source[np.minimum(taps.first + tap, len(source) - 1)]
        weights = taps.weights[:, tap].reshape(column)
        plain = (tap <= vectored).reshape(column)
        total = np.where(plain, total + pixels * weights, _fused(pixels, weights, total))
    return np.moveaxis(total, 0, axis)
