"""The two graphs of a package, run: patches to visual features, token sequences to pooled outputs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.encode import TokenSequence
from runtime.image import Visual
from runtime.manifest import DECODER, VISION, Manifest
from runtime.positions import PatchPositions, Rotary, patch_positions, text_rotary, token_positions
from runtime.session import open_session

# Bounds the vision graph's memory: its widest activation is [patches, intermediate_size] float32.
PATCHES_PER_CALL = 8192
CACHED_GRIDS = 8
OUTPUTS = {"embedding": "embedding", "reranker": "logit"}


@dataclass(frozen=True, eq=False)
class VisualFeatures:
    """What the decoder takes of some visuals, float32: tokens [V, D], deepstack [L, V, D]."""

    tokens: np.ndarray
    deepstack: np.ndarray


class Session(Protocol):
    """What a model needs of an open graph."""

    def run(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs `names`."""


class Model:
    """The sessions of one package. Runs may overlap in several threads.

    `open_graph(path, providers, threads)` opens each of them; comparing packages opens them with more outputs.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        providers: Sequence[str],
        threads: int,
        open_graph: Callable[[Path, Sequence[str], int], Session] = open_session,
    ):
        self.manifest = manifest
        self._decoder = open_graph(folder / DECODER, providers, threads)
        self._open_vision_graph = partial(open_graph, folder / VISION, providers, threads)
        self._vision: Session | None = None
        self._vision_lock = threading.Lock()
        vision = manifest.vision
        side = int(vision.num_position_embeddings**0.5)
        head_dim = vision.hidden_size // vision.num_heads

        @lru_cache(CACHED_GRIDS)
        def positions(height: int, width: int) -> PatchPositions:
            return patch_positions((height, width), vision.spatial_merge_size, head_dim, side)

        self._positions = positions

    @property
    def vision_is_open(self) -> bool:
        """Whether a picture has been seen yet: text alone does not load the vision encoder."""
        return self._vision is not None

    def visual_features(self, visuals: Sequence[Visual]) -> list[VisualFeatures]:
        """The features of each visual, in order; equal-sized pictures and frame pairs share a call."""
        by_grid: dict[tuple[int, int], list[int]] = {}
        for index, visual in enumerate(visuals):
            by_grid.setdefault(visual.grid[1:], []).append(index)
        found: dict[int, VisualFeatures] = {}
        for (height, width), members in by_grid.items():
            frames = [visuals[index].patches for index in members]
            features = self._run_vision(frames, self._positions(height, width))
            counts = [visuals[index].grid[0] * visuals[index].tokens_per_frame for index in members]
            stops = np.cumsum(counts)
            for index, count, stop in zip(members, counts, stops, strict=True):
                part = slice(stop - count, stop)
                found[index] = VisualFeatures(features.tokens[part], features.deepstack[:, part])
        return [found[index] for index in range(len(visuals))]

    def pooled(self, batch: Sequence[TokenSequence], features: Sequence[VisualFeatures]) -> np.ndarray:
        """The decoder over a right-padded batch: `embedding` float32 [B, D], or `logit` float32 [B].

        `features` are those of all visuals, in the order of the prompts and of the batch.
        """
        joined = self._joined(features)
        feeds = self._batch_feeds(batch)
        feeds["visual_index"] = np.argwhere(_padded([sequence.is_visual for sequence in batch], False))
        feeds["visual_tokens"], feeds["deepstack"] = joined.tokens, joined.deepstack
        output: np.ndarray = self._decoder.run([OUTPUTS[self.manifest.task]], feeds)[0]
        return output

    def _joined(self, features: Sequence[VisualFeatures]) -> VisualFeatures:
        """Several features as one, in order; also those of no visual at all."""
        size, layers = self.manifest.text.hidden_size, len(self.manifest.vision.deepstack_visual_indexes)
        tokens = [np.zeros((0, size), np.float32), *(each.tokens for each in features)]
        deepstack = [np.zeros((layers, 0, size), np.float32), *(each.deepstack for each in features)]
        return VisualFeatures(np.concatenate(tokens), np.concatenate(deepstack, axis=1))

    def _run_vision(self, frames: Sequence[np.ndarray], positions: PatchPositions) -> VisualFeatures:
        """All frames [F, P, patch] of one grid, a bounded number a call."""
        session = self._open_vision()
        rotary = positions.rotary
        step = max(1, PATCHES_PER_CALL // len(rotary.cos))
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
            }
            outputs = session.run(["tokens", "deepstack"], feeds)
            tokens.append(outputs[0])
            deepstack.append(outputs[1])
        return VisualFeatures(np.concatenate(tokens), np.concatenate(deepstack, axis=1))

    def _open_vision(self) -> Session:
        with self._vision_lock:
            if self._vision is None:
                self._vision = self._open_vision_graph()
            return self._vision

    def _batch_feeds(self, batch: Sequence[TokenSequence]) -> dict[str, np.ndarray]:
        """Ids, angles and lengths of a batch without a past (export/decoder.py says what each is)."""
        text = self.manifest.text
        rotaries = [
            text_rotary(token_positions(sequence.is_visual, sequence.blocks), text.rope_theta, text.mrope_section)
            for sequence in batch
        ]
        rotary = Rotary(_padded([each.cos for each in rotaries]), _padded([each.sin for each in rotaries]))
        lengths = np.array([len(sequence.input_ids) for sequence in batch], np.int32)
        longest = int(lengths.max())
        valid = np.arange(longest) < lengths[:, None]
        past = np.zeros((len(batch), text.num_key_value_heads, 0, text.head_dim), np.float32)
        feeds = {
            "input_ids": _padded([sequence.input_ids for sequence in batch], self.manifest.tokens.pad),
            "rotary_cos": rotary.cos,
            "rotary_sin": rotary.sin,
            "query_lengths": lengths,
            "last_position": lengths - 1,
            "capacity": np.array(longest, np.int32),
            "last_index": (lengths - 1).astype(np.int64).reshape(-1, 1, 1),
            "token_mask": valid.reshape(-1, longest, 1),
            "last_mask": valid.reshape(-1, 1, 1, longest),
        }
        for index in range(text.num_hidden_layers):
            feeds[f"past_key.{index}"] = feeds[f"past_value.{index}"] = past
        return feeds


def _padded(rows: Sequence[np.ndarray], fill: float = 0) -> np.ndarray:
    """Arrays of different first dimension stacked, padded on the right with `fill`."""
    longest = max(len(row) for row in rows)
    out = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _repeated(array: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(array, (count, *array.shape)))
