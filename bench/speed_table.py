"""Times of several peers as ratios to the first, round by round, in a Markdown table."""

from dataclasses import dataclass
from statistics import median

import numpy as np

from bench.speed_cases import CASES


@dataclass(frozen=True)
class Timing:
    """Seconds of each round; `cosine` of the output to the group's first peer, mean over rows."""

    case: str
    peer: str
    seconds: list[float]
    cosine: float


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the rows of two [N, D]."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).mean())


def format_table(timings: list[Timing], base: str) -> str:
    """Ratios say how many times faster `base` is: the median and the best of the rounds, and that of the best times."""
    times = {(timing.case, timing.peer): timing.seconds for timing in timings}
    header = ("case", "peer", "median s", "best s", "tokens/s (best)",
              f"{base} is faster ×: median", "best round", "best times", "cosine")  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for timing in timings:
        ours = times[timing.case, base]
        ratios = [theirs / mine for theirs, mine in zip(timing.seconds, ours, strict=True)]
        best = min(timing.seconds)
        cells = (
            timing.case,
            timing.peer,
            f"{median(timing.seconds):.3f}",
            f"{best:.3f}",
            f"{CASES[timing.case].num_tokens / best:.0f}",
            f"{median(ratios):.2f}",
            f"{max(ratios):.2f}",
            f"{best / min(ours):.2f}",
            f"{timing.cosine:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
