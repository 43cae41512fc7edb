"""Fixtures shared by all tests: tiny random checkpoints, each written once a session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from qwen_tokenizer import Task
from random_checkpoint import Shape, write_checkpoint

from export.package import ExportOptions, export_package


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape, Task], Path]:
    """`checkpoint(TINY_2B, "embedding")`: the folder of that checkpoint, not to be written to."""

    @cache
    def write(shape: Shape, task: Task) -> Path:
        folder = tmp_path_factory.mktemp(f"checkpoint-{task}")
        write_checkpoint(folder, shape, task=task)
        return folder

    return write


@pytest.fixture(scope="session")
def package(
    checkpoint: Callable[[Shape, Task], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Shape, Task], Path]:
    """`package(TINY_2B, "embedding")`: the float32 package of that checkpoint, not to be written to."""

    @cache
    def export(shape: Shape, task: Task) -> Path:
        output = tmp_path_factory.mktemp("packages") / f"{task}-fp32"
        export_package(checkpoint(shape, task), output, ExportOptions("tiny", task=task))
        return output

    return export
