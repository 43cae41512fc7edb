"""Folders into an index: what is embedded, what is kept, what is forgotten, and what is left out."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import InputError, Qwen3VLEmbedder, Searcher, SearchIndexError
from runtime.search.documents import Document, find_files
from runtime.search.indexing import BATCH, Changes
from runtime.search.paths import spelled
from runtime.search.searcher import read_again

Packages = Callable[[Shape, Task], Path]
DEPTH = 1100  # folders, more than Python calls itself


class Counting(Qwen3VLEmbedder):
    """An embedder that keeps what it was asked for."""

    calls: list[list[Any]]

    def process(self, inputs: Sequence[object], *arguments: Any, **options: Any) -> np.ndarray:
        self.calls.append(list(inputs))
        return super().process(inputs, *arguments, **options)

    def asked(self) -> int:
        """How many inputs since the last time."""
        calls, self.calls = self.calls, []
        return sum(map(len, calls))


@pytest.fixture(scope="module")
def model(package: Packages) -> Counting:
    return Counting(package(TINY_2B, "embedding"))


@pytest.fixture
def embedder(model: Counting) -> Counting:
    model.calls = []
    return model


@pytest.fixture
def searcher(embedder: Counting, tmp_path: Path) -> Searcher:
    return Searcher(embedder, tmp_path / "index")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and two texts."""
    folder = tmp_path / "documents"
    (folder / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(["a.png", "deep/b.JPG", "deep/er/c.webp"]):
        picture(folder / name, number)
    (folder / "note.txt").write_text("a duck")
    (folder / "deep" / "note.md").write_bytes(b"\xef\xbb\xbf" + "鸭".encode())
    return folder


def picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)).save(path)


def counts(changes: Changes) -> tuple[int, int, int, int]:
    return changes.embedded, changes.unchanged, changes.forgotten, len(changes.skipped)


def indexed(searcher: Searcher, folder: Path) -> set[str]:
    """The files of the index, from the folder."""
    return {os.path.relpath(path, folder).replace(os.sep, "/") for path in searcher.index.entries.files}


def vector_of(searcher: Searcher, path: Path) -> np.ndarray:
    (part,) = searcher.index.entries.files[str(path)].parts
    return searcher.index.vectors()[part.row]


def test_a_document_has_the_vector_that_process_gives(searcher: Searcher, folder: Path) -> None:
    assert counts(searcher.add(folder)) == (5, 0, 0, 0)
    assert indexed(searcher, folder) == {"a.png", "deep/b.JPG", "deep/er/c.webp", "note.txt", "deep/note.md"}
    expected = searcher.embedder.process(
        [{"image": str(folder / "deep/b.JPG")}, {"text": "a duck"}, {"text": "鸭"}],
    )
    for path, row in zip(["deep/b.JPG", "note.txt", "deep/note.md"], expected, strict=True):
        np.testing.assert_allclose(vector_of(searcher, folder / path), row, atol=1e-6)


def test_only_what_is_new_or_changed_is_embedded(searcher: Searcher, embedder: Counting, folder: Path) -> None:
    searcher.add(folder)
    assert embedder.asked() == 5
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, of: opened.append(str(of[0])) if watching and event == "open" else None)
    assert counts(searcher.add(folder)) == (0, 5, 0, 0)
    watching.clear()
    assert embedder.asked() == 0
    assert not any(str(folder) in path for path in opened), "an unchanged folder is not read again"
    picture(folder / "a.png", 7)
    (folder / "new.txt").write_text("a goose")
    before = vector_of(searcher, folder / "a.png")
    assert counts(searcher.add(folder)) == (2, 4, 0, 0)
    assert embedder.asked() == 2
    assert not np.allclose(vector_of(searcher, folder / "a.png"), before, atol=1e-3)


def test_what_moves_is_not_embedded_again(searcher: Searcher, embedder: Counting, folder: Path) -> None:
    searcher.add(folder)
    embedder.asked()
    os.utime(folder / "a.png", (1, 1))
    (folder / "deep").rename(folder / "moved")
    (folder / "copy.txt").write_text("a duck")
    assert counts(searcher.add(folder)) == (0, 6, 3, 0)
    assert embedder.asked() == 0
    assert indexed(searcher, folder) == {
        *("a.png", "moved/b.JPG", "moved/er/c.webp", "note.txt", "moved/note.md", "copy.txt"),
    }
    assert counts(searcher.add(folder)) == (0, 6, 0, 0)
    found = searcher.search({"text": "a duck"}, 1)
    assert [hit.name.rpartition(os.sep)[2] for hit in found] == ["copy.txt", "note.txt"], "equal contents go together"


