"""The folder of an index: what a process that ends at any moment leaves, what is damaged, who may write."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from search_index import content, header, made, put, require_whole, vector

from runtime import SearchIndexError
from runtime.search.documents import FoundFile
from runtime.search.index_entries import IndexedFile, Part, Step
from runtime.search.index_folder import SearchIndex
from runtime.search.vector_store import STORES, StoreName, VectorStore


def refusal(run: Callable[[], object]) -> str:
    """The message of the expected error, one sentence on one line."""
    with pytest.raises(SearchIndexError) as caught:
        run()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("store", STORES)
def test_what_was_put_in_is_found(tmp_path: Path, store: StoreName) -> None:
    made(tmp_path / "index", 20, store)
    index = SearchIndex(tmp_path / "index")  # as another process would open it
    for number in (0, 7, 19):
        (row, cosine), *others = index.nearest(vector(number)[0], 5)
        assert index.holders[row] == [(f"/{number}", None)] and len(others) == 4
        assert cosine > (0.7 if store == "binary" else 0.999)
    vectors = np.concatenate([vector(number) for number in range(20)])
    assert (index.vectors() * vectors).sum(axis=1).min() > (0.7 if store == "binary" else 0.99)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What was whole before is there, nothing else is, and the next process goes on from it."""
    tests = Path(__file__).parent
    command = [sys.executable, tests / "killed_index.py", tmp_path]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}, check=True)
    count = max(map(int, names(tmp_path)))  # the one that got through
    assert count > 25, "two for each write, and those of the folder"
    counts = []
    for last in range(count):
        folder = tmp_path / str(last)
        counts.append(require_whole(folder))
        index = SearchIndex(folder)
        index.create(header())
        with index.writing():
            index.append(Step(gone=("/1", "/2", "/3")), vector(0)[:0])
            put(index, 5)
            put(index, 6)
            index.settle()
        assert require_whole(folder) >= 2
        assert index.nearest(vector(6)[0], 1)[0][1] > 0.999
        assert len(names(folder)) == 4 and not any(name.endswith(".partial") for name in names(folder))
    assert counts[0] == 0 and set(counts) == {0, 1, 2, 3, 4}
    assert require_whole(tmp_path / str(count)) == 2


def test_a_log_that_ends_anywhere_is_a_prefix(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, 4)
    log = folder / "entries.0.log"
    whole = log.read_bytes()
    ends = [end + 1 for end, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 7):
        log.write_bytes(whole[:length])
        assert require_whole(folder) == sum(end <= length for end in ends)
    log.write_bytes(whole[: ends[1] + 20] + bytes(100))  # as after a power cut
    index = SearchIndex(folder)
    with index.writing():
        put(index, 7)
    assert require_whole(folder) == 3 and index.entries.contents[2] == content(7)
    assert (folder / "vectors.0.bin").stat().st_size == 3 * 32 * 4, "rows that no step names are gone"


def test_a_log_without_the_files_that_lines_name_is_read() -> None:
    """Logs had none at first."""
    text = b'{"contents": [], "files": {"/a.jsonl": [3, 4, true, [[1, 0]]]}, "gone": []}'
    step = Step.parse(b"%08x %s" % (zlib.crc32(text), text))
    assert step.files == {"/a.jsonl": IndexedFile(3, 4, True, (Part(1, 0),))}
    named = replace(step.files["/a.jsonl"], named=(FoundFile("/b.png", 5, 6),))
    assert Step.parse(Step(files={"/a.jsonl": named}).line().rstrip()).files == {"/a.jsonl": named}


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, 4)
    log = folder / "entries.0.log"
    whole = log.read_bytes()
    for place in (0, 20, whole.index(b"\n") + 30):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        line = whole[:place].count(b"\n") + 1
        assert refusal(lambda: SearchIndex(folder)) == (
            f"{log}, line {line} is damaged (its checksum does not fit); delete the index and make it anew with --add."
        )


