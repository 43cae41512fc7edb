"""Many prompts through the decoder: packed by length under a token budget, a common beginning computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.graphs.decoder import Decoder, Prompt, Span
from runtime.graphs.past import KeptPasts, Past
from runtime.graphs.target import TARGETS, Target

# A common beginning is computed apart where it saves at least this many tokens.
WORTH_SHARING = 96
# A preamble of at most so many tokens is kept from call to call (at 2B 229 kB a token), and used by prompts of at most
# so many times its length: longer ones save little, and the past has room for all of a prompt.
LONGEST_PREAMBLE, PREAMBLE_SHARE = 64, 4


@dataclass(frozen=True, eq=False)
class Beginning:
    """The tokens that prompts have in common, and their past in one row."""

    prompt: Prompt
    past: Past


class Batches:
    """The prompts of one request, given in one or several parts; `batch_tokens` go through the decoder in a call.

    Longer prompts go alone, in pieces of at most that many tokens. What all prompts so far begin with is kept as a
    past, and the preamble of short ones in `preambles`, for the requests that follow.
    """

    def __init__(self, decoder: Decoder, batch_tokens: int, preambles: KeptPasts | None = None):
        self._decoder, self._batch_tokens, self._target = decoder, batch_tokens, decoder.target
        self._beginning: Beginning | None = None
        self._preambles = preambles or KeptPasts()

    def pooled(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indexes, outputs float32 [B, D] or [B]) of one decoder call after the other, every prompt once."""
        past = self._common_past(prompts)
        start = 0 if past is None else past.length
        spans = [Span(prompt, start, len(prompt)) for prompt in prompts]
        rows: Past | None = None
        for pack in packs([len(span) for span in spans], self._batch_tokens, start, self._target):
            members = [spans[index] for index in pack]
            longest = self._target.padded(max(map(len, members)))
            if longest > self._batch_tokens:
                yield pack, self._in_chunks(members[0], past)
            elif past is None:
                yield pack, self._decoder.pooled(members)
            else:
                # Never onto the past itself: it may be a view of a longer beginning that later parts continue.
                if rows is None or rows.rows < len(members) or rows.capacity < start + longest:
                    rows = past.repeated(len(members), start + longest)
                yield pack, self._decoder.pooled(members, rows.first(len(members)))

    def _common_past(self, prompts: Sequence[Prompt]) -> Past | None:
        """The past of what all prompts begin with, None where computing it apart does not pay."""
        known, shortest = self._beginning, min(map(len, prompts)) - 1  # a prompt is never all beginning
        if known is not None:
            shared = common_length([known.prompt, *prompts], min(known.past.length, shortest))
            return known.past.cut(shared) if shared * len(prompts) > self._calls_cost(prompts) else None
        shared = common_length(prompts, shortest)
        others, preamble = len(prompts) - 1, self._preamble(prompts, shared)
        pays = shared * others >= WORTH_SHARING + self._calls_cost(prompts)
        # Where little is common behind a kept preamble, computing it once more with that costs more than it saves.
        if preamble and (not pays or (shared - preamble) * others < self._target.call_cost + preamble):
            ids = prompts[0].sequence.input_ids[:preamble]
            kept = self._preambles.get(ids, lambda: self._first(prompts[0], preamble))
            if kept is not None:
                return kept
        if not pays:
            return None
        past = self._first(prompts[0], shared)
        self._beginning = Beginning(prompts[0], past)
        return past

    def _preamble(self, prompts: Sequence[Prompt], shared: int) -> int:
        """The length of a preamble that is worth keeping for these prompts, which begin with `shared` equal tokens."""
        length = prompts[0].sequence.preamble
        short = length <= min(shared, LONGEST_PREAMBLE, self._batch_tokens)
        worth = short and max(map(len, prompts)) <= PREAMBLE_SHARE * length
        return length if worth and self._target.past_tokens else 0

    def _first(self, prompt: Prompt, length: int) -> Past:
        """The past of a prompt's first tokens."""
        past = self._decoder.empty_past(self._target.capacity(length))
        return self._extended(self._pieces(Span(prompt, 0, length)), past)

    def _calls_cost(self, prompts: Sequence[Prompt]) -> int:
        """What a past costs the prompts, in tokens: a call each where rows after a past do not go together."""
        return 0 if self._target.past_tokens else len(prompts) * self._target.call_cost

    def _in_chunks(self, span: Span, past: Past | None) -> np.ndarray:
        """The output of one long span, [1, ...]."""
        capacity = self._target.capacity(span.stop)
        own = self._decoder.empty_past(capacity) if past is None else past.repeated(1, capacity)
        *before, last = self._pieces(span)
        return self._decoder.pooled([last], self._extended(before, own))

    def _extended(self, spans: Sequence[Span], past: Past) -> Past:
        """`past` with these spans behind it, one a call."""
        for span in spans:
            past = self._decoder.extend(span, past)
        return past

    def _pieces(self, span: Span) -> list[Span]:
        return [Span(span.prompt, *each) for each in pieces(span.start, span.stop, self._batch_tokens, self._target)]


def pieces(start: int, stop: int, most: int, target: Target = TARGETS["cpu"]) -> list[tuple[int, int]]:
    """(start, stop) of as few pieces as can be, at most `most` tokens each and about equal."""
    length = stop - start
    size = min(most, target.padded(-(-length // -(-length // most))))
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def packs(lengths: Sequence[int], budget: int, past: int = 0, target: Target = TARGETS["cpu"]) -> list[list[int]]:
    """Indexes of prompts of these lengths (tokens) that go together, each pack at most `budget` tokens with padding.

    Of all ways to cut the prompts in order of length, the one with the fewest tokens computed, the target's cost of a
    call included. Rows that continue a past of `past` tokens keep to its `past_tokens`; a pack has at least a row.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    cost, first = [0.0], [0]  # of the best cut of the first n, and where its last pack starts
    for stop in range(1, len(order) + 1):
        longest = target.padded(lengths[order[stop - 1]])
        room = min(budget // longest, target.past_tokens // (past + longest) if past else budget)
        starts = range(max(0, stop - max(1, room)), stop)
        best = min(starts, key=lambda start: cost[start] + target.call_cost + (stop - start) * longest)
        cost.append(cost[best] + target.call_cost + (stop - best) * longest)
        first.append(best)
    found, stop = [], len(order)
    while stop:
        found.append(order[first[stop] : stop])
        stop = first[stop]
    return found


def common_length(prompts: Sequence[Prompt], limit: int) -> int:
    """How many tokens, at most `limit`, all prompts begin with: the same ids, and the same features for visual ones."""
    one = prompts[0]
    starts = one.visual_starts
    for other in prompts[1:]:
        equal = one.sequence.input_ids[:limit] == other.sequence.input_ids[:limit]
        limit = len(equal) if equal.all() else int(np.argmin(equal))
        for start, mine, theirs in zip(starts, one.features, other.features, strict=False):
            if start < limit and mine is not theirs:
                limit = start
    return limit
