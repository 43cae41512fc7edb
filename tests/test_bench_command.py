"""`python -m runtime bench`: a table and a JSON file of the same figures, for both tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoint_shapes import TINY_2B
from qwen_tokenizer import Task

from runtime.commands.cli import main
from runtime.graphs.memory import resident
from runtime.graphs.package import Package, open_package
from runtime.manifest import Manifest
from runtime.planning.benchmark import CASES, QUICK, Case, picture_run, run_cases, text_run

TASKS: tuple[Task, ...] = ("embedding", "reranker")


@pytest.fixture(params=TASKS)
def opened(request: pytest.FixtureRequest, package: Callable[..., Path]) -> Package:
    return open_package(package(TINY_2B, request.param), request.param, {}, None, 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_table_and_the_file_hold_the_same_figures(
    package: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, task: Task
) -> None:
    folder, output = package(TINY_2B, task), tmp_path / "machine.json"
    assert main(["bench", str(folder), "--quick", "--json", str(output), "--threads", "1", "--memory", "low"]) == 0
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    facts, lines = found["facts"], captured.out.splitlines()
    assert captured.err == ""
    assert facts["threads"] == "1" and facts["onnxruntime"] == onnxruntime.__version__
    assert facts["fingerprint"] == Manifest.read(folder).fingerprint and facts["memory mode"] == "low"
    assert [f"{name}: {value}" for name, value in facts.items()] == lines[: len(facts)]
    assert [each["name"] for each in found["cases"]] == [case.name for case in QUICK]
    for each, line in zip(found["cases"], lines[-2 - len(QUICK) :], strict=False):
        assert line.startswith(each["name"])
        assert f"{each['median'] * 1e3:,.1f}" in line and f"{each['best'] * 1e3:,.1f}" in line
        assert each["best"] == min(each["seconds"]) and each["first"] > 0
        assert (each["memory"] is None) == (resident() is None)
    assert found["opening"]["seconds"] > 0
    assert lines[-1].startswith("peak of the process: ")


def test_a_text_case_is_that_many_rows_and_tokens(opened: Package) -> None:
    outputs = text_run(opened, Case(4, 24), 1024)()
    assert outputs.shape == ((4, 64) if opened.manifest.task == "embedding" else (4,))
    assert len(np.unique(outputs.round(6), axis=0)) == 4  # four different texts, nothing is shared between them


def test_a_picture_case_has_that_many_visual_tokens(opened: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    features = opened.model.vision.features
    monkeypatch.setattr(
        opened.model.vision, "features", lambda visuals: seen.extend(v.num_tokens for v in visuals) or features(visuals)
    )
    run = picture_run(opened, Case(1, 64, picture=True), 1024)
    assert np.isfinite(run()).all() and np.isfinite(run()).all()
    assert seen == [64, 64]  # each run anew


def test_every_round_is_kept(opened: Package) -> None:
    (rounds,) = run_cases(opened, [Case(1, 8)], 4, 1024)
    assert len(rounds.seconds) == 4 and rounds.best <= rounds.median
    assert {case.tokens for case in CASES if case.picture} == {256, 1024}


def test_where_the_file_cannot_go_is_said_before_the_work(
    package: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(package(TINY_2B, "embedding"))
    assert main(["bench", folder, "--quick", "--json", str(tmp_path / "gone" / "machine.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --json {tmp_path / 'gone' / 'machine.json'}: there is no folder")
    assert main(["bench", folder, "--quick", "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "", "nothing was measured"
    assert (
        captured.err == f"error: --json {tmp_path} is there and is no file that can be replaced; choose another name.\n"
    )
    assert main(["bench", folder, "--batch-tokens", "0"]) == 2
    assert capsys.readouterr().err == "error: batch_tokens is 0, expected a positive whole number.\n"