@pytest.mark.parametrize("text", ["{}", "[]", '{"contents": 3, "files": {}, "gone": []}', "[" * 10**5], ids=len)
def test_a_step_with_other_content_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "index"
    made(folder, 1)
    log = folder / "entries.0.log"
    step = text.encode()
    log.write_bytes(b"%08x %s\n" % (zlib.crc32(step), step) + log.read_bytes())
    assert refusal(lambda: SearchIndex(folder)).startswith(f"{log}, line 1 is damaged (")


@pytest.mark.parametrize("name", ["vectors.0.bin", "scales.0.bin"])
def test_rows_that_are_missing_are_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    made(folder, 4, "int8")
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(lambda: SearchIndex(folder)) == (
        f"{path} has {size - 1} bytes where the index needs {size}: it was cut short; "
        "delete the index and make it anew with --add."
    )
    path.unlink()
    assert refusal(lambda: SearchIndex(folder)).startswith(f"{path} is missing from the index; delete the index")


def test_an_index_that_may_not_be_read_is_not_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    made(folder, 1)

    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal(lambda: SearchIndex(folder)) == (
        f"{folder / 'index.json'} cannot be read (Permission denied); check its permissions."
    )


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, 1)
    path = folder / "index.json"
    whole = json.loads(path.read_text())
    del whole["checksum"]  # of older indexes
    for damage in ({"store": "int4"}, {"dimensions": "8"}, {"dimensions": 0}, {"regime": {}}, {"regime": 3}, {"x": 1}):
        path.write_text(json.dumps(whole | damage))
        assert refusal(lambda: SearchIndex(folder)).startswith(f"{path} cannot be read (")
    for damaged in (json.dumps(whole)[:50], "[" * 10**5):
        path.write_text(damaged)
        assert refusal(lambda: SearchIndex(folder)).startswith(f"{path} cannot be read (")
    path.write_text(json.dumps(whole | {"format_version": 2}))
    assert "has index format 2, this runtime reads format 1;" in refusal(lambda: SearchIndex(folder))
    path.write_text("[]")
    assert refusal(lambda: SearchIndex(folder)) == f"{path} is not that of an index; give --index another folder."


def test_a_header_is_as_it_was_written_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, 4)
    path = folder / "index.json"
    whole = path.read_bytes()
    header, found = SearchIndex(folder).header, 0
    for place in range(len(whole)):
        for bit in (1, 4, 16):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                assert SearchIndex(folder).header == header  # white space became another
            except SearchIndexError:
                found += 1
    assert found > len(whole)
    older = {key: value for key, value in json.loads(whole).items() if key != "checksum"}
    path.write_text(json.dumps(older))
    assert SearchIndex(folder).header == header


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    made(folder, 3)
    with FileLock(folder / "lock"):
        index = SearchIndex(folder)
        assert len(index.nearest(vector(1)[0], 2)) == 2

        def write() -> None:
            with index.writing():
                raise AssertionError("two at once")

        assert refusal(write) == (
            f"another process is writing to {folder}; wait for it, or give --index another folder."
        )
    with index.writing():
        put(index, 3)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = made(folder, 1)
    (folder / "lock").unlink()
    (folder / "lock").mkdir()  # root may write everywhere else

    def write() -> None:
        with index.writing():
            raise AssertionError("without a lock")

    assert refusal(write).startswith(f"{folder} cannot be written (")
    assert index.nearest(vector(0)[0], 1)[0][1] > 0.999, "it can be searched"


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    index = made(folder, 2)
    with index.writing():
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            message = refusal(lambda: put(index, 2))
        assert message.startswith(f"{folder} cannot be written (No space left on device); what is in the index stays")
        put(index, 3)  # there is room again
    assert require_whole(folder) == 3 and index.entries.contents[2] == content(3)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert refusal(lambda: SearchIndex(tmp_path / "file").create(header())).endswith(
        "is a file; give --index a folder."
    )
    assert refusal(lambda: SearchIndex(tmp_path).create(header())) == (
        f"{tmp_path} holds other things ('file') and no index; give --index a new or an empty folder."
    )
    assert names(tmp_path) == {"file"}
    index = SearchIndex(tmp_path / "none")
    assert refusal(lambda: index.nearest(vector(0)[0], 1)).startswith(f"{tmp_path / 'none'} holds no index; make one")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("store", STORES)
