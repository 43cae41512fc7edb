"""Where every token and patch stands: the integers and angles the graphs take as inputs, all numpy.

Mirrors transformers 4.57: get_rope_index, Qwen3VLTextRotaryEmbedding, rot_pos_emb and fast_pos_embed_interpolate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.media.linspace import linspace

VISION_THETA = 10_000.0

Blocks = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of the rotary angles, float32, half a head wide."""

    cos: np.ndarray
    sin: np.ndarray


@dataclass(frozen=True)
class PatchPositions:
    """What the vision graph needs to know about a grid of P patches.

    rotary [P, head_dim/2]; index int64 [4, P] and weight float32 [4, P, 1]: the four neighbours in the position table.
    """

    rotary: Rotary
    index: np.ndarray
    weight: np.ndarray


def token_positions(is_visual: np.ndarray, blocks: Blocks) -> np.ndarray:
    """(T, H, W) position of every token, int64 [3, S]; mirrors get_rope_index.

    `is_visual` bool [S] marks the visual pads; `blocks` lists (rows, columns) of merged cells in order, one for a
    picture and one for each frame pair of a video. Text counts by one; a block of h × w at p takes (p, p+row, p+col)
    and moves p on by max(h, w).
    """
    positions = np.empty((3, len(is_visual)), np.int64)
    visual = np.flatnonzero(is_visual)
    cells = sum(rows * columns for rows, columns in blocks)
    if cells != len(visual):
        raise AssertionError(f"{len(visual)} visual tokens for {cells} cells")
    done, next_position, seen = 0, 0, 0
    for rows, columns in blocks:
        start, count = int(visual[seen]), rows * columns
        positions[:, done:start] = next_position + np.arange(start - done)
        next_position += start - done
        row, column = np.divmod(np.arange(count), columns)
        positions[:, start : start + count] = next_position + np.stack([np.zeros_like(row), row, column])
        next_position += max(rows, columns)
        done, seen = start + count, seen + count
    positions[:, done:] = next_position + np.arange(len(is_visual) - done)
    return positions


def text_rotary(positions: np.ndarray, theta: float, mrope_section: Sequence[int]) -> Rotary:
    """Interleaved M-RoPE for positions [3, ...] → cos, sin float32 [..., head_dim/2].

    Frequencies come from T; H overwrites 1, 4, 7, … and W overwrites 2, 5, 8, … up to three times their section.
    """
    half = sum(mrope_section)
    frequencies = _inverse_frequencies(theta, half)
    angles = positions[0, ..., None].astype(np.float32) * frequencies  # [..., half]
    for axis in (1, 2):
        taken = slice(axis, mrope_section[axis] * 3, 3)
        angles[..., taken] = positions[axis, ..., None].astype(np.float32) * frequencies[taken]
    return Rotary(np.cos(angles), np.sin(angles))


def patch_positions(grid: tuple[int, int], merge: int, head_dim: int, side: int) -> PatchPositions:
    """Rotary angles and position-table neighbours of a grid of (h, w) patches, in the order of the patches.

    Patches come in blocks of merge × merge; `side` is the edge of the (square) position table.
    """
    height, width = grid
    rows, columns = np.divmod(np.arange(height * width), width)
    order = (
        np.arange(height * width)
        .reshape(height // merge, merge, width // merge, merge)
        .transpose(0, 2, 1, 3)
        .reshape(-1)
    )
    rows, columns = rows[order], columns[order]
    frequencies = _inverse_frequencies(VISION_THETA, head_dim // 4)
    coordinates = np.stack([rows, columns], axis=1).astype(np.float32)
    angles = (coordinates[:, :, None] * frequencies).reshape(height * width, -1)  # rows' angles, then columns'

    down, across = linspace(side - 1, height)[rows], linspace(side - 1, width)[columns]
    top, left = down.astype(np.int64), across.astype(np.int64)
    bottom, right = np.minimum(top + 1, side - 1), np.minimum(left + 1, side - 1)
    dh, dw = down - top.astype(np.float32), across - left.astype(np.float32)
    one = np.float32(1)
    index = np.stack([top * side + left, top * side + right, bottom * side + left, bottom * side + right])
    weight = np.stack([(one - dh) * (one - dw), (one - dh) * dw, dh * (one - dw), dh * dw])
    return PatchPositions(Rotary(np.cos(angles), np.sin(angles)), index, weight[..., None])


def _inverse_frequencies(theta: float, half: int) -> np.ndarray:
    """theta^(-i/half) as float32; the power in float64 so that it equals torch's to the last bit but one."""
    exponents = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half)
    return np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)
