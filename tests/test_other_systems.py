"""What Windows and macOS do otherwise, simulated: files that are in use, names, encodings."""

import ntpath
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from checkpoint_shapes import TINY_2B
from search_index import made, put, require_whole, vector

from export.calibration import NONE
from export.folder import put_in_place
from export.options import ExportOptions
from export.package import export_package
from quant.samples import items_from
from runtime import Qwen3VLEmbedder, Searcher
from runtime.commands.exit_code import exit_code
from runtime.commands.results import print_line, replacing, require_writable
from runtime.errors import InputError, MediaError
from runtime.manifest import Manifest
from runtime.media.download import FetchLimits
from runtime.media.source import load_image
from runtime.search.documents import find_files
from runtime.search.index_folder import SearchIndex
from runtime.search.index_header import Header
from runtime.search.paths import relative, spelled
from runtime.search.vector_store import STORES, StoreName

ROOT = Path(__file__).parent.parent
# Python then takes ASCII for its own ends, as Windows takes a code page.
NARROW = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_on_windows_has_the_bytes_that_were_committed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "core.autocrlf=true", *arguments], cwd=tmp_path, check=True, capture_output=True)

    names = (".gitattributes", "scripts/environment.sh", "export/checkpoints/tiny/config.json")
    git("init")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    git("add", ".")
    for name in names:
        (tmp_path / name).unlink()
    git("checkout-index", "--all")
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name


def in_use(calls: int, rename: Callable[..., Any]) -> Callable[..., Any]:
    """`rename` as Windows has it while a virus scanner reads what is renamed: refused the first so many times."""
    left = [calls]

    def refused(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            error = PermissionError(13, "Access is denied")
            error.winerror = 5  # type: ignore[attr-defined]
            raise error
        return rename(*arguments)

    return refused


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setattr("runtime.replacing.time.sleep", seconds.append)
    return seconds


def test_a_package_that_is_scanned_gets_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    output, partial = tmp_path / "tiny", tmp_path / ".tiny.partial"
    for folder, word in ((output, "old"), (partial, "new")):
        folder.mkdir()
        (folder / "manifest.json").write_text(word)
    monkeypatch.setattr(Path, "rename", in_use(3, Path.rename))
    put_in_place(partial, output)
    assert (output / "manifest.json").read_text() == "new" and len(waited) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_result_that_is_scanned_gets_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    monkeypatch.setattr(Path, "replace", in_use(2, Path.replace))
    with replacing(tmp_path / "rows.jsonl") as file:
        file.write(b"rows")
    assert (tmp_path / "rows.jsonl").read_bytes() == b"rows" and len(waited) == 2
    monkeypatch.setattr(Path, "replace", in_use(99, Path.replace))
    with pytest.raises(InputError, match=r"cannot be written \(Access is denied\)"), replacing(tmp_path / "rows.jsonl"):
        pass
    assert 20 < sum(waited) < 60
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_index_that_is_scanned_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]) -> None:
    monkeypatch.setattr(Path, "replace", in_use(1, Path.replace))
    put(made(tmp_path / "index", 1), 1)
    assert Header.read(tmp_path / "index") is not None and len(waited) == 1


def test_an_address_that_is_none_on_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def url2pathname(url: str) -> str:
        raise OSError(f"Bad URL: {url.replace(':', '|')}")  # as nturl2path has it

    monkeypatch.setattr("runtime.media.source.url2pathname", url2pathname)
    with pytest.raises(MediaError) as caught:
        load_image("file:///C:/12:30.jpg", FetchLimits())
    assert str(caught.value) == (
        "file:///C:/12:30.jpg leads to no file (Bad URL: /C|/12|30.jpg); write file:///C:/folder/name or a plain path."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_words_that_go_nowhere_need_no_encoding() -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "runtime", "check", "鸭"]
    assert subprocess.run(command, env={**os.environ, **NARROW}, check=False).returncode == 2


