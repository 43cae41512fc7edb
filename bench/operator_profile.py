"""Where a package's time goes: onnxruntime's own profile, summed by operator type."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import onnxruntime

from bench.speed_cases import Case
from bench.speed_package import open_model, prepare
from runtime.graphs.graph import SessionGraph
from runtime.graphs.session import open_session

Times = dict[str, tuple[dict[str, float], Counter[str]]]


def operator_times(folder: Path, case: Case, threads: int) -> Times:
    """Of the second run of `case`, for vision and decoder: milliseconds and number of nodes by operator."""
    opened: list[tuple[str, onnxruntime.InferenceSession]] = []
    with TemporaryDirectory(ignore_cleanup_errors=True) as written:

        class Profiling(onnxruntime.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = str(Path(written) / "profile")

        def open_profiling(path: Path, providers: Sequence[str], count: int) -> SessionGraph:
            # The runtime's own options, and nothing but profiling beside them.
            with mock.patch("onnxruntime.SessionOptions", Profiling):
                session = open_session(path, providers, count)
            opened.append((path.stem, session))
            return SessionGraph(session)

        run = prepare(open_model(folder, threads, open_profiling), case)
        run()
        run()
        profiles = {name: Path(session.end_profiling()) for name, session in opened}
        times = {name: last_run(json.loads(path.read_text(encoding="utf-8"))) for name, path in profiles.items()}
    if not any(nodes for _, nodes in times.values()):
        raise RuntimeError(f"onnxruntime profiled no run of {folder}; the sessions were not opened for profiling.")
    return times


def operator_shares(folder: Path, case: Case, threads: int) -> str:
    """A Markdown table of `operator_times` with the share of each operator."""
    times = operator_times(folder, case, threads)
    lines = [f"| {case.name} | operator | nodes | ms | share |", "| --- | --- | --- | --- | --- |"]
    for name, (milliseconds, nodes) in times.items():
        total = sum(milliseconds.values())
        for operator, spent in sorted(milliseconds.items(), key=lambda item: -item[1]):
            lines.append(f"| {name} | {operator} | {nodes[operator]} | {spent:.1f} | {spent / total:.1%} |")
        if total:
            lines.append(f"| {name} | all | {sum(nodes.values())} | {total:.1f} | |")
    return "\n".join(lines)


def last_run(events: list[dict[str, Any]]) -> tuple[dict[str, float], Counter[str]]:
    """Milliseconds and node count of each operator type in a profile's last run; empty without a run."""
    milliseconds: defaultdict[str, float] = defaultdict(float)
    nodes: Counter[str] = Counter()
    starts = [event["ts"] for event in events if event.get("name") == "model_run"]
    for event in events:
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        operator = event["args"]["op_name"] if is_kernel else ""
        # A Scan's time is that of the operators in it, which have events of their own.
        if starts and is_kernel and operator != "Scan" and event["ts"] >= starts[-1]:
            milliseconds[operator] += event["dur"] / 1e3  # from microseconds
            nodes[operator] += 1
    return milliseconds, nodes
