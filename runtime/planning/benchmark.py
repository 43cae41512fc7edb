"""What this machine does with one package: seconds of a few cases, and the memory that each of them leaves."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

from runtime.graphs.decoder import Prompt
from runtime.graphs.memory import Resident, resident
from runtime.graphs.package import Package
from runtime.graphs.windows import Entry, Request
from runtime.manifest import Manifest
from runtime.planning.workload import prompt_of
from runtime.prompts.encode import TokenSequence
from runtime.prompts.inputs import Content

ENOUGH = 20.0  # a case is run no more after so many seconds, but twice at least


@dataclass(frozen=True)
class Case:
    """`rows` texts of `tokens` tokens each through the decoder, or with `picture` one picture of as many visual tokens.

    A picture goes end to end: from the bytes of a JPEG file to the vector or score, in the shortest prompt.
    """

    rows: int
    tokens: int
    picture: bool = False

    @property
    def name(self) -> str:
        """For tables and JSON."""
        return f"picture of {self.tokens:,} tokens" if self.picture else f"text {self.rows} x {self.tokens:,}"


@dataclass(frozen=True)
class Rounds:
    """How long a case took in each round, and the memory after the last one, None where the system does not tell.

    `first`: seconds of a run before all rounds; for the first picture it opens the vision encoder.
    """

    case: Case
    first: float
    seconds: tuple[float, ...]
    memory: Resident | None

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)

    @property
    def best(self) -> float:
        """Seconds."""
        return min(self.seconds)


QUICK = (Case(1, 32), Case(1, 128), Case(1, 256, picture=True))
CASES = (Case(1, 32), Case(1, 128), Case(4, 128), Case(1, 1024), Case(1, 256, True), Case(1, 1024, True))


def run_cases(package: Package, cases: Sequence[Case], rounds: int, batch_tokens: int) -> Iterator[Rounds]:
    """Each case once to warm up, then up to `rounds` times."""
    for case in cases:
        make = picture_run if case.picture else text_run
        run = make(package, case, batch_tokens)
        first, *seconds = _timed(run), _timed(run), _timed(run)
        while len(seconds) < rounds and sum(seconds) < ENOUGH:
            seconds.append(_timed(run))
        yield Rounds(case, first, tuple(seconds), resident())


def text_run(package: Package, case: Case, batch_tokens: int) -> Callable[[], np.ndarray]:
    """Random tokens through the decoder, float32 [rows, D] or [rows]."""
    ids = _random_ids(package.manifest, (case.rows, case.tokens))
    prompts = [Prompt(TokenSequence(row, np.zeros(case.tokens, np.bool_), ())) for row in ids]
    return lambda: package.model.pooled(prompts, batch_tokens)


def picture_run(package: Package, case: Case, batch_tokens: int) -> Callable[[], np.ndarray]:
    """A square picture from JPEG to its vector or logit, float32 [1, D] or [1]."""
    side = round(case.tokens**0.5) * package.encoder.patch.factor
    pixels = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    content = Content(images=(file.getvalue(),))

    def run() -> np.ndarray:
        loaded = package.encoder.load(content, None, None, "picture")
        sequence = prompt_of(loaded, package.encoder, package.manifest.task, "picture")
        request = Request(package.model, batch_tokens)
        ((_, outputs),) = request.pooled([Entry(0, "picture", sequence, loaded.visuals)])
        return outputs

    return run


def _timed(run: Callable[[], object]) -> float:
    before = perf_counter()
    run()
    return perf_counter() - before


def _random_ids(manifest: Manifest, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(min(manifest.tokens.special), size=shape)
