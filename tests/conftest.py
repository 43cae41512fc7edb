"""Fixtures shared by all tests: tiny random checkpoints and their packages, each written once a session."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from outliers import CALM, write_outliers
from qwen_tokenizer import Task
from random_checkpoint import Shape, write_checkpoint

from export.package import ExportOptions, export_package
from quant.kernels import CUDA, KERNELS
from runtime.target import TARGETS

# "random": bfloat16, at full gain; "calm": float32, layers that add as little as trained ones do; "outliers": the
# calm one with outlier channels, the same function.
Weights = Literal["random", "calm", "outliers"]
# The longest first: started last, one of them would keep one process busy while the others have ended.
LONGEST = ("test_real_weights.py", "test_quantised.py", "test_outliers.py", "test_killed_export.py", "test_golden.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of LONGEST, then the others, each in its own order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(TINY_2B, "embedding", weights="calm")`: the folder of that checkpoint, not to be written to."""

    @cache
    def write(shape: Shape, task: Task, weights: Weights) -> Path:
        folder = tmp_path_factory.mktemp(f"checkpoint-{task}")
        if weights == "outliers":
            write_outliers(write(shape, task, "calm"), folder, shape)
        elif weights == "calm":
            write_checkpoint(folder, shape, task=task, dtype="float32", gain=CALM)
        else:
            write_checkpoint(folder, shape, task=task)
        return folder

    def find(shape: Shape, task: Task, *, weights: Weights = "random") -> Path:
        return write(shape, task, weights)

    return find


@pytest.fixture(scope="session")
def package(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`package(TINY_2B, "embedding", "int8")`: that package of that checkpoint, not to be written to.

    The precision is float32 by default; quantised ones are calibrated on the built-in samples.
    """

    @cache
    def export(shape: Shape, task: Task, precision: str, weights: Weights, block: int | None) -> Path:
        output = tmp_path_factory.mktemp("packages") / f"{task}-{precision}"
        options = ExportOptions("tiny", precision, block=block, task=task)
        export_package(checkpoint(shape, task, weights=weights), output, options)
        return output

    def find(
        shape: Shape, task: Task, precision: str = "fp32", *, weights: Weights = "random", block: int | None = None
    ) -> Path:
        return export(shape, task, precision, weights, block)

    return find


@pytest.fixture(scope="session")
def cuda_package(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`cuda_package(TINY_2B, "embedding", "bf16")`: that package for CUDA, not to be written to.

    With `float32=True` its activations are float32, which the CPU can run: the same graph with another type in it.
    """

    @cache
    def export(shape: Shape, task: Task, precision: str, weights: Weights, float32: bool) -> Path:
        output = tmp_path_factory.mktemp("cuda") / f"{task}-{precision}"
        options = ExportOptions("tiny", precision, "cuda", task)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(KERNELS, "cuda", CUDA.in_float32() if float32 else CUDA)
            export_package(checkpoint(shape, task, weights=weights), output, options)
        return output

    def find(
        shape: Shape, task: Task, precision: str = "bf16", *, weights: Weights = "random", float32: bool = False
    ) -> Path:
        return export(shape, task, precision, weights, float32)

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
