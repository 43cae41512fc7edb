"""`python -m runtime search`: what it prints and draws, and a sentence that helps for each bad use."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import Qwen3VLEmbedder, Qwen3VLReranker, Searcher, rerank
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six texts and two pictures."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"text <number> {number}")
    for name, seed in (("x.png", 0), ("y.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def index(embedding: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    index = tmp_path_factory.mktemp("made") / "index"
    Searcher(Qwen3VLEmbedder(embedding, max_pixels=65536), index).add(folder)
    return index


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(...)`: exit code, stdout and stderr of the command."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main(["search", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_an_index_is_made_and_kept_up_to_date(run: Run, embedding: str, folder: Path, tmp_path: Path) -> None:
    arguments = (embedding, "--index", tmp_path / "index")
    made = run(*arguments, "--add", folder, "--store", "int8", "--dimensions", 32)
    assert made == (0, "", f"{folder}: 8 embedded, 0 unchanged, 0 forgotten, 0 skipped\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.png").write_bytes(b"x")
    code, out, err = run(*arguments, "--add", folder, "--add", tmp_path / "more", "--text", "a", "--top", 3)
    assert code == 1 and len(out.splitlines()) == 3
    assert err.splitlines() == [
        f"{folder}: 0 embedded, 8 unchanged, 0 forgotten, 0 skipped",
        f"{tmp_path / 'more'}: 0 embedded, 0 unchanged, 0 forgotten, 1 skipped",
        f"skipped: {tmp_path / 'more' / 'broken.png'} is not a picture that Pillow can read; "
        "pass a PNG, JPEG, WebP, GIF, BMP or TIFF.",
    ]
    assert run(*arguments, "--forget", folder) == (0, "", f"{folder}: 8 forgotten\n")
    code, out, err = run(*arguments, "--text", "a")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'index'} holds no documents; give it a folder with --add.\n"


def test_it_prints_what_the_classes_return(
    run: Run, embedding: str, reranking: str, index: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --max-pixels the budget is that of the index."""
    searcher = Searcher(Qwen3VLEmbedder(embedding, max_pixels=65536), index)
    query = {"text": "number", "image": str(folder / "x.png"), "instruction": "Find."}
    arguments = (embedding, "--index", index, "--text", "number", "--image", folder / "x.png", "--instruction", "Find.")
    hits = searcher.search(query, 8)
    lines = [f"{n}  cosine {hit.cosine:.4f}  {hit.path}" for n, hit in enumerate(hits, 1)]
    assert run(*arguments) == (0, "\n".join(lines) + "\n", "")
    monkeypatch.chdir(folder)
    found = rerank(Qwen3VLReranker(reranking), query, hits[:5])[:3]
    lines = [
        f"{n}  score {hit.score:.4f}  cosine {hit.cosine:.4f}  {Path(hit.path).name}" for n, hit in enumerate(found, 1)
    ]
    reranked = (*arguments, "--reranker", reranking, "--recall", 5, "--top", 3)
    assert run(*reranked) == (0, "\n".join(lines) + "\n", "")
    code, out, _ = run(*reranked, "--json")
    assert code == 0 and [json.loads(line) for line in out.splitlines()] == [
        {"query": 0, "rank": n, "score": pytest.approx(hit.score), "cosine": pytest.approx(hit.cosine)}
        | {"path": Path(hit.path).name, "line": None}
        for n, hit in enumerate(found, 1)
    ]


def test_many_queries(run: Run, embedding: str, reranking: str, index: Path, tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('"number 3"\n\n{"text": "number 4", "instruction": "Own."}\n')
    arguments = (embedding, "--index", index, "--queries", path, "--top", 2, "--reranker", reranking)
    code, out, err = run(*arguments)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(line["query"], line["rank"]) for line in lines] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    alone = run(embedding, "--index", index, "--text", "number 3", "--top", 2, "--reranker", reranking, "--json")
    assert [json.loads(line) for line in alone[1].splitlines()] == [pytest.approx(line) for line in lines[:2]]
    path.write_text('"a"\n{"txt": "b"}\n')
    assert run(*arguments)[2].startswith(f"error: {path}, line 2: query has the unknown key 'txt';")
    path.write_text('"a"\n3\n')
    assert run(*arguments)[2] == f'error: {path}, line 2 is neither a text nor a dict; write {{"text": ...}}.\n'
    for blank in ('""', '{"text": " "}', "{}", '{"image": [], "instruction": "Find."}'):
        path.write_text(f'"a"\n{blank}\n')
        assert run(*arguments)[::2] == (2, f"error: {path}, line 2: the query is empty; write what to search for.\n")


