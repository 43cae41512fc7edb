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
from runtime.graphs.graph import NOWHERE, Arrays, SessionGraph
from runtime.graphs.unchanged import PackageFiles
from runtime.manifest import DECODER, VISION, Manifest

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


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


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
