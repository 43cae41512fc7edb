"""How fast this machine runs this package: the real graphs timed on a few small inputs, and a cost fitted to them.

The cost of a call is `call` + `unit` · tokens (or patches) + `operation` · operations of attention. Products and
attention run at different rates, so sizes are timed that differ in their share of attention.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from runtime.graphs.decoder import Decoder, Prompt, Span
from runtime.graphs.past import KINDS, Past
from runtime.graphs.vision import SeenVisuals, VisionEncoder
from runtime.manifest import Manifest
from runtime.media.image import PatchGrid, image_visual
from runtime.planning.work import (
    DecoderCall,
    VisionCall,
    Work,
    decoder_attention,
    decoder_calls,
    vision_attention,
    vision_calls,
)
from runtime.prompts.encode import TokenSequence

Clock = Callable[[], float]
Run = Callable[[], object]
SHORT, PAST = 32, 2048  # tokens
LONGEST_CALL = 0.5  # seconds that the longer decoder call should take at most
SMALL, MIDDLE, LARGE = 8, 16, (24, 32, 48, 64)  # patches a side of the square pictures
LONGEST_PICTURE = 2.0  # seconds that the largest picture should take at most
GROWTH = 1.5  # of a picture's seconds a patch from the middle to the largest
LEAST_ROUNDS, MOST_ROUNDS, ENOUGH = 2, 5, 1.5  # more rounds until they took this many seconds
TICK = 1e-9  # seconds: a coarse clock may see none pass


@dataclass(frozen=True)
class Point:
    """The best seconds of a call of so many tokens or patches and operations of attention."""

    units: int
    operations: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Seconds of a call, of each token or patch in it, and of each operation of attention."""

    call: float
    unit: float
    operation: float

    def seconds(self, units: int, operations: float) -> float:
        """Of one call."""
        return self.call + self.unit * units + self.operation * operations


@dataclass(frozen=True)
class Pace:
    """The costs of both graphs, `vision` None where no picture was asked for."""

    decoder: Cost
    vision: Cost | None = None

    def seconds(self, work: Work, manifest: Manifest, batch_tokens: int) -> float:
        """Of `process`, the reading of files left out."""
        total = 0.0
        for call in decoder_calls(work, batch_tokens):
            total += self.decoder.seconds(call.rows * call.tokens, decoder_attention(manifest.text, call))
        for seen in vision_calls(work):
            if self.vision is None:
                raise AssertionError("a picture was asked for and the vision encoder not timed")
            total += self.vision.seconds(seen.frames * seen.patches, vision_attention(manifest.vision, seen))
        return total


def fit(points: Sequence[Point]) -> Cost:
    """The cost nearest to the points by relative error, no part of it negative."""
    rows = np.array([[1, point.units, point.operations] for point in points])
    seconds = np.array([point.seconds for point in points])
    # Few unknowns: every choice of parts that are not zero is tried.
    best, least = np.zeros(3), np.inf
    for size in (1, 2, 3):
        for chosen in map(list, combinations(range(3), size)):
            scale = np.abs(rows[:, chosen]).max(axis=0)
            found = np.linalg.lstsq(rows[:, chosen] / scale / seconds[:, None], np.ones(len(points)), rcond=None)[0]
            solution = np.zeros(3)
            solution[chosen] = found / scale
            error = float(np.square(rows @ solution / seconds - 1).sum())
            if solution.min() >= 0 and error < least - 1e-12:
                best, least = solution, error
    return Cost(*map(float, best))


def decoder_cost(decoder: Decoder, manifest: Manifest, batch_tokens: int, clock: Clock = time.perf_counter) -> Cost:
    """Time a short and a longer text, and the longer one after a past, which adds attention and nothing else."""

    def run(call: DecoderCall) -> Run:
        span = text_span(call.past + call.tokens, call.past, manifest)
        past = _filled_past(decoder, call.past, call.tokens) if call.past else None
        return lambda: decoder.pooled([span], past)

    short = max(1, min(SHORT, batch_tokens // 2))
    first = run(DecoderCall(1, short))
    first()  # pages are touched, buffers taken
    most = min(batch_tokens, short * LONGEST_CALL / _seconds(first, clock))
    longer = max([2 * short, *(short << step for step in range(2, 8) if short << step <= most)])
    calls = [DecoderCall(1, short), DecoderCall(1, longer), DecoderCall(1, longer, PAST)]
    seconds = _best([run(call) for call in calls], clock)
    operations = [decoder_attention(manifest.text, call) for call in calls]
    return fit([Point(call.tokens, *each) for call, *each in zip(calls, operations, seconds, strict=True)])


def vision_cost(encoder: VisionEncoder, manifest: Manifest, patch: PatchGrid, clock: Clock = time.perf_counter) -> Cost:
    """Time square pictures of three sizes from pixels to features; the graph is opened first, unless it is."""

    def run(side: int) -> Run:
        pixels = side * patch.patch_size
        noise = np.random.default_rng(0).integers(256, size=(pixels, pixels, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        return lambda: SeenVisuals(encoder).features([image_visual(picture, patch.factor**2, pixels**2, patch)])

    middle = run(MIDDLE)
    middle()  # the graph is opened, pages are touched
    expected = GROWTH * _seconds(middle, clock) / MIDDLE**2
    largest = max([LARGE[0], *(side for side in LARGE if expected * side**2 <= LONGEST_PICTURE)])
    sides = (SMALL, MIDDLE, largest)
    seconds = _best([run(side) for side in sides], clock)
    operations = [vision_attention(manifest.vision, VisionCall(1, side**2)) for side in sides]
    return fit([Point(side**2, *each) for side, *each in zip(sides, operations, seconds, strict=True)])


def _best(runs: Sequence[Run], clock: Clock) -> list[float]:
    """The shortest seconds of each; in turns, so that a machine that changes its pace does so to all of them."""
    seconds = [[_seconds(run, clock) for run in runs] for _ in range(LEAST_ROUNDS)]
    while len(seconds) < MOST_ROUNDS and sum(map(sum, seconds)) < ENOUGH:
        seconds.append([_seconds(run, clock) for run in runs])
    return [min(each) for each in zip(*seconds, strict=True)]


def _seconds(run: Run, clock: Clock) -> float:
    before = clock()
    run()
    return max(TICK, clock() - before)


def text_span(length: int, start: int, manifest: Manifest) -> Span:
    """The tokens from `start` on of a text of random ones."""
    ids = np.random.default_rng(0).integers(min(manifest.tokens.special), size=length)
    return Span(Prompt(TokenSequence(ids, np.zeros(length, np.bool_), ())), start, length)


def _filled_past(decoder: Decoder, length: int, room: int) -> Past:
    """A past whose memory is really there: pages that were never written would all be one."""
    past = decoder.empty_past(length + room)
    for kind in KINDS:
        for buffer in past.buffers[kind]:
            buffer.fill(0.5)
    rows, heads, _, width = past.last["key"].shape
    return Past(length, past.buffers, {kind: np.full((rows, heads, length, width), 0.5, np.float32) for kind in KINDS})