def test_what_was_found_for_the_first_queries_is_not_lost(
    run: Run, embedding: str, index: Path, tmp_path: Path
) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('"number 3"\n{"image": "gone.png"}\n')
    code, out, err = run(embedding, "--index", index, "--queries", path, "--top", 2)
    assert code == 2 and err.startswith(f"error: {path}, line 2: ")
    assert [(line["query"], line["rank"]) for line in map(json.loads, out.splitlines())] == [(0, 1), (0, 2)]


def test_what_was_skipped_is_said_however_it_ends(run: Run, embedding: str, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "empty.txt").write_text(" ")
    code, out, err = run(embedding, "--index", tmp_path / "index", "--add", tmp_path / "bad", "--text", "a")
    assert (code, out) == (2, "")
    assert err.splitlines()[1:] == [
        f"skipped: {tmp_path / 'bad' / 'empty.txt'} holds no text; write some or remove it.",
        f"error: {tmp_path / 'index'} holds no documents; nothing that --add found could be used.",
    ]


def test_a_sheet_and_a_page(run: Run, embedding: str, index: Path, tmp_path: Path, folder: Path) -> None:
    sheet, page = tmp_path / "out.png", tmp_path / "out.html"
    page.write_text("old")
    query = ("--text", "<b>number</b>", "--image", folder / "y.png")
    code, out, err = run(embedding, "--index", index, *query, "--sheet", sheet, "--html", page)
    assert (code, err) == (0, "") and len(out.splitlines()) == 8
    with Image.open(sheet) as drawn:
        assert drawn.width == 2 * 24 + 5 * 240 + 4 * 16 and drawn.height > 2 * 240
        assert len(drawn.convert("P").getcolors() or []) > 50
    content = page.read_text(encoding="utf-8")
    assert content.count("<figure>") == 8 and content.count("<img ") == 3
    assert "<b>" not in content and "&lt;b&gt;number" in content and "text &lt;number&gt; 3" in content
    assert "8 of 8 documents" in content


