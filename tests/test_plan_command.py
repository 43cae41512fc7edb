"""`python -m runtime plan`: the table, the JSON, what fits into an amount of memory, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_shapes import TINY_2B
from video_files import write_video

from runtime.commands.cli import main, parser
from runtime.commands.options import constructor_options
from runtime.graphs.memory import MemoryMode, Resident, memory_policy
from runtime.graphs.package import open_encoder
from runtime.manifest import Manifest
from runtime.planning.plan import Planner, Setting
from runtime.planning.workload import picture_workload

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(package: Callable[..., Path]) -> Path:
    return package(TINY_2B, "embedding", "int8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(FOLDER, "--tokens", 8)`: exit code, stdout and stderr of the command."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main(["plan", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def facts(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_defaults_are_two_texts_and_a_picture_at_the_pixel_budget(run: Run, folder: Path) -> None:
    found = facts(run, folder, "--max-pixels", 100 * 1024)
    short, long, picture = found["inputs"]
    assert (short["name"], long["name"], picture["name"]) == (
        "text of 32 tokens",
        "text of 1,024 tokens",
        "picture 320x320",
    )
    assert picture["visual_tokens"] == 100 and picture["tokens"] > 100
    assert long["tokens"] - short["tokens"] == 1024 - 32
    assert all(each["seconds"] > 0 and each["note"] == "" for each in found["inputs"])
    assert found["package"]["precision"] == "int8" and found["memory"] == "normal"
    measured = found["measured"]
    assert measured["opening"] > 0 and measured["opening_vision"] > 0 and measured["timing"] > 0


def test_a_text_does_not_open_the_vision_encoder(run: Run, folder: Path) -> None:
    measured = facts(run, folder, "--tokens", 64)["measured"]
    assert measured["opening_vision"] is None and measured["pace"]["vision"] is None


@pytest.mark.parametrize("mode", ["normal", "low"])
def test_the_parts_add_up_to_the_peak(run: Run, folder: Path, mode: str) -> None:
    found = facts(run, folder, "--tokens", 2000, "--image", "640x480", "--memory", mode)
    assert found["memory"] == mode and found["batch_tokens"] == 512
    for each in found["inputs"]:
        anonymous, mapped = (sum(part[kind] for part in each["parts"]) for kind in ("anonymous", "mapped"))
        assert each["resident"] == anonymous + mapped
        assert each["anonymous"] >= anonymous and each["mapped"] >= mapped
        names = {part["name"] for part in each["parts"]}
        assert {"process, libraries, tokenizer", "weights of the decoder"} <= names


def test_what_the_runtime_cuts_and_refuses_is_said(run: Run, folder: Path) -> None:
    arguments = ["--tokens", "9000", "--video", "30s@1280x720", "--image", "9000x20"]
    lenient = facts(run, folder, *arguments)["inputs"]
    cut, shape, video = facts(run, folder, *arguments, "--strict-video")["inputs"]
    assert cut["tokens"] == 8192 and cut["seconds"] > 0
    assert cut["note"].startswith("text of 9,000 tokens: 9,") and cut["note"].endswith(" of the text are cut.")
    assert shape["note"].startswith("refused, picture 9000x20: 9000x20 pixels have an aspect ratio of 450")
    assert (video["visual_tokens"], video["seconds"], video["resident"]) == (10_800, None, None)
    assert "10800 of them visual, and cutting it to max_length 8192 would cut visual tokens" in video["note"]
    assert lenient[2]["visual_tokens"] < 8192 and lenient[2]["note"] == "" and lenient[2]["seconds"] > 0


def test_embedding_with_strict_video_refuses_what_the_plan_refuses(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """64 frames of 512x512 are 8,192 tokens at the reference's budget, and fit at the default one."""
    clip = str(write_video(tmp_path / "clip.mp4", (512, 512), 64, 1))
    (default,) = facts(run, folder, "--video", "64s@512x512")["inputs"]
    (strict,) = facts(run, folder, "--video", "64s@512x512", "--strict-video")["inputs"]
    assert strict["visual_tokens"] == 8192 > default["visual_tokens"] + 512 and strict["seconds"] is None
    assert main(["embed", str(folder), "--video", clip, "--strict-video"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert " tokens, 8192 of them visual, and cutting it to max_length 8192 would cut" in captured.err
    options = parser().parse_args(["rerank", str(folder), "--query", "a", "--video", clip, "--strict-video"])
    assert constructor_options(options)["strict_video_budget"] is True


def planner(folder: Path, memory: MemoryMode = "normal") -> Planner:
    """Of a process of 150 MB, whatever pytest's has."""
    manifest = Manifest.read(folder)
    encoder, policy = open_encoder(folder, manifest, {}), memory_policy(memory, manifest.matrices)
    setting = Setting(folder, manifest, memory, encoder, policy, ["CPUExecutionProvider"], 1, policy.batch_tokens)
    return Planner(setting, Resident(100_000_000, 50_000_000))


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_the_largest_picture_that_fits_is_found(folder: Path, memory: MemoryMode) -> None:
    found = planner(folder, memory)
    encoder = open_encoder(folder, Manifest.read(folder), {"max_pixels": 10**8})
    previous = 0
    for ram in (180_000_000, 220_000_000, 260_000_000):
        fit = found.largest_picture(ram)
        side = 32 * int(fit.visual_tokens**0.5)
        square, larger = (found.plan(picture_workload(f"{edge}x{edge}", encoder)).phase for edge in (side, side + 64))
        assert square is not None and larger is not None
        assert square.resident <= fit.resident <= ram < larger.resident
        assert fit.max_pixels == 1024 * fit.visual_tokens > previous
        previous = fit.max_pixels
    most = found.largest_picture(10**15)
    smallest = found.plan(picture_workload("64x64", encoder)).outline
    assert most.visual_tokens == 8192 - (smallest.tokens - smallest.visual_tokens)
    none = found.largest_picture(1)
    assert (none.visual_tokens, none.ram) == (4, 1) and none.resident > 150_000_000


def test_a_picture_for_the_memory_is_told_beside_the_inputs(run: Run, folder: Path) -> None:
    found = facts(run, folder, "--tokens", 8, "--ram", "1000GB")
    assert found["picture_for_ram"]["ram"] == 10**12 and found["inputs"][0]["fits"] is True
    assert found["picture_for_ram"]["visual_tokens"] > 8000 and found["measured"]["opening_vision"] is None


def test_too_little_memory_is_one_sentence_and_exit_code_1(run: Run, folder: Path) -> None:
    code, out, err = run(folder, "--ram", "50MB", "--json")
    assert code == 1
    # What it takes includes the tests' own process, which may be large.
    assert re.match(
        re.escape(f"{folder}: not even the smallest picture fits into 0.05 GB, it takes ") + r"\d\.\d\d GB", err
    )
    assert err.count("\n") == 1
    found = json.loads(out)
    assert found["measured"] is None  # nothing that does not fit is opened
    assert [(each["fits"], each["seconds"]) for each in found["inputs"]] == [(False, None)] * 3


def test_the_table_says_it_all_to_a_reader(run: Run, folder: Path) -> None:
    code, out, err = run(folder, "--tokens", "4x32", "--tokens", "9000", "--image", "256x256", "--ram", "20 gib")
    assert (code, err) == (0, "") and out.isascii()
    lines = out.splitlines()
    assert lines[0].startswith("tiny: embedding, int8, memory normal, ")
    assert lines[1].split() == ["input", "visual", "tokens", "anonymous", "mapped", "resident", "seconds"]
    assert [line[:24].strip() for line in lines[2:5]] == [
        "4 texts of 32 tokens",
        "text of 9,000 tokens",
        "picture 256x256",
    ]
    assert lines[4].split()[2:4] == ["64", "86"]
    assert any(line.startswith("text of 9,000 tokens: ") for line in lines)
    assert any(line.startswith("peak of text of 9,000 tokens, in the phase decoder:") for line in lines)
    assert any(line.endswith("MB  keys and values") for line in lines)
    assert any(line.startswith("  vision: ") and " ms a patch, attention at " in line for line in lines)
    assert lines[-1].startswith("--max-pixels ")


def test_a_budget_beyond_all_pictures_plans_the_largest_one(run: Run, folder: Path) -> None:
    code, out, _ = run(folder, "--max-pixels", 10**23, "--ram", "1MB")
    assert code == 1 and "\npicture 13377x13377 " in out


def test_arguments_that_make_no_sense_are_named(run: Run, folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[object], str]] = [
        ([folder, "--tokens", "many"], "--tokens is 'many', expected a number of tokens"),
        ([folder, "--image", "large"], "--image is 'large', expected the size of a picture"),
        ([folder, "--video", "long"], "--video is 'long', expected seconds and size"),
        ([folder, "--threads", 0], "threads is 0, expected a positive whole number."),
        ([folder, "--threads", 5000], "threads is 5000, expected at most 1,024; leave it out for all CPUs there are."),
        ([folder, "--batch-tokens", 0], "batch_tokens is 0, expected a positive whole number."),
        ([folder, "--max-pixels", 1], "max_pixels 1 is below min_pixels 4096; swap or widen them."),
        ([tmp_path], f"{tmp_path} has no manifest.json; pass the folder that"),
    ]
    for arguments, message in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_a_package_for_another_target_is_measured_not_planned(run: Run, cuda_package: Callable[..., Path]) -> None:
    folder = cuda_package(TINY_2B, "embedding")
    code, out, err = run(folder)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {folder} was made for cuda, a plan knows calls and memory of the CPU only; "
        f"measure instead: python -m runtime bench {folder}\n"
    )


@pytest.mark.parametrize("amount", ["4", "GB", "-1GB", "0GB", "4TB", "many"])
def test_what_is_no_amount_of_memory_is_refused(run: Run, folder: Path, amount: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(folder, f"--ram={amount}")
    assert caught.value.code == 2
