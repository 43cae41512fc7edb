"""Where a command's results go: disks that are full, ends that are closed, names that cannot be, links."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B

from runtime.commands.cli import main

ROOT = Path(__file__).parent.parent
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
TEXTS = [word for number in range(100) for word in ("--text", str(number))]


@pytest.fixture(scope="module")
def folder(package: Callable[..., Path]) -> Path:
    return package(TINY_2B, "embedding")


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script whose "$@" is python -m runtime with these arguments."""
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "runtime", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


@on_posix
@pytest.mark.parametrize("name", ["rows.npy", "rows.jsonl"])
def test_a_disk_that_is_full_keeps_what_was_there(folder: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    output.write_text("old")
    done = shell('ulimit -f 8; exec "$@"', "embed", folder, *TEXTS, "--output", output)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --output {output} cannot be written (")
    assert done.stderr.endswith("; choose another place.\n") and done.stderr.count("\n") == 1
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["embed", "rerank", "check"])
def test_a_full_standard_output(package: Callable[..., Path], folder: Path, command: str) -> None:
    arguments: list[object] = [command, folder]
    if command == "embed":
        arguments += TEXTS
    if command == "rerank":
        arguments = [command, package(TINY_2B, "reranker"), "--query", "a", "--text", "b"]
    done = shell('exec "$@" > /dev/full', *arguments)
    assert done.returncode == 2
    assert done.stderr == "error: standard output cannot be written (No space left on device); send it elsewhere.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_error(tmp_path: Path) -> None:
    done = shell('exec "$@" 2> /dev/full', "check", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


@on_posix
def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    command = ["sh", "-c", script, str(tmp_path), sys.executable, "-P", "-m", "runtime", "search", tmp_path]
    command += ["--index", "index", "--add", "folder"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the working folder was deleted; change to one that is there.\n"


@on_posix
def test_ends_that_are_closed(folder: Path, tmp_path: Path) -> None:
    done = shell('exec "$@" >&-', "embed", folder, "--text", "a")
    assert done.returncode == 2
    assert done.stderr == "error: standard output is closed; leave it open, or give embed an --output.\n"
    done = shell('exec "$@" <&-', "embed", folder, "--text", "a")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell('exec "$@" <&-', "embed", folder, "--input", "-", "--output", tmp_path / "rows.npy")
    assert done.returncode == 2
    assert done.stderr == "error: --input - cannot be read (Bad file descriptor); check the path.\n"
    assert list(tmp_path.iterdir()) == []
    done = shell('exec "$@" 2>&-', "embed", folder, "--text", "a")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    done = shell('{ "$@"; echo $? >&2; } | true', "embed", folder, *TEXTS, *TEXTS)
    assert (done.stdout, done.stderr) == ("", "141\n")


def test_what_cannot_be_written_is_found_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The package does not even exist."""
    (tmp_path / "folder.npy").mkdir()
    long = tmp_path / f"{'a' * 250}.npy"
    for output, reason in (
        (tmp_path / "folder.npy", " is there and is no file that can be replaced; choose another name."),
        (long, " cannot be written (File name too long); choose another place."),
    ):
        if sys.platform == "win32" and output is long:
            continue  # it has other words for it
        assert main(["embed", str(tmp_path / "gone"), "--text", "a", "--output", str(output)]) == 2
        assert capsys.readouterr().err == f"error: --output {output}{reason}\n"
    assert main(["embed", str(tmp_path / "gone"), "--text", "a", "--output", str(tmp_path / "rows.npy")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


@on_posix
def test_a_link_stays_a_link_and_a_new_file_has_the_usual_rights(folder: Path, tmp_path: Path) -> None:
    real, link, usual = tmp_path / "real.npy", tmp_path / "link.npy", tmp_path / "usual"
    real.touch()
    link.symlink_to(real)
    usual.touch()
    assert main(["embed", str(folder), "--text", "a", "--output", str(link)]) == 0
    assert link.is_symlink() and np.load(real).shape == (1, 64)
    assert real.stat().st_mode == usual.stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"real.npy", "link.npy", "usual"}