def test_errors_are_one_sentence(
    run: Run, embedding: str, reranking: str, index: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    new, text = tmp_path / "new", ("--text", "a")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((index,), "nothing to do; give --add FOLDER to index, or --text, --image or --queries to search."),
        ((new, *text), f"{new} holds no index; make one with --add FOLDER, or check the path."),
        ((folder, *text), f"{folder} holds no index; make one with --add FOLDER, or check the path."),
        ((tmp_path / "file", *text), f"{tmp_path / 'file'} holds no index; make one with --add FOLDER, or check"),
        ((tmp_path / "file", "--add", folder), f"{tmp_path / 'file'} is a file; give --index a folder."),
        ((folder, "--add", folder), f"{folder} holds other things ('0.txt') and no index; give --index a new or"),
        ((embedding, "--add", folder), f"{embedding} holds other things ("),
        ((new, "--add", "gone"), "--add gone does not exist; pass the folder that holds the pictures and texts."),
        ((new, "--add", tmp_path / "file"), f"--add {tmp_path / 'file'} is a file; pass the folder that holds"),
        ((new, "--forget", folder), f"{new} holds no index; make one with --add FOLDER, or check the path."),
        ((index, "--add", folder, "--sheet", "a.png"), "--sheet needs a query; give --text, --image or --queries, or"),
        ((index, "--add", folder, "--reranker", reranking), "--reranker needs a query; give --text, --image or"),
        ((index, *text, "--queries", "a.jsonl"), "--queries stands for many queries and --text or --image for one;"),
        ((index, "--queries", "a", "--html", "a.html"), "--sheet and --html show one query; give --text or --image"),
        ((index, "--queries", "gone"), "--queries gone cannot be read (No such file or directory); check the path."),
        ((index, "--text", " "), "--text is empty; write what to search for."),
        ((index, *text, "--top", 0), "--top is 0, expected a positive whole number."),
        ((index, *text, "--reranker", reranking, "--top", 200), "--top 200 is more than --recall 100, which are"),
        ((index, *text, "--reranker", embedding), f"{embedding} is an embedding package; open it with Qwen3VLEmbed"),
        ((index, *text, "--reranker", "gone"), "gone does not exist; pass the folder that `python -m export"),
        ((index, *text, "--sheet", "a.png", "--top", "501"), "--top is 501, and --sheet and --html show at most 500;"),
        ((index, *text, "--sheet", "a.jpg"), "--sheet a.jpg does not end in .png; rename it."),
        ((index, *text, "--html", "gone/a.html"), "--html gone/a.html: there is no folder gone; create it or choose"),
        ((index, "--image", "gone.png"), "--image gone.png does not exist; check the path."),
        ((new, "--add", folder, "--add", "gone"), "--add gone does not exist; pass the folder that holds the"),
        ((new, "--add", ""), "--add is empty; name a folder."),
        ((index, "--forget", " "), "--forget is empty; name a folder."),
        ((new, "--add", folder, "--forget", folder), f"--forget {folder}: {new} holds no index yet; leave it out."),
        ((index, *text, "--recall", 5), "--recall says how many documents are reranked; add --reranker, or use --top."),
        ((index, *text, "--store", "int8"), f"{index} was made with something else, and vectors of both cannot be"),
        ((index, *text, "--max-pixels", 4096), f"{index} was made with something else, and vectors of both cannot"),
        ((new, "--add", folder, "--dimensions", 65), "dimensions is 65, expected a whole number from 1 to 64."),
    ]
    for (place, *arguments), message in cases:
        code, out, err = run(embedding, "--index", place, *arguments)
        assert (code, out) == (2, ""), message
        assert err.startswith(f"error: {message}"), err
        assert err.count("\n") == 1 and err.endswith(".\n")
    code, _, err = run(reranking, "--index", index, *text)
    assert code == 2 and err.startswith(f"error: {reranking} is a reranker package; open it with")
    assert not new.exists()


def test_one_process_writes_at_a_time(run: Run, embedding: str, folder: Path, tmp_path: Path) -> None:
    arguments = (embedding, "--index", tmp_path / "index")
    assert run(*arguments, "--add", folder)[0] == 0
    with FileLock(tmp_path / "index" / "lock"):
        assert run(*arguments, "--add", folder) == (
            *(2, ""),
            f"error: another process is writing to {tmp_path / 'index'}; wait for it, or give --index another "
            "folder.\n",
        )
        assert run(*arguments, "--text", "a")[0] == 0


def test_what_is_not_installed_is_found_first(
    run: Run, embedding: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.compiled", None)
    assert run(embedding, "--index", tmp_path / "index", "--add", folder) == (
        *(2, ""),
        'error: searching needs usearch, which is not installed; run pip install "qwen3vl-edge[search]".\n',
    )
    assert not (tmp_path / "index").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("kill", ["SIGINT", "SIGKILL"])
def test_ended_while_it_embeds(run: Run, embedding: str, tmp_path: Path, kill: str) -> None:
    folder, index, count = tmp_path / "documents", tmp_path / "index", 3000
    folder.mkdir()
    (folder / "lines.jsonl").write_text("".join(f'"text number {number}"\n' for number in range(count)))
    command = [sys.executable, "-m", "runtime", "search", embedding, "--index", index, "--add", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
    log = index / "entries.0.log"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(getattr(signal, kill))
    _, words = process.communicate()
    if kill == "SIGINT":
        assert (process.returncode, words.decode()) == (
            130,
            "error: interrupted; what was embedded until now is in the index, and the same command goes on from "
            "there.\n",
        )
    else:
        assert process.returncode == -signal.SIGKILL
    (folder / "lines.jsonl").write_text("".join(f'"text number {number}"\n' for number in range(32)))
    code, _, err = run(embedding, "--index", index, "--add", folder)
    embedded = int(err.split(": ")[1].split(" ")[0])
    assert code == 0 and embedded <= 16, "the first batch was kept"
    assert run(embedding, "--index", index, "--text", "text number 3", "--top", 1)[1].endswith("lines.jsonl:4\n")