def test_rows_without_a_file_are_not_found_and_dropped_when_they_are_most(tmp_path: Path, store: StoreName) -> None:
    folder = tmp_path / "index"
    index, reader = made(folder, 10, store), SearchIndex(folder)
    for count, generation in ((5, 0), (6, 1)):
        with index.writing():
            index.append(Step(gone=tuple(f"/{number}" for number in range(count))), vector(0)[:0])
            index.settle()
        assert f"vectors.{generation}.bin" in names(folder)
        for each in (index, reader):  # the reader sees what the writer did
            found = [each.holders[row] for row, _ in each.nearest(vector(2)[0], 10)]
            assert sorted(found) == [[(f"/{number}", None)] for number in range(count, 10)]
    assert index.entries.contents == [content(number) for number in range(6, 10)]
    assert len(names(folder)) == {"float32": 4, "int8": 5, "binary": 6}[store]
    for number in range(6, 10):
        assert index.holders[index.nearest(vector(number)[0], 1)[0][0]] == [(f"/{number}", None)]
    with index.writing():
        put(index, 11)
    assert index.entries.contents[-1] == content(11)


def test_a_file_that_changes_again_and_again_does_not_fill_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index, reader = made(folder, 10), SearchIndex(folder)
    parts = tuple(Part(number, number) for number in range(10))
    sizes = []
    for time in range(40):
        with index.writing():
            index.append(Step((), {"/lines.jsonl": IndexedFile(time, time, True, parts)}), vector(0)[:0])
            index.settle()
        sizes.append(next(folder.glob("entries.*.log")).stat().st_size)
        assert len(reader.nearest(vector(3)[0], 10)) == 10 and reader.entries.documents == 20
    assert max(sizes[20:]) <= max(sizes[:20])
    assert index.entries.files["/lines.jsonl"].mtime_ns == 39
    assert [index.holders[row] for row in range(10)] == [[(f"/{n}", None), ("/lines.jsonl", n)] for n in range(10)]


def test_only_what_a_log_has_grown_by_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, parse, lines = tmp_path / "index", Step.parse, []
    index, reader = made(folder, 20), SearchIndex(folder)
    monkeypatch.setattr(Step, "parse", lambda line: (lines.append(line), parse(line))[1])
    with index.writing():
        put(index, 20)
        assert reader.nearest(vector(20)[0], 1)[0][0] == 20
    assert len(lines) == 1, "the writer knows its own, the reader all but one"
    assert index.nearest(vector(20)[0], 1)[0][0] == 20


def test_a_step_that_its_writer_took_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader may have seen a line that could not be brought to the disk, and another came in its place."""
    folder = tmp_path / "index"
    index, reader = made(folder, 2), SearchIndex(folder)
    fsync, calls = os.fsync, []

    def fails_the_second_time(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with index.writing():
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", fails_the_second_time)
            refusal(lambda: put(index, 2))
        assert len(reader.nearest(vector(2)[0], 5)) == 3
        put(index, 3)
        assert reader.nearest(vector(3)[0], 1)[0][1] > 0.999
        assert reader.entries.contents == [content(number) for number in (0, 1, 3)]
    with index.writing():
        put(index, 4)
    assert reader.nearest(vector(4)[0], 1)[0][0] == 3


def test_rows_without_a_file_are_not_sorted_with_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact search for half of a large index takes many times as long as one for ten."""
    index, nearest, asked = made(tmp_path / "index", 100), VectorStore.nearest, []
    with index.writing():
        index.append(Step(gone=tuple(f"/{number}" for number in range(0, 100, 2))), vector(0)[:0])

    def count(store: VectorStore, rows: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
        asked.append(count)
        return nearest(store, rows, query, count)

    monkeypatch.setattr(VectorStore, "nearest", count)
    whole = index.nearest(vector(1)[0], 100)
    assert len(whole) == 50 and whole[0][0] == 1
    asked.clear()
    for number in range(10):
        best = index.nearest(vector(number)[0], 3)
        assert len(best) == 3 and min(asked) <= 6
        assert [row for row, _ in best] == [row for row, _ in index.nearest(vector(number)[0], 100)[:3]]
