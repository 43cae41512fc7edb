"""How time and memory of a package grow: with length, batch, picture size and threads, as JSON for bench.scaling_plots.

    python -m bench.scaling INT8_PACKAGE scaling.json --vnni-gops 947 [--length 128 512 ...]

Every point is a process of its own, measured as in bench.memory (Linux only). `--vnni-gops` is the theoretical peak
of all cores together, 10⁹ operations a second: cores × clock × 128 on Zen 4 (one 512-bit VPDPBUSD a cycle), 256 on Zen
5 and on Intel's servers (two).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.memory import measure
from bench.operator_profile import operator_times
from bench.speed_cases import CASES, MERGE, Case, input_ids
from runtime.manifest import DECODER, Manifest
from runtime.planning.machine import machine_facts
from runtime.planning.weights import matrices_of, matrix_shape

LENGTHS = (128, 512, 2048, 8192, 32768)
BATCHES = (1, 2, 4, 8, 16)
PICTURES = (64, 256, 576, 1024, 1800)
ONE_THREAD = {"text": 2048, "batch": 4, "picture": 256}  # the largest size that is measured with one thread
PROFILED = ("text-4x128", "vision-1024")  # each in one call: a profile is of the last one
PRODUCT, PER_TOKEN = "MatMulIntegerToFloat", "int8-per-token"
ONCE = 30.0  # a stage that took this many seconds is not run again


@dataclass(frozen=True)
class Point:
    """The better of two runs in seconds, and the peaks of the process in bytes."""

    kind: str
    size: int
    threads: int
    seconds: float
    anonymous: int
    resident: int


def point(package: Path, kind: str, size: int, threads: int) -> Point:
    """Measure one size; what takes long is run once."""
    stages: list[tuple[str, object]] = [(kind, size)]
    found = measure(package, "normal", stages, threads=threads)[1:]
    if found[0].seconds < ONCE:
        found = measure(package, "normal", stages * 2, threads=threads)[1:]
    peaks = max(each.anonymous for each in found), max(each.resident for each in found)
    return Point(kind, size, threads, min(each.seconds for each in found), *peaks)


def points(package: Path, sizes: dict[str, list[int]]) -> Iterator[Point]:
    """All sizes with two threads, the smaller ones with one."""
    for kind, every in sizes.items():
        for threads in (2, 1):
            for size in every:
                if threads == 2 or size <= ONE_THREAD[kind]:
                    yield point(package, kind, size, threads)


def operators(package: Path, peak: float) -> dict[str, object]:
    """Milliseconds by operator of each profiled case, and what part of the peak its int8 products reach."""
    found: dict[str, object] = {}
    manifest = Manifest.read(package)
    for name in PROFILED:
        times = {graph: spent for graph, (spent, _) in operator_times(package, CASES[name], 2).items()}
        shares = {
            graph: product_operations(manifest, f"{graph}.onnx", CASES[name]) / milliseconds[PRODUCT] / 1e6 / peak
            for graph, milliseconds in times.items()
            if PRODUCT in milliseconds
        }
        found[name] = {"milliseconds": times, "share_of_peak": shares}
    return found


def product_operations(manifest: Manifest, graph: str, case: Case) -> float:
    """Multiplications and additions of the int8 products; the last layer's single token is left out."""
    total, last = 0.0, f".layers.{manifest.text.num_hidden_layers - 1}."
    tokens = len(input_ids(case)[0]) * case.batch
    for name, scheme in matrices_of(manifest, graph).items():
        if scheme != PER_TOKEN or (last in name and not name.endswith(("k_proj.weight", "v_proj.weight"))):
            continue
        visual = case.num_tokens if "merger" in name else case.num_tokens * MERGE**2
        size, width = matrix_shape(name, manifest.text, manifest.vision)
        total += 2.0 * size * width * (tokens if graph == DECODER else visual)
    return total


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--length", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--batch", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--picture", type=int, nargs="*", default=list(PICTURES))
    parser.add_argument("--vnni-gops", type=float, required=True)
    options = parser.parse_args()
    sizes = {"text": options.length, "batch": options.batch, "picture": options.picture}
    content: dict[str, Any] = {"machine": machine_facts(), "vnni_gops": options.vnni_gops}
    content["operators"] = operators(options.package, options.vnni_gops)
    content["points"] = []
    for each in points(options.package, sizes):
        content["points"].append(asdict(each))
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
