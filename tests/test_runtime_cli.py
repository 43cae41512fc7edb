"""`python -m runtime`: results on stdout, words on stderr, exit codes that tell the truth."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.commands.cli import main

Packages = Callable[[Shape, Task], Path]
Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def embedding(package: Packages) -> str:
    return str(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranking(package: Packages) -> str:
    return str(package(TINY_2B, "reranker"))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "鸭 é.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("embed", ...)`: exit code, stdout and stderr of the command."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def vectors(lines: str) -> np.ndarray:
    """The embeddings of JSON lines as float32 [N, D], their indexes checked."""
    parsed = [json.loads(line) for line in lines.splitlines()]
    assert [line["index"] for line in parsed] == list(range(len(parsed)))
    return np.array([line["embedding"] for line in parsed], np.float32)


def write_lines(path: Path, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_embed_prints_what_process_returns(run: Run, embedding: str, picture: str) -> None:
    code, out, err = run(
        "embed", embedding, "--image", picture, "--text", "a duck", "--text", "鸭", "--instruction", "Go"
    )
    items = [{"image": picture}, {"text": "a duck"}, {"text": "鸭"}]  # in the order they are given in
    rows = Qwen3VLEmbedder(embedding).process([{**item, "instruction": "Go"} for item in items])
    assert (code, err) == (0, "")
    assert out.isascii()  # a pipe on Windows is not UTF-8
    assert np.array_equal(vectors(out), rows)


def test_embed_passes_its_options_on(run: Run, embedding: str, picture: str) -> None:
    arguments = ["embed", embedding, "--image", picture, "--dimensions", 8, "--max-pixels", 4096, "--threads", 1]
    code, out, err = run(*arguments, "--no-normalize", "--batch-tokens", 64)
    embedder = Qwen3VLEmbedder(embedding, max_pixels=4096, threads=1)
    rows = embedder.process([{"image": picture}], normalize=False, dimensions=8)
    assert (code, err) == (0, "")
    assert np.array_equal(vectors(out), rows)


def test_embed_reads_and_writes_files(run: Run, embedding: str, picture: str, tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [{"text": "a", "instruction": "Own"}, {"image": picture}, {}]
    path = write_lines(tmp_path / "items.jsonl", items)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))  # as Windows may write it
    arguments = ["embed", embedding, "--input", path, "--instruction", "Shared", "--text", "last"]
    rows = Qwen3VLEmbedder(embedding).process(
        [{"instruction": "Shared", **item} for item in [*items, {"text": "last"}]]
    )
    for name in ("rows.npy", "rows.jsonl"):
        assert run(*arguments, "--output", tmp_path / name) == (0, "", "")
    loaded = np.load(tmp_path / "rows.npy")
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, rows)
    assert np.array_equal(vectors((tmp_path / "rows.jsonl").read_text(encoding="utf-8")), rows)
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert run("embed", embedding, "--input", empty) == (0, "", "")
    assert run("embed", embedding, "--input", empty, "--output", tmp_path / "empty.npy") == (0, "", "")
    assert np.load(tmp_path / "empty.npy").shape == (0, 64)


def test_skipping_leaves_null_and_exit_code_1(run: Run, embedding: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", [{"text": "a"}, {"image": str(tmp_path / "鸭.png")}, 3])
    code, out, err = run("embed", embedding, "--input", path, "--on-error", "skip")
    first, *others = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and out.isascii()
    assert len(first["embedding"]) == 64
    assert [(line["index"], line["embedding"]) for line in others] == [(1, None), (2, None)]
    assert others[0]["error"].startswith(f"inputs[1]: image: {tmp_path / '鸭.png'} does not exist")
    assert err == "".join(f"skipped: {line['error']}\n" for line in others)
    code, out, again = run("embed", embedding, "--input", path, "--on-error", "skip", "--output", tmp_path / "rows.npy")
    assert (code, out, again) == (1, "", err)
    assert np.isnan(np.load(tmp_path / "rows.npy")).all(axis=1).tolist() == [False, True, True]


def test_rerank_prints_what_process_returns(run: Run, reranking: str, picture: str, tmp_path: Path) -> None:
    reranker, documents = Qwen3VLReranker(reranking), [{"text": "a duck"}, {"image": picture}]
    request = {"query": {"text": "bird", "image": picture}, "documents": documents, "instruction": "Go"}
    arguments = ["rerank", reranking, "--query", "bird", "--query-image", picture, "--instruction", "Go"]
    code, out, err = run(*arguments, "--text", "a duck", "--image", picture)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"scores": reranker.process(request)}
    code, out, _ = run(*arguments, "--image", picture, "--text", "a duck")
    assert json.loads(out) == {"scores": reranker.process(request | {"documents": documents[::-1]})}
    requests: list[dict[str, Any]] = [request, {"query": {"text": "bird"}, "documents": documents[:1]}]
    code, out, err = run("rerank", reranking, "--input", write_lines(tmp_path / "requests.jsonl", requests))
    assert (code, err) == (0, "")
    assert [json.loads(line)["scores"] for line in out.splitlines()] == [reranker.process(each) for each in requests]


def test_rerank_skips_documents_and_requests(run: Run, reranking: str, tmp_path: Path) -> None:
    good = {"query": {"text": "a"}, "documents": [{"text": "b"}, {"txt": "c"}, {"text": "d"}]}
    path = write_lines(tmp_path / "requests.jsonl", [good, {"query": "a", "documents": []}, good])
    code, out, err = run("rerank", reranking, "--input", path, "--on-error", "skip")
    lines = [json.loads(line) for line in out.splitlines()]
    unknown = "documents[1] has the unknown key 'txt'; known keys are text, image, video."
    no_dict = "requests[1]: inputs: query is the string 'a', expected a dict with text, image or video."
    assert code == 1
    assert lines[0] == lines[2]
    assert lines[0]["scores"][1] is None and lines[0]["errors"] == {"1": unknown}
    assert lines[1] == {"scores": None, "error": no_dict}
    assert err.splitlines() == [
        f"skipped: requests[0]: {unknown}",
        f"skipped: {no_dict}",
        f"skipped: requests[2]: {unknown}",
    ]
    code, out, err = run("rerank", reranking, "--input", path)
    assert (code, out, err) == (2, "", f"error: requests[0]: {unknown}\n")


def test_check_says_that_a_package_is_whole(run: Run, embedding: str) -> None:
    code, out, err = run("check", embedding)
    assert (code, err) == (0, "")
    assert out.startswith(f"{embedding} is whole: tiny, embedding, fp32 for cpu, 6 files, ")


def test_errors_are_one_line_on_stderr(run: Run, embedding: str, reranking: str, tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.jsonl", tmp_path / "latin.jsonl"
    broken.write_text('{"text": "a"}\n{"text": "b"\n', encoding="utf-8")
    latin.write_bytes(b'{"text": "\xe9"}\n')
    text = ["--text", "a"]
    cases: list[tuple[list[object], str]] = [
        (["embed", embedding], "nothing to embed; give --text, --image, --video or --input."),
        (["embed", embedding, "--image", "gone.png"], "inputs[0]: image: gone.png does not exist; check the path ("),
        (["embed", tmp_path / "gone", *text], f"{tmp_path / 'gone'} does not exist; pass the folder"),
        (["embed", reranking, *text], f"{reranking} is a reranker package; open it with Qwen3VLReranker or"),
        (["embed", embedding, *text, "--dimensions", 65], "dimensions is 65, expected a whole number from 1 to 64."),
        (["embed", embedding, *text, "--batch-tokens", 0], "batch_tokens is 0, expected a positive whole number."),
        (["embed", embedding, *text, "--fps", -1], "fps is -1.0, expected a positive number."),
        (["embed", embedding, *text, "--output", "rows.txt"], "--output rows.txt ends in neither .npy nor .jsonl;"),
        (["embed", embedding, *text, "--output", "gone/rows.npy"], "--output "),
        (["embed", embedding, "--input", "gone.jsonl"], "--input gone.jsonl cannot be read (No such file"),
        (["embed", embedding, "--input", broken], f"{broken}, line 2: not JSON ("),
        (["embed", embedding, "--input", latin], f"--input {latin} is not UTF-8 (invalid continuation byte)"),
        (["rerank", reranking], "nothing to rerank; give --query or --query-image, and documents by --text,"),
        (["rerank", reranking, "--query", "a"], "nothing to rerank; give --query or --query-image, and documents by"),
        (["rerank", reranking, *text], "nothing to rerank; give --query or --query-image, and documents by --text,"),
        (["rerank", reranking, "--query", "a", "--video", "gone.mp4"], "documents[0]: video: gone.mp4 does not exist"),
        (["rerank", embedding, "--query", "a", *text], f"{embedding} is an embedding package; open it with"),
        (["check", tmp_path], f"{tmp_path} has no manifest.json; pass the folder that"),
    ]
    for arguments, message in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1 and err.endswith("\n")


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_too(run: Run, embedding: str) -> None:
    code, out, err = run("embed", embedding, "--text", "car.png")
    assert code == 0 and len(vectors(out)) == 1
    assert err == (
        "warning: inputs[0]: text 'car.png' looks like a picture's path or address and is embedded as text; "
        "pass it as 'image' to embed the picture.\n"
    )


def test_progress_is_shown_on_a_terminal_and_on_stderr_only(
    run: Run, embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal := Terminal())
        code, out, _ = run("embed", embedding, "--text", "a", "--text", "b")
    assert code == 0 and len(vectors(out)) == 2
    assert "2/2" in terminal.getvalue()


def test_the_console_reads_standard_input(embedding: str) -> None:
    lines = '{"text": "a"}\n{"text": "鸭"}\n'
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "embed", embedding, "--input", "-"],
        input=lines.encode(),
        capture_output=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    rows = Qwen3VLEmbedder(embedding).process([{"text": "a"}, {"text": "鸭"}])
    assert np.array_equal(vectors(done.stdout.decode("ascii")), rows)


def test_the_console_reports_errors_and_help() -> None:
    def console(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT)

    for module in ("export", "quant", "runtime"):
        shown = console(module, "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"usage: python -m {module} [-h]")
    failed = console("runtime", "check", "gone")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: gone does not exist; pass the folder that `python -m export --model ...` wrote.\n"
