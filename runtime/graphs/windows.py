"""The inputs of one request on their way to the decoder, a bounded number in memory at a time.

What cannot be computed together is tried one by one, so that an error is that of a single input.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.errors import NotFiniteError
from runtime.faults import Errors, blaming, noting
from runtime.graphs.batching import Batches
from runtime.graphs.decoder import Prompt
from runtime.graphs.model import Model
from runtime.graphs.vision import SeenVisuals, VisualFeatures
from runtime.media.image import Visual
from runtime.notice import warn_caller
from runtime.prompts.encode import TokenSequence
from runtime.vectors import require_finite

# A window is sorted by length before it is packed: the larger, the less padding, and the more pictures in memory.
WINDOW_CALLS, WINDOW_INPUTS = 8, 256
NO_OUTPUTS = np.empty((0, 1), np.float32)  # for rows of any width, as there are none


@dataclass(frozen=True, eq=False)
class Entry:
    """An input by its index and its place in messages, and what the graphs take of it."""

    index: int
    where: str
    sequence: TokenSequence
    visuals: tuple[Visual, ...]

    def __len__(self) -> int:
        return len(self.sequence.input_ids)


class Request:
    """One call of `process`: entries through vision encoder and decoder, what they share computed once.

    What is wrong with an entry is noted in `errors`, or raised without it: OutOfMemoryError, NotFiniteError.
    """

    def __init__(self, model: Model, batch_tokens: int, errors: Errors | None = None):
        self._seen = SeenVisuals(model.vision)
        self._batches = Batches(model.decoder, batch_tokens, model.preambles)
        self._batch_tokens, self._errors = batch_tokens, errors

    def features(self, visuals: Sequence[Visual], where: str) -> tuple[VisualFeatures, ...]:
        """The features of each visual of the input `where`, in order."""
        patches = sum(visual.patches.shape[0] * visual.patches.shape[1] for visual in visuals)
        needs = f"for {patches:,} patches of its pictures; pass a lower max_pixels or total_pixels, or memory='low'"
        with blaming(where, needs):
            return tuple(self._seen.features(visuals))

    def pooled(
        self, entries: Iterable[Entry | None], before: tuple[VisualFeatures, ...] = ()
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indexes, outputs float32 [B, D] or [B]) of the entries that went together, one decoder call after the other.

        `before`: features of visuals that stand in every prompt before those of its entry. None is an input that
        failed. While there are `errors`, each window ends with an empty group: no other may follow for a long time.
        """
        for window in windows(entries, WINDOW_CALLS * self._batch_tokens):
            prompts = [
                (replace(entry, visuals=()), Prompt(entry.sequence, (*before, *features)))
                for entry, features in self._with_features(window)
            ]
            window.clear()  # patches take more room than anything else and are not needed any more
            yield from self._outputs(prompts)
            if self._errors:
                yield [], NO_OUTPUTS

    def _with_features(self, entries: Sequence[Entry]) -> list[tuple[Entry, tuple[VisualFeatures, ...]]]:
        """The entries whose features can be had, with them."""
        if len(entries) > 1:
            try:
                features = iter(self._seen.features([visual for entry in entries for visual in entry.visuals]))
                return [(entry, tuple(next(features) for _ in entry.visuals)) for entry in entries]
            except (MemoryError, NotFiniteError) as error:
                _explain(error, len(entries))
        found = []
        for entry in entries:
            with noting(self._errors, entry.index):
                found.append((entry, self.features(entry.visuals, entry.where)))
        return found

    def _outputs(self, prompts: Sequence[tuple[Entry, Prompt]]) -> Iterator[tuple[list[int], np.ndarray]]:
        left = dict(enumerate(prompts))
        if len(prompts) > 1:
            try:
                for members, outputs in self._batches.pooled([prompt for _, prompt in prompts]):
                    require_finite(outputs, "the result")
                    yield [left.pop(member)[0].index for member in members], outputs
            except (MemoryError, NotFiniteError) as error:
                _explain(error, len(left))
        for entry, prompt in left.values():
            needs = (
                f"for its {len(entry):,} tokens, {self._batch_tokens:,} in a call; "
                "pass a smaller batch_tokens or max_length, or memory='low'"
            )
            with noting(self._errors, entry.index), blaming(entry.where, needs):
                ((_, outputs),) = self._batches.pooled([prompt])
                require_finite(outputs, "the result")
                yield [entry.index], outputs


def windows(entries: Iterable[Entry | None], tokens: int) -> Iterator[list[Entry]]:
    """Entries in order, as many together as have `tokens` tokens and come from no more than WINDOW_INPUTS inputs.

    None stands for an input that failed, which counts as one without tokens; a window may have no entry at all.
    """
    window: list[Entry] = []
    total = count = 0
    for entry in entries:
        if entry is not None:
            if window and total + len(entry) > tokens:
                yield window
                window, total, count = [], 0, 0
            window.append(entry)
            total += len(entry)
        count += 1
        if count == WINDOW_INPUTS:
            yield window
            window, total, count = [], 0, 0
    if count:
        yield window


def _explain(error: Exception, count: int) -> None:
    if isinstance(error, MemoryError):
        warn_caller(
            f"there is not enough memory for {count} inputs together, so they are computed one by one; "
            "pass a smaller batch_tokens, a lower max_pixels or memory='low'."
        )
