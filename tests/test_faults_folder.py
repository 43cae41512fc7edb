"""The folder of a package: its name and working folder, places that cannot be written, processes that share it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B
from PIL import Image

from runtime import Qwen3VLEmbedder
from runtime.replacing import set_aside

Packages = Callable[..., Path]
TEXTS: list[dict[str, Any]] = [{"text": "a"}, {"text": "stone " * 30}]
PICTURE: list[dict[str, Any]] = [{"image": Image.effect_noise((64, 64), 50).convert("RGB")}]


@pytest.fixture
def folder(package: Packages, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(package(TINY_2B, "embedding"), tmp_path / "packages" / "tiny"))


def test_the_working_folder_may_change(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Qwen3VLEmbedder(folder).process(PICTURE)
    monkeypatch.chdir(folder.parent)
    embedder = Qwen3VLEmbedder(folder.name)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(embedder.process(PICTURE), expected)


NAMES = ["a b", "鸭 é", "100%25#&'$", "..hidden", "-x"]
if sys.platform != "win32":
    NAMES += ['"?*', "two\nlines", "back\\slash"]


@pytest.mark.parametrize("name", NAMES)
def test_unusual_names(folder: Path, name: str) -> None:
    expected = Qwen3VLEmbedder(folder).process([*TEXTS, *PICTURE])
    renamed = folder.rename(folder.with_name(name))
    assert np.array_equal(Qwen3VLEmbedder(renamed).process([*TEXTS, *PICTURE]), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are no text")
def test_a_name_that_is_no_text(folder: Path) -> None:
    renamed = folder.rename(folder.with_name(os.fsdecode(b"\xff")))
    done = run("check", renamed)
    assert done.returncode == 0 and b"\\udcff is whole: tiny" in done.stdout
    done = run("embed", renamed, "--text", "a")
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder and beside it, with the times of writing."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.parent.rglob("*")}


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_nothing_is_written_into_a_package_or_beside_it(folder: Path, memory: str) -> None:
    before, times = state(folder), (folder.stat().st_mtime_ns, folder.parent.stat().st_mtime_ns)
    picture = folder.parent.parent / "picture.png"
    PICTURE[0]["image"].save(picture)
    for arguments in (["check"], ["embed", "--text", "a", "--image", picture, "--memory", memory]):
        command, *rest = arguments
        assert run(str(command), folder, *rest).returncode == 0
    assert state(folder) == before
    assert (folder.stat().st_mtime_ns, folder.parent.stat().st_mtime_ns) == times


READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/probe" 2>&- || exit 9
"$1" -m runtime embed "$2" --text a --image "$3"
"""


@pytest.mark.skipif(
    sys.platform != "linux"
    or subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="this user may not mount anything",
)
def test_a_place_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    PICTURE[0]["image"].save(picture)
    command = ["unshare", "-Urm", "sh", "-c", READ_ONLY, folder.parent, sys.executable, folder, picture]
    done = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)
    old = set_aside(folder)
    folder.rename(old)  # an export that was killed between its two renames leaves this
    done = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {folder} was being replaced by an export that ended too early, and what was there before cannot be "
        f"put back from here; rename {old} to {folder}, or export the package again.\n"
    )
    assert old.exists() and not folder.exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def run(command: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    whole = [sys.executable, "-m", "runtime", command, folder, *map(str, arguments)]
    return subprocess.run(whole, env=environment(), capture_output=True)


def test_processes_share_a_package(folder: Path, tmp_path: Path) -> None:
    """Three at once, texts and pictures, give what one alone gives."""
    picture = tmp_path / "picture.png"
    PICTURE[0]["image"].save(picture)
    command = [sys.executable, "-m", "runtime", "embed", folder, "--memory", "low", "--image", picture]
    command += [word for number in range(20) for word in ("--text", f"{number} " + "stone " * number)]
    alone = subprocess.run(command, env=environment(), capture_output=True, check=True).stdout
    together = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0] for process in together] == [alone] * 3
    assert alone.count(b"\n") == 21