def test_the_demo_shows_its_queries_in_any_encoding() -> None:
    code = "import demo; demo.subprocess.run = demo.draw_query = lambda *_, **__: 'query.png'; demo.main()"
    variables = {**os.environ, **NARROW, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"--text '\u5723\u8bde\u6811'" in done.stdout


def test_a_result_that_another_program_has_open_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    rows = tmp_path / "rows.npy"
    rows.write_bytes(b"rows")
    require_writable(rows)
    monkeypatch.setattr(Path, "replace", in_use(99, Path.replace))
    with pytest.raises(InputError, match=r"rows\.npy cannot be written \(Access is denied\)"):
        require_writable(rows)
    assert rows.read_bytes() == b"rows" and list(tmp_path.iterdir()) == [rows]


def keep_mapped_files_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vectors be mapped: Windows makes such a file no shorter."""
    opened = Path.open

    def open_file(path: Path, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        if path.suffix != ".bin" or arguments != ("r+b",):
            return file
        refused = MagicMock(wraps=file)
        refused.__enter__.return_value = refused
        refused.__exit__.side_effect = lambda *error: file.close()
        refused.truncate.side_effect = OSError(22, "Invalid argument")
        return refused

    monkeypatch.setattr(Path, "open", open_file)


@pytest.mark.parametrize("store", STORES)
def test_an_index_that_is_mapped_goes_on_after_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: StoreName
) -> None:
    index = made(tmp_path / "index", 3, store)
    for path in (tmp_path / "index").glob("*.bin"):
        path.write_bytes(path.read_bytes() + bytes(1000))  # rows without a step
    reader = SearchIndex(tmp_path / "index")
    keep_mapped_files_long(monkeypatch)
    with index.writing():
        put(index, 3)
    assert [row for row, _ in reader.nearest(vector(3)[0], 1)] == [3]
    if store == "float32":
        assert require_whole(tmp_path / "index") == 4


def test_a_file_system_that_flushes_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, flushed = os.fsync, []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        flushed.append(descriptor)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    made(tmp_path / "index", 2)
    assert require_whole(tmp_path / "index") == 2
    partial = tmp_path / ".tiny.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text("new")
    flushed.clear()
    put_in_place(partial, tmp_path / "tiny")
    assert (tmp_path / "tiny" / "manifest.json").read_text() == "new" and len(flushed) == 1


def test_junctions_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders to `os.walk`; "My Music" in everybody's Documents is one that nobody may read."""
    for name in ("My Music", "disk", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a")
    looked = os.lstat

    def lstat(path: Any, **options: Any) -> Any:
        found = looked(path, **options)
        is_reparsed = os.path.basename(path) in ("My Music", "disk")
        return SimpleNamespace(st_mode=found.st_mode, st_reparse_tag=0xA0000003 if is_reparsed else 0)

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(os.path, "ismount", lambda path: os.path.basename(path) == "disk")
    assert [Path(each.path).parent.name for each in find_files(str(tmp_path), [])] == ["disk", "plain"]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `Pictures` that is found under `pictures` too, as Windows and macOS have it, and is listed once."""
    folder, listed = tmp_path / "Pictures", os.listdir
    folder.mkdir()
    others = {"pictures", "pICTURES", "PICTURES"}
    for name in others:
        (tmp_path / name).symlink_to(folder)
    monkeypatch.setattr(os, "listdir", lambda path=".": [name for name in listed(path) if name not in others])
    return folder


def test_a_folder_is_indexed_once_however_it_is_spelled(
    package: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    (pictures / "note.txt").write_text("a duck")
    searcher = Searcher(Qwen3VLEmbedder(package(TINY_2B, "embedding")), tmp_path / "index")
    assert searcher.add(pictures).embedded == 1
    changes = searcher.add(tmp_path / "pictures")
    assert (changes.embedded, changes.unchanged) == (0, 1)
    assert [hit.path for hit in searcher.search({"text": "duck"})] == [str(pictures / "note.txt")]
    assert searcher.forget(tmp_path / "pictures" / "note.txt").forgotten == 1


def test_other_names_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pictures").mkdir()
    for name in ("Pictures", "pictures", "gone/Pictures"):  # on Linux there is no `pictures`
        assert spelled(str(tmp_path / name)) == str(tmp_path / name) or sys.platform != "linux"
    monkeypatch.setattr("runtime.search.paths.os.path", ntpath)
    assert spelled(r"c:\none\a.txt") == r"C:\none\a.txt"
    assert spelled(r"\\server\share\a.txt") == r"\\server\share\a.txt"


def test_a_path_is_shown_from_a_working_folder_in_other_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.search.paths.os.path", ntpath)
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(os, "getcwd", lambda: r"c:\work")  # as an editor's terminal begins
    assert relative(r"C:\work\a\b.txt") == r"a\b.txt"
    assert relative(r"D:\work\b.txt") == r"D:\work\b.txt"


def test_a_reader_that_went_away_on_windows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = MagicMock(encoding="cp1252")
    pipe.flush.side_effect = OSError(22, "Invalid argument")
    given_up = MagicMock()
    monkeypatch.setattr("runtime.commands.exit_code.give_up_standard_output", given_up)
    monkeypatch.setattr(sys, "stdout", pipe)
    assert exit_code(lambda: print_line("a line") or 0) == 141
    assert capsys.readouterr().err == "" and given_up.called


def test_a_package_behind_a_junction_is_replaced_where_it_lies(
    checkpoint: Callable[..., Path], package: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, junction = tmp_path / "disk", tmp_path / "tiny"
    disk.mkdir()
    shutil.copytree(package(TINY_2B, "embedding"), disk / "tiny")
    junction.symlink_to(disk / "tiny")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_symlink", lambda self: False)  # as of a junction
        export_package(checkpoint(TINY_2B, "embedding"), junction, ExportOptions("new", force=True, golden=NONE))
    assert Manifest.read(junction).name == "new" and junction.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["tiny"]
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "tiny"}


def test_what_macos_puts_beside_files_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for name in ("._a.txt", "._a.png"):  # on disks of other systems
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\xb0")
    assert items_from(tmp_path) == [(str(tmp_path / "a.txt"), {"text": "a"})]


def test_commands_to_copy_are_quoted_for_every_shell() -> None:
    """cmd.exe hands ' on and takes the > in it for itself; zsh wants [ in quotes."""
    texts = [
        ROOT / "README.md",
        *(path for name in ("export", "quant", "runtime") for path in (ROOT / name).rglob("*.py")),
    ]
    for path in texts:
        assert not re.search(r"pip install (-e )?['.a-z-]*['\[]", path.read_text(encoding="utf-8")), path


def test_a_new_folder_that_the_finder_showed_takes_an_index(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    made(tmp_path, 2)
    assert require_whole(tmp_path) == 2 and (tmp_path / ".DS_Store").exists()
