"""Fixtures shared by all tests: tiny random checkpoints and their packages, each written once for all processes."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from checkpoint_shapes import SHAPES
from filelock import FileLock
from outliers import CALM, write_outliers
from qwen_tokenizer import Task
from random_checkpoint import Shape, write_checkpoint

from export.options import ExportOptions
from export.package import export_package
from quant.kernels import CUDA, KERNELS
from runtime.graphs.target import TARGETS

# "random": bfloat16, at full gain; "calm": float32, layers that add as little as trained ones do; "outliers": the
# calm one with outlier channels, the same function.
Weights = Literal["random", "calm", "outliers"]
NAMES = {shape: name for name, shape in SHAPES.items()}
# The longest first: started last, one of them would keep one process busy while the others have ended.
LONGEST = ("test_real_weights.py", "test_quantised.py", "test_outliers.py", "test_killed_export.py", "test_golden.py")


def pytest_configure(config: pytest.Config) -> None:
    """Each of several processes keeps to a processor of its own: all would start threads for every one of them.

    The long assertions have every processor, and as many threads as a user.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and config.option.markexpr == "not full" and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of LONGEST, then the others, each in its own order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`once(make, *words)`: a folder that `make(folder)` fills, in the first process that wants one of these words."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def find(make: Callable[[Path], object], *words: object) -> Path:
        folder = shared / "-".join(map(str, words))
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                begun = folder.with_name(f"{folder.name}.begun")
                make(begun)
                begun.rename(folder)
        return folder

    return find


@pytest.fixture(scope="session")
def checkpoint(once: Callable[..., Path]) -> Callable[..., Path]:
    """`checkpoint(TINY_2B, "embedding", weights="calm")`: the folder of that checkpoint, not to be written to."""

    def find(shape: Shape, task: Task, *, weights: Weights = "random") -> Path:
        def make(folder: Path) -> None:
            if weights == "outliers":
                folder.mkdir()
                write_outliers(find(shape, task, weights="calm"), folder, shape)
            elif weights == "calm":
                write_checkpoint(folder, shape, task=task, dtype="float32", gain=CALM)
            else:
                write_checkpoint(folder, shape, task=task)

        return once(make, "checkpoint", NAMES[shape], task, weights)

    return find


@pytest.fixture(scope="session")
def package(checkpoint: Callable[..., Path], once: Callable[..., Path]) -> Callable[..., Path]:
    """`package(TINY_2B, "embedding", "int8")`: that package of that checkpoint, not to be written to.

    The precision is float32 by default; quantised ones are calibrated on the built-in samples.
    """

    def find(
        shape: Shape, task: Task, precision: str = "fp32", *, weights: Weights = "random", block: int | None = None
    ) -> Path:
        source, options = (
            checkpoint(shape, task, weights=weights),
            ExportOptions("tiny", precision, block=block, task=task),
        )
        return once(
            lambda folder: export_package(source, folder, options), NAMES[shape], task, precision, weights, block
        )

    return find


@pytest.fixture(scope="session")
def cuda_package(checkpoint: Callable[..., Path], once: Callable[..., Path]) -> Callable[..., Path]:
    """`cuda_package(TINY_2B, "embedding", "bf16")`: that package for CUDA, not to be written to.

    With `float32=True` its activations are float32, which the CPU can run: the same graph with another type in it.
    """

    def find(
        shape: Shape, task: Task, precision: str = "bf16", *, weights: Weights = "random", float32: bool = False
    ) -> Path:
        source, options = checkpoint(shape, task, weights=weights), ExportOptions("tiny", precision, "cuda", task)

        def make(folder: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(KERNELS, "cuda", CUDA.in_float32() if float32 else CUDA)
                export_package(source, folder, options)

        return once(make, "cuda", NAMES[shape], task, precision, weights, "float32" if float32 else "")

    return find


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages for CUDA open on the CPU, and are used as on CUDA otherwise."""
    cpu = TARGETS["cpu"]
    monkeypatch.setitem(TARGETS, "cuda", replace(TARGETS["cuda"], provider=cpu.provider, arena=cpu.arena))
    yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT arrives, here and in what is started: a shell lets processes in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