def test_what_is_gone_is_forgotten(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "documents of mine"  # begins with the other one's name
    other.mkdir()
    (other / "kept.txt").write_text("kept")
    searcher.add(folder)
    searcher.add(other)
    (folder / "a.png").unlink()
    (folder / "note.txt").write_bytes(b"\xff\xfe\xff")
    changes = searcher.add(folder)
    assert counts(changes) == (0, 3, 2, 1)
    assert changes.skipped == [f"{folder / 'note.txt'} is not UTF-8 (invalid start byte); convert it."]
    assert indexed(searcher, folder) == {
        "deep/b.JPG",
        "deep/er/c.webp",
        "deep/note.md",
        "../documents of mine/kept.txt",
    }
    assert counts(searcher.forget(other)) == (0, 0, 1, 0)
    assert counts(searcher.forget(folder / "deep" / "note.md")) == (0, 0, 1, 0)
    assert len(searcher.search({"text": "kept"}, 10)) == 2
    with pytest.raises(InputError, match="the index has nothing of it; check the path"):
        searcher.forget(other)


def test_a_folder_that_is_suddenly_empty_is_not_forgotten(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    """As where a disk is not mounted: hours of work must not go with it."""
    searcher.add(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as missing:
        searcher.add(folder)
    assert str(missing.value) == (f"--add {folder} does not exist; pass the folder that holds the pictures and texts.")
    folder.mkdir()
    with pytest.raises(SearchIndexError) as caught:
        searcher.add(folder)
    assert str(caught.value) == (
        f"{folder} holds no pictures or texts now, and the index has 5 files of it; mount what is missing, or pass "
        f"--forget {folder} if they are gone."
    )
    assert len(searcher.search({"text": "a"}, 10)) == 5


def test_what_cannot_be_used_is_skipped_and_said_each_time(searcher: Searcher, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "empty.gif").touch()
    (folder / "blank.md").write_text(" \n")
    (folder / "pad.txt").write_text("<|image_pad|>")
    (folder / "wide.png").symlink_to(folder / "gone.png")
    for embedded, unchanged in ((5, 0), (0, 5)):
        changes = searcher.add(folder)
        assert counts(changes) == (embedded, unchanged, 0, 5)
        places = [
            next(n for n, each in enumerate(changes.skipped) if name in each) for name in ("broken.png", "pad.txt")
        ]
        assert changes.skipped[places[0]].startswith(f"{folder / 'broken.png'} is ")
        assert changes.skipped[places[1]].startswith(f"{folder / 'pad.txt'}: text contains the special token")
        assert f"{folder / 'empty.gif'} has zero bytes; replace the file" in "".join(changes.skipped)
        assert f"{folder / 'blank.md'} holds no text; write some or remove it." in changes.skipped
        assert f"{folder / 'wide.png'} cannot be read (No such file or directory);" in "".join(changes.skipped)
    picture(folder / "broken.png", 9)
    assert counts(searcher.add(folder)) == (1, 5, 0, 4)


def test_hidden_things_links_and_other_files_are_left_out(searcher: Searcher, folder: Path) -> None:
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("a")
    (folder / "._a.png").write_bytes(b"x")
    (folder / "program.py").write_text("a")
    (folder / "loop").symlink_to(folder)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.txt")
    assert counts(searcher.add(folder)) == (5, 0, 0, 0)


def test_lines_are_documents(searcher: Searcher, embedder: Counting, folder: Path) -> None:
    lines: list[Any] = ["a goose", {"text": "both", "image": "a.png"}, {"image": "a.png"}, 3, {"txt": "x"}]
    lines += [{"image": "gone.png"}, {"text": "x", "instruction": "Own."}, "last"]
    path = folder / "lines.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    changes = searcher.add(folder)
    assert embedder.asked() == 9, "the picture that is a line and a file once, and what has an unknown key"
    assert counts(changes) == (8, 1, 0, 4)
    assert [each.partition(";")[0] for each in changes.skipped] == [
        f"{path}, line 7 is neither a text nor a dict",
        f"{path}, line 11: {folder / 'gone.png'} cannot be read (No such file or directory).",
        f"{path}, line 13 has an instruction of its own",
        f"{path}:9 has the unknown key 'txt'",
    ]
    assert [part.line for part in searcher.index.entries.files[str(path)].parts] == [1, 3, 5, 15]
    (hit, *_) = searcher.search({"text": "last"}, 1)
    assert (hit.line, hit.name.rpartition(os.sep)[2]) == (15, "lines.jsonl:15")
    path.write_text("\n".join(map(json.dumps, ["first", *lines[:3], "last"])), encoding="utf-8")
    assert counts(searcher.add(folder)) == (1, 9, 0, 0)
    assert embedder.asked() == 2, "the query and the new line"
    path.write_text('{"text": "a"}\nnot JSON\n"b"', encoding="utf-8")
    changes = searcher.add(folder)
    assert len(changes.skipped) == 1 and changes.skipped[0].startswith(f"{path}, line 2: not JSON (")
    assert counts(changes)[:3] == (2, 5, 3), "the lines beside it are there, three of five before are not"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        (r'{"image": "a\u0000b.png"}', "names a file that cannot be"),
        (r'{"image": "\ud800/a.png"}', "cannot be"),
        ('{"image": "."}', "documents/. is a folder, a pipe or a device"),
        pytest.param(
            *('{"image": "/dev/zero"}', "/dev/zero is a folder, a pipe or a device"),
            marks=pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero"),
        ),
        (f'{{"image": "{"A" * 100_000}"}}', "AAA… (100"),
        ('""', "has neither words nor a picture"),
        ('{"text": [" "], "image": []}', "has neither words nor a picture"),
        ("{}", "has neither words nor a picture"),
    ],
)
def test_a_line_that_cannot_be_used_costs_itself_alone(
    searcher: Searcher, tmp_path: Path, line: str, problem: str
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "lines.jsonl").write_text(f'"a goose"\n{line}\n"a duck"\n', encoding="utf-8")
    changes = searcher.add(folder)
    assert counts(changes) == (2, 0, 0, 1)
    assert changes.skipped[0].startswith(f"{folder / 'lines.jsonl'}, line 2") and problem in changes.skipped[0]


def test_what_becomes_unusable_is_forgotten_and_counted(searcher: Searcher, folder: Path) -> None:
    assert counts(searcher.add(folder)) == (5, 0, 0, 0)
    (folder / "note.txt").write_text(" ")
    assert counts(searcher.add(folder)) == (0, 4, 1, 1)


def test_what_cannot_be_read_for_now_stays(searcher: Searcher, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher.add(folder)
    (folder / "note.txt").write_text("another duck")

    def refuse(path: str) -> list[Document]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("runtime.search.indexing.read_documents", refuse)
    changes = searcher.add(folder)
    assert counts(changes) == (0, 5, 0, 1)
    assert changes.skipped[0].endswith("note.txt cannot be read (Permission denied); what the index has of it stays.")


def test_an_index_made_anew_by_another_is_noticed(searcher: Searcher, model: Counting, folder: Path) -> None:
    searcher.add(folder)
    place = searcher.index.folder
    same, small = Searcher(model, place), Searcher(model, folder.parent / "other", dimensions=16)
    small.add(folder)
    shutil.rmtree(place)
    (folder.parent / "other").rename(place)
    for use in (lambda: searcher.add(folder), lambda: searcher.search({"text": "a"}), lambda: searcher.forget(folder)):
        with pytest.raises(SearchIndexError, match="dimensions 16 in the index, 64 here"):
            use()
    shutil.rmtree(place)
    (folder / "note.txt").write_text("a swan")
    Searcher(model, place).add(folder)
    (hit, *_) = same.search({"text": "a swan"}, 1)
    assert hit.cosine > 0.9999


def test_a_line_follows_the_picture_it_names(searcher: Searcher, embedder: Counting, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    named = tmp_path / "elsewhere.png"
    picture(named, 1)
    lines = [{"image": "../elsewhere.png"}, {"text": "both", "image": ["../elsewhere.png"]}, "a goose"]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert counts(searcher.add(folder)) == (3, 0, 0, 0)
    before = os.stat(named)
    again = Searcher(embedder, tmp_path / "index")
    embedder.asked()
    assert counts(again.add(folder)) == (0, 3, 0, 0)
    picture(named, 2)
    os.utime(named, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert counts(again.add(folder)) == (2, 1, 0, 0)
    assert embedder.asked() == 2
    (hit, *_) = again.search({"image": str(named)}, 1)
    assert hit.line == 1 and hit.cosine > 0.9999
    named.unlink()
    changes = again.add(folder)
    assert len(changes.skipped) == 2 and "cannot be read (No such file or directory)" in changes.skipped[0]
    assert counts(changes)[:2] == (0, 1)


def test_a_run_that_is_interrupted_goes_on(
    searcher: Searcher, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "lines.jsonl").write_text("".join(f'"text {number}"\n' for number in range(2 * BATCH + 3)))
    for number in range(BATCH + 1):
        (folder / f"{number}.txt").write_text(f"file {number}")
    process, calls = Qwen3VLEmbedder.process, []

    def interrupted(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return process(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Qwen3VLEmbedder, "process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searcher.add(folder)
    again = Searcher(embedder, tmp_path / "index")
    assert len(again.index.entries.contents) == 3 * BATCH
    embedder.asked()
    assert counts(again.add(folder)) == (4, 3 * BATCH, 0, 0)
    assert embedder.asked() == 4
    assert again.index.entries.documents == 3 * BATCH + 4


def test_what_a_batch_leaves_of_a_file_is_not_looked_through_again(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for a file of lines was that of their square: three minutes for 100,000."""
    folder = tmp_path / "documents"
    folder.mkdir()
    count = 64 * BATCH
    (folder / "lines.jsonl").write_text("".join(f'"text {number}"\n' for number in range(count)))
    looks: list[str] = []

    class Watched(Document):
        def __getattribute__(self, name: str) -> Any:
            if name == "sha256":
                looks.append(name)
            return super().__getattribute__(name)

    def vectors(_: object, inputs: Sequence[object], **options: Any) -> np.ndarray:
        return np.ones((len(inputs), options["dimensions"]), np.float32)

    monkeypatch.setattr("runtime.search.documents.Document", Watched)
    monkeypatch.setattr(Counting, "process", vectors)
    assert counts(searcher.add(folder)) == (count, 0, 0, 0)
    assert len(looks) < 24 * count


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="paths are shorter there")
def test_folders_may_be_nested_as_deeply_as_a_path_can(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(DEPTH):
        os.mkdir("d")
        os.chdir("d")
    Path("note.txt").write_text("a duck")
    deepest = os.path.join(folder, *["d"] * DEPTH)
    unreadable: list[tuple[str, str]] = []
    try:
        assert [file.path for file in find_files(str(folder), unreadable)] == [os.path.join(deepest, "note.txt")]
        assert not unreadable and spelled(deepest) == deepest
    finally:  # shutil.rmtree calls itself for each
        os.unlink("note.txt")
        for _ in range(DEPTH):
            os.chdir("..")
            os.rmdir("d")


def test_a_text_that_its_tokenizer_has_no_memory_for_is_left_out(searcher: Searcher, folder: Path) -> None:
    """20 MB took 3.5 gigabytes."""
    with (folder / "log.txt").open("wb") as file:
        file.truncate(5_000_000)
    changes = searcher.add(folder)
    assert counts(changes) == (5, 0, 0, 1)
    assert changes.skipped == [
        f"{folder / 'log.txt'} has 5,000,000 bytes, more than 4,194,304 of a text; cut it into several files."
    ]


def test_only_the_lines_that_were_found_are_read_again(searcher: Searcher, folder: Path) -> None:
    lines = [{"image": "a.png"}, {"text": "both", "image": "deep/b.JPG"}, {"text": "a goose"}]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    searcher.add(folder)
    (hit,) = (each for each in searcher.search({"text": "a goose"}, 10) if each.line == 3)
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, of: opened.append(str(of[0])) if watching and event == "open" else None)
    assert read_again([hit]) == {hit.sha256: {"text": "a goose"}}
    watching.clear()
    assert [path for path in opened if str(folder) in path] == [str(folder / "lines.jsonl")]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_names_may_be_anything(searcher: Searcher, tmp_path: Path) -> None:
    folder = tmp_path / "a\nb \udcff"
    folder.mkdir()
    picture(tmp_path / "a.png", 1)
    names: Iterable[bytes] = (b"\xff\xfe.png", b"new\nline.png", b" .png", b"-.png", "鸭 é'\"<b>.png".encode())
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((tmp_path / "a.png").read_bytes())
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff\n.png")).write_bytes(b"x")
    changes = searcher.add(folder)
    assert counts(changes) == (1, 4, 0, 1)
    assert "\n" not in changes.skipped[0] and "a\\nb \\udcff" in changes.skipped[0]
    again = Searcher(searcher.embedder, tmp_path / "index")
    hits = again.search({"text": "a"}, 10)
    assert len(hits) == 5 and all(Path(hit.path).is_file() and hit.name.isprintable() for hit in hits)


def test_others_may_search_while_one_adds(
    searcher: Searcher, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment when a step is written and the one that adds waits for the disk."""
    searcher.add(folder)
    more = tmp_path / "more"
    more.mkdir()
    for number in range(2 * BATCH + 1):
        (more / f"{number}.txt").write_text(f"text {number}")
    flush = os.fsync
    found: list[int] = []
    threads: list[threading.Thread] = []

    def slow(file: int) -> None:
        flush(file)
        threads.append(threading.Thread(target=lambda: found.append(len(searcher.search({"text": "text 3"}, 1)))))
        threads[-1].start()
        threads[-1].join(0.1)  # which is long enough for a search that does not wait

    monkeypatch.setattr(os, "fsync", slow)
    assert searcher.add(more).embedded == 2 * BATCH + 1
    monkeypatch.undo()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads) > 2
    assert min(found) == 1
    again = Searcher(searcher.embedder, searcher.index.folder)
    for number in range(2 * BATCH + 1):
        expected = searcher.embedder.process([{"text": f"text {number}"}])[0]
        assert np.abs(vector_of(again, more / f"{number}.txt") - expected).max() <= 1e-6
