"""What `python -m runtime plan` predicts against what the same inputs take, a process of its own for each, as Markdown.

    python -m bench.plan PACKAGE [--memory low] [--tokens 32 --image 512x512 ...]

Each process first runs a short text and, before a picture or video, a small picture: the plan is about a process that
is at work. Memory is sampled as in bench.memory, on Linux only. The clip is 8 s of 640x360.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from tokenizers import Tokenizer

from bench.memory import Stage, measure
from runtime.manifest import TOKENIZER
from runtime.planning.machine import machine_facts
from runtime.planning.workload import VIDEO_FPS

TEXTS = ("32", "128", "4x128", "1024", "8192")
PICTURES = ("512x512", "1024x1024", "1440x1280")  # 256, 1,024 and 1,800 visual tokens
CLIP_SECONDS, CLIP_SIZE = 8, (640, 360)
CLIP = f"{CLIP_SECONDS}s@{CLIP_SIZE[0]}x{CLIP_SIZE[1]}"
WARM_TEXT, WARM_PICTURE = ("texts", ["a red car in the rain"]), ("picture", [128, 128])


@dataclass(frozen=True)
class Compared:
    """One figure of one case: predicted and measured, in seconds or bytes."""

    case: str
    figure: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted / self.measured - 1


def predicted(package: Path, mode: str, case: tuple[str, str]) -> dict[str, Any]:
    """The plan's facts about the case."""
    command = [sys.executable, "-m", "runtime", "plan", str(package), "--memory", mode, "--json"]
    done = subprocess.run([*command, f"--{case[0]}", case[1]], stdout=subprocess.PIPE, text=True, check=True)
    (found,) = json.loads(done.stdout)["inputs"]
    return dict(found)


def measured(package: Path, mode: str, case: tuple[str, str], clip: Path) -> Stage:
    """The case in a process that is warm."""
    kind, size = case
    stages: list[tuple[str, object]] = [WARM_TEXT]
    if kind == "tokens":
        stages.append(("texts", texts(package, size)))
    elif kind == "image":
        stages += [WARM_PICTURE, ("picture", [int(side) for side in size.split("x")])]
    else:
        stages += [WARM_PICTURE, ("video", str(clip))]
    return measure(package, mode, stages, "bench.plan_worker")[-1]


def texts(package: Path, size: str) -> list[str]:
    """`128` or `4x128` random words of one token each: a text of one word would touch one row of the token table."""
    count, _, tokens = size.rpartition("x")
    vocabulary = Tokenizer.from_file(str(package / TOKENIZER)).get_vocab()
    known = sorted(token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]+", token))
    chosen = np.random.default_rng(0).choice(known, size=(int(count or 1), int(tokens)))
    return [" ".join(each) for each in chosen]


def write_clip(path: Path) -> None:
    """A moving gradient with noise, MPEG-4."""
    noise, (width, height) = np.random.default_rng(0), CLIP_SIZE
    slope = np.add.outer(np.arange(height), np.arange(width))[:, :, None]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=VIDEO_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(CLIP_SECONDS * VIDEO_FPS):
            pixels = (slope + 3 * index + noise.integers(20, size=(height, width, 3))) % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Predict, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--memory", choices=("normal", "low"), default="normal")
    parser.add_argument("--tokens", action="append", default=[], help=f"instead of {', '.join(TEXTS)}")
    parser.add_argument("--image", action="append", default=[], help=f"instead of {', '.join(PICTURES)}")
    parser.add_argument("--no-video", action="store_true")
    options = parser.parse_args()
    chosen = bool(options.tokens or options.image)
    cases = [("tokens", size) for size in (options.tokens if chosen else TEXTS)]
    cases += [("image", size) for size in (options.image if chosen else PICTURES)]
    cases += [] if options.no_video else [("video", CLIP)]
    print(", ".join(f"{key} {value}" for key, value in machine_facts().items()))
    print("\n| case | figure | predicted | measured | error |\n| --- | --- | --- | --- | --- |")
    every: list[Compared] = []
    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip)
        for case in cases:
            plan = predicted(options.package, options.memory, case)  # just before, as a shared machine changes its pace
            stage = measured(options.package, options.memory, case, clip)
            figures = (("seconds", stage.seconds), ("anonymous", stage.anonymous), ("resident", stage.resident))
            for figure, value in figures:
                every.append(Compared(plan["name"], figure, plan[figure], value))
                print(_row(every[-1]), flush=True)
    print("\n| figure | median error | worst error |\n| --- | --- | --- |")
    for figure in ("seconds", "anonymous", "resident"):
        errors = [abs(each.error) for each in every if each.figure == figure]
        print(f"| {figure} | {median(errors):.0%} | {max(errors):.0%} |")


def _row(each: Compared) -> str:
    unit, scale = ("s", 1.0) if each.figure == "seconds" else ("GB", 1e9)
    values = (f"{value / scale:.3f} {unit}" for value in (each.predicted, each.measured))
    return f"| {each.case} | {each.figure} | {' | '.join(values)} | {each.error:+.0%} |"


if __name__ == "__main__":
    main()
