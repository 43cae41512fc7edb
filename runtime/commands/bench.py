"""`python -m runtime bench`: what this machine does with a package, to compare machines, precisions and versions."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import onnxruntime

from runtime.commands.options import Lines, add_command, add_resources
from runtime.commands.results import replacing, require_writable
from runtime.graphs.memory import Resident, peak_resident, resident
from runtime.graphs.package import open_package, require_positive
from runtime.graphs.session import default_threads
from runtime.manifest import Manifest
from runtime.planning.benchmark import CASES, QUICK, Rounds, run_cases
from runtime.planning.machine import machine_facts

ROUNDS, QUICK_ROUNDS = 5, 2
WIDTHS = "{:<24} {:>10} {:>10} {:>10} {:>9} {:>11} {:>10} {:>10}"
HEADER = ("case", "first ms", "median ms", "best ms", "tokens/s", "pictures/s", "anonymous", "mapped")


def add_bench(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "bench", bench, "seconds and memory of texts and pictures on this machine")
    command.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the same figures as JSON, each round's too")
    add_resources(command)


def bench(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """The machine, then a table that grows as cases are done. Raises InputError, PackageError."""
    output: Path | None = options.json
    if output:
        require_writable(output, "--json", (output.suffix,))  # found now rather than after minutes of work
    if options.batch_tokens is not None:
        require_positive("batch_tokens", options.batch_tokens)
    task = Manifest.read(options.package).task
    before = perf_counter()
    package = open_package(options.package, task, {}, None, options.threads, options.memory)
    opening, opened = perf_counter() - before, resident()
    facts = _facts(package.manifest, options)
    yield from (f"{name}: {value}" for name, value in facts.items())
    yield ""
    yield WIDTHS.format(*HEADER)
    yield WIDTHS.format("opening", f"{opening * 1e3:,.1f}", "", "", "", "", *_sizes(opened))
    done: list[Rounds] = []
    cases, rounds = (QUICK, QUICK_ROUNDS) if options.quick else (CASES, ROUNDS)
    for each in run_cases(package, cases, rounds, options.batch_tokens or package.memory.batch_tokens):
        done.append(each)
        yield _row(each)
    peak = peak_resident()
    yield f"\npeak of the process: {_size(peak)}"
    if output:
        content = {"facts": facts, "opening": _stage(opening, opened), "cases": _cases(done), "peak": peak}
        with replacing(output, "--json") as file:
            file.write(f"{json.dumps(content, indent=1)}\n".encode())


def _facts(manifest: Manifest, options: argparse.Namespace) -> dict[str, str]:
    return machine_facts() | {
        "threads": str(options.threads or default_threads()),
        "onnxruntime": onnxruntime.__version__,
        "package": f"{manifest.name}, {manifest.task}",
        "precision": manifest.precision,
        "fingerprint": manifest.fingerprint,
        "memory mode": options.memory,
    }


def _row(each: Rounds) -> str:
    case = each.case
    tokens = "" if case.picture else f"{case.rows * case.tokens / each.median:,.0f}"
    pictures = f"{1 / each.median:,.2f}" if case.picture else ""
    times = (f"{seconds * 1e3:,.1f}" for seconds in (each.first, each.median, each.best))
    return WIDTHS.format(case.name, *times, tokens, pictures, *_sizes(each.memory))


def _cases(done: list[Rounds]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.case.name,
            **asdict(each.case),
            "first": each.first,
            "median": each.median,
            "best": each.best,
            "seconds": each.seconds,
            "memory": each.memory and asdict(each.memory),
        }
        for each in done
    ]


def _stage(seconds: float, memory: Resident | None) -> dict[str, Any]:
    return {"seconds": seconds, "memory": memory and asdict(memory)}


def _sizes(memory: Resident | None) -> Iterator[str]:
    yield from ("-", "-") if memory is None else (_size(memory.anonymous), _size(memory.mapped))


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f} MB"
