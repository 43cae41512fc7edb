"""The vision encoder, run: patches of pictures and frame pairs to visual features."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from runtime.graphs.forked import OwnLock
from runtime.graphs.graph import Graph
from runtime.manifest import VisionConfig
from runtime.media.image import Visual
from runtime.prompts.positions import PatchPositions, patch_positions
from runtime.vectors import require_finite

CACHED_GRIDS = 8
# Rows that go through an MLP together; 64 to 512 are about as fast, and fewer are more calls (bench/RESULTS.md).
PIECE_ROWS = 512
# 33 kB each at 2B: tokens and three DeepStack levels of 2,048 numbers.
REMEMBERED_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class VisualFeatures:
    """What the decoder takes of some visuals, float32: tokens [V, D], deepstack [L, V, D]."""

    tokens: np.ndarray
    deepstack: np.ndarray


def frames_per_call(patches: int, batch_patches: int) -> int:
    """How many pictures or frame pairs of that many patches go through the vision encoder together."""
    return max(1, batch_patches // patches)


def pieces_of(rows: int, wanted: int = PIECE_ROWS) -> int:
    """In how many pieces of equal length that many rows are cut, each of about `wanted` and an even number of them.

    MatMulNBits calculates a row that is left over from pairs by itself, and not to the same last digits.
    """
    counts = [count for count in range(1, rows // 2 + 1) if rows % count == 0 and rows // count % 2 == 0]
    return min(counts or [1], key=lambda count: abs(math.log(rows / count / wanted)))


def joined(features: Sequence[VisualFeatures], levels: int, size: int) -> VisualFeatures:
    """Several features as one, in order; also those of no visual at all, [0, size] and [levels, 0, size]."""
    tokens = [np.zeros((0, size), np.float32), *(each.tokens for each in features)]
    deepstack = [np.zeros((levels, 0, size), np.float32), *(each.deepstack for each in features)]
    return VisualFeatures(np.concatenate(tokens), np.concatenate(deepstack, axis=1))


class VisionEncoder:
    """vision.onnx of one package, opened at the first picture. Runs may overlap in several threads.

    Pictures of one size go through it together, `batch_patches` a call, or one alone. Unless `keep`, it is released
    after each call of `features`.
    """

    def __init__(self, config: VisionConfig, open_graph: Callable[[], Graph], batch_patches: int, keep: bool = True):
        self._config, self._open_graph, self._batch_patches, self._keep = config, open_graph, batch_patches, keep
        self._graph: Graph | None = None
        self._lock = OwnLock()
        side = int(config.num_position_embeddings**0.5)
        head_dim = config.hidden_size // config.num_heads

        @lru_cache(CACHED_GRIDS)
        def positions(height: int, width: int) -> PatchPositions:
            return patch_positions((height, width), config.spatial_merge_size, head_dim, side)

        self._positions = positions

    @property
    def is_open(self) -> bool:
        """Whether the graph is in memory."""
        return self._graph is not None

    def features(self, visuals: Sequence[Visual]) -> list[VisualFeatures]:
        """The features of each visual, in order; equal-sized pictures and frame pairs share a call.

        Raises MemoryError, and NotFiniteError for NaN or infinity: a quantised decoder would round it to numbers.
        """
        try:
            return self._features(visuals)
        finally:
            if not self._keep:
                self.release()

    def release(self) -> None:
        """Close the graph until the next picture; runs in other threads end as they began."""
        with self._lock():
            self._graph = None

    def _features(self, visuals: Sequence[Visual]) -> list[VisualFeatures]:
        by_grid: dict[tuple[int, int], list[int]] = {}
        for index, visual in enumerate(visuals):
            by_grid.setdefault(visual.grid[1:], []).append(index)
        found: dict[int, VisualFeatures] = {}
        for (height, width), members in by_grid.items():
            together = self._run([visuals[index].patches for index in members], self._positions(height, width))
            stops = np.cumsum([visuals[index].num_tokens for index in members])
            for index, stop in zip(members, stops, strict=True):
                part = slice(stop - visuals[index].num_tokens, stop)
                found[index] = VisualFeatures(together.tokens[part], together.deepstack[:, part])
        return [found[index] for index in range(len(visuals))]

    def open(self) -> None:
        """Open the graph now rather than at the first picture."""
        self._opened()

    def _run(self, frames: Sequence[np.ndarray], positions: PatchPositions) -> VisualFeatures:
        """All frames [F, P, patch] of one grid, a bounded number a call."""
        graph, rotary = self._opened(), positions.rotary
        step = frames_per_call(len(rotary.cos), self._batch_patches)
        tokens, deepstack = [], []
        stacked = frames[0] if len(frames) == 1 else np.concatenate(frames)
        for start in range(0, len(stacked), step):
            patches = stacked[start : start + step]
            feeds = {
                "patches": patches,
                "rotary_cos": _repeated(rotary.cos, len(patches)),
                "rotary_sin": _repeated(rotary.sin, len(patches)),
                "position_index": positions.index,
                "position_weight": positions.weight,
                "pieces": np.array([pieces_of(len(patches) * len(rotary.cos))], np.int64),
            }
            outputs = graph.run(["tokens", "deepstack"], feeds)
            for each in outputs:
                require_finite(each, "a picture's result in the vision encoder")
            tokens.append(outputs[0])
            deepstack.append(outputs[1])
        return VisualFeatures(np.concatenate(tokens), np.concatenate(deepstack, axis=1))

    def _opened(self) -> Graph:
        with self._lock():
            if self._graph is None:
                self._graph = self._open_graph()
            return self._graph


class SeenVisuals:
    """The features of the visuals of one request: equal pixels go through the vision encoder once.

    As many as `tokens` visual tokens are remembered, those seen last.
    """

    def __init__(self, encoder: VisionEncoder, tokens: int = REMEMBERED_TOKENS):
        self._encoder, self._tokens = encoder, tokens
        self._known: dict[bytes, VisualFeatures] = {}

    def features(self, visuals: Sequence[Visual]) -> list[VisualFeatures]:
        """The features of each visual, in order; the same object for equal ones."""
        keys = [_digest(visual) for visual in visuals]
        unknown = {key: visual for key, visual in zip(keys, visuals, strict=True) if key not in self._known}
        known = self._known | dict(zip(unknown, self._encoder.features(list(unknown.values())), strict=True))
        self._remember({key: known[key] for key in keys} | self._known)
        return [known[key] for key in keys]

    def _remember(self, newest_first: dict[bytes, VisualFeatures]) -> None:
        sizes = np.cumsum([len(each.tokens) for each in newest_first.values()])
        self._known = {
            key: newest_first[key] for key, size in zip(newest_first, sizes, strict=True) if size <= self._tokens
        }


def _digest(visual: Visual) -> bytes:
    """Equal for visuals of equal pixels in an equal grid."""
    content = hashlib.blake2b(repr(visual.grid).encode(), digest_size=16)
    content.update(np.ascontiguousarray(visual.patches).data)
    return content.digest()


def _repeated(array: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(array, (count, *array.shape)))
