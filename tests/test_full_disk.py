"""A disk that fills up during an export: one sentence, nothing half, and the package that was there stays whole.

The disk is a small tmpfs where this user may mount one, and a limit on the size of a file everywhere.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_shapes import TINY_2B
from exports import beside

from runtime.manifest import Manifest

if sys.platform == "win32":
    pytest.skip("neither kind of small disk on Windows", allow_module_level=True)

REPOSITORY = Path(__file__).resolve().parents[1]
# The sentence of progress or the stage at which the disk turns out to be full, and how much is still to be had then.
STAGES = {
    "calibration": ("calibration", 200_000),
    "weights": ("weights", 1_000_000),
    "model files": ("hashing checkpoint and package", 0),
    "manifest": ("against float32", 0),
}
EXPORT = """
import resource, shutil, signal, sys
from pathlib import Path
from export.options import ExportOptions, Reporter
from export.package import export_package
from runtime.errors import CheckpointError

folder, output, samples, stage, left, how = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]

def fill(name):
    if not name.startswith(stage):
        return
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(left), resource.RLIM_INFINITY))
        return
    with open(output.parent.parent / "ballast", "wb", buffering=0) as ballast:
        free = shutil.disk_usage(output.parent).free - int(left)
        while free > 0:
            free -= ballast.write(bytes(min(free, 1 << 20)))

options = ExportOptions("new", "int8", force=True, calibrate=samples)
try:
    export_package(folder, output, options, Reporter(fill, lambda total, name, unit: fill(name), lambda count: None))
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""
# $0 becomes the disk, $1 the package on it, $2 its old one; the rest is the export. The disk goes with the process.
ON_SMALL_DISK = """
mount -t tmpfs -o size=200m none "$0" && mkdir "$0/packages" && cp -r "$2" "$1" || exit 9
package="$1"; shift 2; "$@"; echo "beside: $(ls -A "$package/..")"; exec "$1" -m runtime check "$package"
"""


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "a.txt").write_text("a cat")
    return folder


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


def expected(text: str, output: Path, reason: str) -> None:
    (line,) = [line for line in text.splitlines() if line.startswith("refused: ")]
    assert line.startswith(f"refused: {output} cannot be written (") and reason in line
    assert line.endswith("nothing was left behind.")


@pytest.mark.parametrize(("stage", "left"), STAGES.values(), ids=STAGES)
def test_a_file_that_cannot_grow(
    checkpoint: Callable[..., Path], package: Callable[..., Path], samples: Path, tmp_path: Path, stage: str, left: int
) -> None:
    output = tmp_path / "packages" / "tiny"
    shutil.copytree(package(TINY_2B, "embedding"), output)
    arguments = [checkpoint(TINY_2B, "embedding"), output, samples, stage, str(left), "limit"]
    done = run([sys.executable, "-c", EXPORT, *arguments])
    expected(done.stderr, output, "File too large")
    manifest = Manifest.read(output)
    manifest.check(output)
    assert manifest.name == "tiny" and beside(output) == {"tiny"}


@pytest.mark.skipif(
    sys.platform != "linux" or run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode != 0,
    reason="this user may not mount a tmpfs",
)
@pytest.mark.parametrize(("stage", "left"), STAGES.values(), ids=STAGES)
def test_a_disk_that_is_full(
    checkpoint: Callable[..., Path], package: Callable[..., Path], samples: Path, tmp_path: Path, stage: str, left: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    output = disk / "packages" / "tiny"
    arguments = [checkpoint(TINY_2B, "embedding"), output, samples, stage, str(left), "ballast"]
    export = [sys.executable, "-c", EXPORT, *arguments]
    old = package(TINY_2B, "embedding")
    done = run(["unshare", "-Urm", "sh", "-c", ON_SMALL_DISK, disk, output, old, *export])
    expected(done.stderr, output, "No space left on device")
    assert "beside: tiny\n" in done.stdout and done.returncode == 0, done.stderr
