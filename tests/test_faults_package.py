"""A package that is deleted, replaced or written to while it is open: the vectors it gives are its own, or none."""

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
from exports import PLAIN
from PIL import Image
from random_checkpoint import write_checkpoint

from export.folder import put_in_place
from export.package import export_package
from runtime import PackageError, Qwen3VLEmbedder
from runtime.graph import NOWHERE, Arrays, SessionGraph
from runtime.manifest import DECODER, VISION, Manifest
from runtime.replacing import set_aside
from runtime.unchanged import PackageFiles

Packages = Callable[..., Path]
TEXTS: list[dict[str, Any]] = [{"text": "a"}, {"text": "stone " * 30}]
PICTURE: list[dict[str, Any]] = [{"image": Image.effect_noise((64, 64), 50).convert("RGB")}]
ANEW = "was replaced or changed since it was opened; open it anew."
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody remove or replace a mapped file")


@pytest.fixture
def folder(package: Packages, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(package(TINY_2B, "embedding"), tmp_path / "packages" / "tiny"))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose files have the same sizes and other content."""
    checkpoint, output = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("another") / "tiny"
    write_checkpoint(checkpoint, TINY_2B, seed=1)
    export_package(checkpoint, output, PLAIN)
    return output


@pytest.fixture
def other(another: Path, tmp_path: Path) -> Path:
    """A copy of it to be put in the other's place."""
    return Path(shutil.copytree(another, tmp_path / "other"))


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(PackageError) as caught:
        run()
    return str(caught.value)


@on_posix
@pytest.mark.parametrize("memory", ["normal", "low"])
def test_what_is_mapped_outlives_its_folder(folder: Path, memory: Any) -> None:
    embedder = Qwen3VLEmbedder(folder, memory=memory)
    expected = Qwen3VLEmbedder(folder, memory=memory).process(TEXTS)
    shutil.rmtree(folder)
    assert np.array_equal(embedder.process(TEXTS), expected)
    assert refusal(lambda: embedder.process(PICTURE)).startswith(f"{folder} does not exist; ")
    assert np.array_equal(embedder.process(TEXTS), expected)


@on_posix
def test_a_missing_vision_encoder_is_named(folder: Path) -> None:
    embedder = Qwen3VLEmbedder(folder, memory="low")
    expected = embedder.process(PICTURE)
    for name in (VISION, f"{VISION}.data"):
        (folder / name).rename(folder / "elsewhere")
        missing = f"{folder / name} is missing from the package; copy it again or export the package again."
        assert refusal(lambda: embedder.process(PICTURE)) == missing
        assert refusal(lambda: embedder.process(PICTURE, on_error="skip")) == missing
        (folder / "elsewhere").rename(folder / name)
    assert np.array_equal(embedder.process(PICTURE), expected)


@on_posix
@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_new_package_in_its_place_gives_no_pictures(folder: Path, other: Path, memory: Any) -> None:
    """As `python -m export --force` does it; both packages have the same sizes and the same time of writing."""
    for path in (*folder.iterdir(), *other.iterdir()):
        os.utime(path, ns=(0, 0))
    fresh, used = (Qwen3VLEmbedder(folder, memory=memory) for _ in range(2))
    texts, pictures = used.process(TEXTS), used.process(PICTURE)
    put_in_place(other, folder)
    assert np.array_equal(fresh.process(TEXTS), texts)
    assert refusal(lambda: fresh.process(PICTURE)) == f"{folder} {ANEW}"
    if memory == "normal":
        assert np.array_equal(used.process(PICTURE), pictures)
        used.release_vision()
    assert refusal(lambda: used.process(PICTURE)) == f"{folder} {ANEW}"
    anew = Qwen3VLEmbedder(folder, memory=memory)
    assert np.abs(anew.process(TEXTS) - texts).max() > 0.01
    assert np.abs(anew.process(PICTURE) - pictures).max() > 0.01


@pytest.mark.parametrize("graph", [DECODER, VISION])
def test_weights_exchanged_by_hand_are_noticed_when_the_vision_encoder_opens(
    folder: Path, other: Path, graph: str
) -> None:
    embedder = Qwen3VLEmbedder(folder)
    if graph == DECODER and sys.platform == "win32":
        pytest.skip("Windows lets nobody replace a mapped file")
    os.replace(other / f"{graph}.data", folder / f"{graph}.data")
    assert refusal(lambda: embedder.process(PICTURE)) == f"{folder} {ANEW}"


def test_a_package_that_is_replaced_while_it_is_opened(folder: Path, other: Path) -> None:
    files = PackageFiles(folder, Manifest.read(folder))

    def slow(path: Path, providers: Any, threads: int) -> SessionGraph:
        put_in_place(other, folder)
        return None  # type: ignore[return-value]

    assert refusal(lambda: files.watched(slow)(folder / DECODER, [], 1)) == f"{folder} {ANEW}"


@on_posix
@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("change", ["overwrite", "truncate"])
def test_weights_that_are_written_to_in_place(folder: Path, memory: Any, change: str) -> None:
    """In a process of its own: where this goes unnoticed, the system ends it."""
    code = """
import os, sys
from pathlib import Path
from runtime import PackageError, Qwen3VLEmbedder
folder, memory, change = sys.argv[1:]
embedder = Qwen3VLEmbedder(folder, memory=memory)
embedder.process([{"text": "a"}])
path = Path(folder, "decoder.onnx.data")
if change == "truncate":
    os.truncate(path, 4096)
else:
    path.write_bytes(bytes(path.stat().st_size))
for on_error in ("raise", "skip"):
    try:
        print(embedder.process([{"text": "b"}], on_error=on_error))
    except PackageError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, folder, memory, change]
    done = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == 2 * [
        f"{folder / f'{DECODER}.data'} was written to while it was in use, so that its weights are not what they were; "
        "copy it again or export the package again, then open it anew."
    ]


def test_weights_that_are_written_to_during_a_run(folder: Path) -> None:
    class Writing:
        def run(self, names: Any, feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
            os.utime(folder / f"{DECODER}.data")
            return [np.zeros(1)]

    graph = PackageFiles(folder, Manifest.read(folder)).watched(lambda *given: Writing())(folder / DECODER, [], 1)
    assert "was written to while it was in use" in refusal(lambda: graph.run([], {}))


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
