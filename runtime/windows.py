"""The inputs of one request on their way to the decoder, a bounded number in memory at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.batching import Batches
from runtime.decoder import Prompt
from runtime.encode import TokenSequence
from runtime.image import Visual
from runtime.model import Model
from runtime.vision import SeenVisuals, VisualFeatures

# A window is sorted by length before it is packed: the larger, the less padding, and the more pictures in memory.
WINDOW_CALLS, WINDOW_INPUTS = 8, 256


@dataclass(frozen=True, eq=False)
class Entry:
    """An input by its index, and what the graphs take of it."""

    index: int
    sequence: TokenSequence
    visuals: tuple[Visual, ...]

    def __len__(self) -> int:
        return len(self.sequence.input_ids)


class Request:
    """One call of `process`: entries through vision encoder and decoder, what they share computed once."""

    def __init__(self, model: Model, batch_tokens: int):
        self._seen = SeenVisuals(model.vision)
        self._batches = Batches(model.decoder, batch_tokens)
        self._window_tokens = WINDOW_CALLS * batch_tokens

    def features(self, visuals: Sequence[Visual]) -> tuple[VisualFeatures, ...]:
        """The features of each visual, in order."""
        return tuple(self._seen.features(visuals))

    def pooled(
        self, entries: Iterable[Entry], before: tuple[VisualFeatures, ...] = ()
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indexes, outputs float32 [B, D] or [B]) of the entries that went together, one decoder call after the other.

        `before`: features of visuals that stand in every prompt before those of its entry.
        """
        for window in windows(entries, self._window_tokens):
            indexes, prompts = [entry.index for entry in window], self._prompts(window, before)
            window.clear()  # patches take more room than anything else and are not needed any more
            for members, outputs in self._batches.pooled(prompts):
                yield [indexes[member] for member in members], outputs

    def _prompts(self, entries: Sequence[Entry], before: tuple[VisualFeatures, ...]) -> list[Prompt]:
        features = iter(self.features([visual for entry in entries for visual in entry.visuals]))
        return [Prompt(entry.sequence, (*before, *(next(features) for _ in entry.visuals))) for entry in entries]


def windows(entries: Iterable[Entry], tokens: int) -> Iterator[list[Entry]]:
    """Entries in order, as many together as have `tokens` tokens and no more than WINDOW_INPUTS; at least one."""
    window: list[Entry] = []
    total = 0
    for entry in entries:
        if window and (total + len(entry) > tokens or len(window) == WINDOW_INPUTS):
            yield window
            window, total = [], 0
        window.append(entry)
        total += len(entry)
    if window:
        yield window
