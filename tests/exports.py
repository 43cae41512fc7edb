"""Running exports in tests: damaged checkpoints in, refusals out."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from export.checkpoint import SINGLE_FILE
from export.options import ExportOptions
from export.package import export_package
from runtime.errors import CheckpointError

Tensors = dict[str, NDArray[np.generic]]

PLAIN = ExportOptions("tiny", golden="none")


def beside(output: Path) -> set[str]:
    return {path.name for path in output.parent.iterdir()}


def refusal(folder: Path, output: Path, options: ExportOptions = PLAIN) -> str:
    """The message of the error that the export raises; it changes nothing that was there."""
    before = beside(output)
    with pytest.raises(CheckpointError) as caught:
        export_package(folder, output, options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert beside(output) == before
    return message


def changed(folder: Path, copy: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a checkpoint folder with other tensors."""
    shutil.copytree(folder, copy)
    tensors = load_file(copy / SINGLE_FILE)
    change(tensors)
    save_file(tensors, copy / SINGLE_FILE)
    return copy
