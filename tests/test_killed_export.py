"""SIGKILL at any moment: no half package, the old one or the new one, and the next export leaves nothing hidden."""

import multiprocessing
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
from checkpoint_shapes import TINY_2B
from exports import beside
from killed_export import export

from export.calibration import NONE
from export.options import ExportOptions
from export.package import export_package
from runtime.manifest import Manifest

if sys.platform == "win32":
    pytest.skip("Windows has no SIGKILL", allow_module_level=True)

NEW = ExportOptions("new", "int8", force=True)
NEXT = ExportOptions("next", force=True)
RANDOM_MOMENTS, RANDOM_TIMES = 12, 3


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Each process starts from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_export"])
    return context


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(TINY_2B, "embedding")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    """An int8 export calibrated on little."""
    samples = tmp_path_factory.mktemp("samples")
    (samples / "a.txt").write_text("a cat")
    return replace(NEW, calibrate=str(samples))


@pytest.fixture(scope="module")
def old(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "tiny"
    export_package(tiny, folder, ExportOptions("old"))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages" / "tiny"


def run(processes: ForkServerContext, *arguments: object) -> ForkServerProcess:
    process = processes.Process(target=export, args=arguments)
    process.start()
    return process


def found(output: Path) -> str | None:
    """The name of the package that a reader finds, every byte of it in order; None where there is none."""
    if not output.exists() and not output.with_name(f".{output.name}.old").exists():
        return None
    manifest = Manifest.read(output)
    manifest.check(output)
    return manifest.name


def moments(processes: ForkServerContext, tiny: Path, output: Path, options: ExportOptions) -> list[str]:
    record = output.parent.with_name("moments")
    process = run(processes, tiny, output, options, None, record)
    process.join()
    assert process.exitcode == 0
    return record.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "kind",
    [pytest.param("first", marks=pytest.mark.full), "replacing", pytest.param("more", marks=pytest.mark.full)],
)
def test_killed_at_a_chosen_moment(
    tiny: Path, old: Path, new: ExportOptions, output: Path, processes: ForkServerContext, kind: str
) -> None:
    """Those of a folder that is replaced, without calibration; with it, and more moments; of a first export."""
    replacing = kind != "first"
    if kind == "replacing":
        new = replace(new, calibrate=NONE, golden=NONE)

    def restore() -> None:
        shutil.rmtree(output.parent)
        output.parent.mkdir()
        if replacing:
            shutil.copytree(old, output)

    restore()
    names = moments(processes, tiny, output, new)
    assert found(output) == "new" and beside(output) == {"tiny"}
    chosen = {number for number, name in enumerate(names) if name.startswith(("os.rename", "os.mkdir", "os.rmdir"))}
    assert len(chosen) >= (4 if replacing else 2), "the folder's own steps"
    for name in {"calibration", "weights", "hashing checkpoint and package", "measuring the loss"} & set(names):
        chosen.add(names.index(name) + 2)
    chosen |= {names.index("write manifest.json"), names.index("write .tiny.lock"), len(names) - 1}
    if kind == "more":
        chosen |= set(random.Random(1).sample(range(len(names)), RANDOM_MOMENTS))
    outcomes = set()
    for number in sorted(chosen):
        restore()
        process = run(processes, tiny, output, new, number)
        process.join()
        assert process.exitcode == -signal.SIGKILL, names[number]
        outcomes.add(found(output))
        if number % 3 == 0:
            export_package(tiny, output, NEXT)
            assert found(output) == "next" and beside(output) == {"tiny"}, names[number]
    assert outcomes == {"old" if replacing else None, "new"}


def test_killed_at_any_time(
    tiny: Path, old: Path, new: ExportOptions, output: Path, processes: ForkServerContext
) -> None:
    shutil.copytree(old, output)
    start = time.monotonic()
    run(processes, tiny, output, new).join()
    duration, times = time.monotonic() - start, random.Random(2)
    for _ in range(RANDOM_TIMES):
        process = run(processes, tiny, output, new)
        time.sleep(times.uniform(0, duration))
        process.kill()
        process.join()
        assert found(output) == "new"
    export_package(tiny, output, NEXT)
    assert found(output) == "next" and beside(output) == {"tiny"}


def test_a_package_that_was_set_aside_is_not_replaced_without_force(tiny: Path, old: Path, output: Path) -> None:
    """Killed between the two renames, and the next export may not replace anything."""
    shutil.copytree(old, output.with_name(".tiny.old"))
    shutil.copytree(old, output.with_name(".tiny.partial"))
    with pytest.raises(Exception, match="exists already; pass --force"):
        export_package(tiny, output, replace(NEXT, force=False))
    assert found(output) == "old" and beside(output) == {"tiny"}


def test_a_reader_in_the_moment_without_a_package_takes_the_old_one_back(old: Path, output: Path) -> None:
    shutil.copytree(old, output.with_name(".tiny.old"))
    assert Manifest.read(output).name == "old"
    assert beside(output) == {"tiny"}
