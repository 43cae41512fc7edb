"""Memory of packages at 2B, a process of its own for each package and mode, as a Markdown table.

    python -m bench.memory INT8_PACKAGE INT4_PACKAGE

Anonymous memory is the process's own, mapped memory are pages of the package's files, which the system may drop and
read again. The driver reads both from /proc every 5 ms, so peaks shorter than that are missed; it runs on Linux only.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.graphs.memory import Resident, resident
from runtime.planning.machine import machine_facts

EVERY = 0.005
WARM_UP, TEXT, PICTURE = ("text", 16), ("text", 512), ("picture", 1800)


@dataclass(frozen=True)
class Stage:
    """What one stage left and took at its peak, bytes; seconds of the stage and since the process was started."""

    after: Resident
    anonymous: int
    resident: int
    seconds: float
    since_start: float
    vector: np.ndarray


class Peaks(threading.Thread):
    """Samples a process until it ends."""

    def __init__(self, process: int):
        super().__init__(daemon=True)
        self._process = process
        self.reset()

    def reset(self) -> None:
        """Begin a stage."""
        self.anonymous = self.resident = 0

    def run(self) -> None:
        """Sample."""
        while (found := resident(self._process)) is not None:
            self.anonymous = max(self.anonymous, found.anonymous)
            self.resident = max(self.resident, found.anonymous + found.mapped)
            time.sleep(EVERY)


def measure(
    package: Path,
    mode: str,
    stages: Sequence[tuple[str, object]],
    worker: str = "bench.memory_worker",
    threads: int | None = None,
) -> list[Stage]:
    """Every stage in one process, opening the package first (of which `vector` is empty)."""
    command = [sys.executable, "-W", "ignore", "-m", worker, str(time.time()), str(package), mode]
    command += [str(threads)] if threads else []
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    peaks = Peaks(child.pid)
    peaks.start()
    found = []
    for stage in [None, *stages]:
        if stage:
            peaks.reset()
            print(json.dumps(stage), file=child.stdin, flush=True)
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"the worker for {package} ended with status {child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        after = resident(child.pid)
        if after is None:
            raise SystemExit("this system does not tell anonymous from mapped memory; run this on Linux.")
        vector = np.array(answer.get("vector", []), np.float32)
        since_start = answer.get("since_start", answer["seconds"])
        found.append(Stage(after, peaks.anonymous, peaks.resident, answer["seconds"], since_start, vector))
        label = stage or ("open", 0)
        print(f"{package.name} {mode} {label}: {found[-1]}"[:160], file=sys.stderr)
    child.stdin.close()
    child.wait()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("int8", type=Path)
    parser.add_argument("int4", type=Path)
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine_facts().items()))
    print("\n| package | memory | stage | seconds | anonymous after | mapped after | anonymous peak | RSS peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    runs: dict[tuple[str, str], list[Stage]] = {}
    for name, package in (("int8", options.int8), ("int4", options.int4)):
        for mode in ("normal", "low"):
            stages = [WARM_UP, TEXT, PICTURE] if name == "int8" else [WARM_UP, TEXT]
            runs[name, mode] = measure(package, mode, stages)
            labels = ["open", *(f"{kind}, {tokens} tokens" for kind, tokens in stages)]
            for label, stage in zip(labels, runs[name, mode], strict=True):
                sizes = (stage.after.anonymous, stage.after.mapped, stage.anonymous, stage.resident)
                figures = " | ".join(f"{size / 1e9:.2f} GB" for size in sizes)
                print(f"| {name} | {mode} | {label} | {stage.seconds:.1f} | {figures} |", flush=True)
    normal, low, int4 = runs["int8", "normal"], runs["int8", "low"], runs["int4", "normal"]
    targets = [
        ("int8, normal: RSS of a text of 512 tokens", normal[2].resident / 1e9, 2.1, "GB"),
        ("int8, low: anonymous memory of it", low[2].anonymous / 1e9, 0.6, "GB"),
        ("int4, normal: RSS of it", int4[2].resident / 1e9, 1.6, "GB"),
        ("int8, normal: RSS that a picture of 1,800 tokens adds", _added(normal), 0.8, "GB"),
        ("int8, low: RSS that it adds", _added(low), 0.8, "GB"),
        ("int8, low: start of the process to the first vector (16 tokens)", low[1].since_start, 3.0, "s"),
    ]
    print("\n| figure | measured | target | |\n| --- | --- | --- | --- |")
    for name, value, target, unit in targets:
        print(f"| {name} | {value:.2f} {unit} | ≤ {target} {unit} | {'reached' if value <= target else 'missed'} |")
    print("\nLargest difference of a vector between the modes, and cosine:")
    for (name, mode), stages_ in runs.items():
        for one, other in zip(runs[name, "normal"][1:], stages_[1:], strict=True) if mode == "low" else ():
            a, b = one.vector, other.vector
            cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            print(f"- {name}: {np.abs(a - b).max():.1e} of {np.abs(a).max():.1f}, {cosine:.7f}")


def _added(stages: list[Stage]) -> float:
    """GB that the picture adds to what the text left."""
    before = stages[2].after
    return (stages[3].resident - before.anonymous - before.mapped) / 1e9


if __name__ == "__main__":
    main()
