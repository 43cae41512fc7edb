"""The score row of reranker packages: which table it is taken from, and how."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from exports import PLAIN, Tensors, changed, refusal
from numpy.typing import NDArray
from onnx_files import stored
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape
from safetensors.numpy import load_file

from export.checkpoint import SINGLE_FILE
from export.package import ExportOptions, export_package
from runtime.manifest import DECODER

Packages = Callable[[Shape, Task], Path]
Checkpoints = Callable[[Shape, Task], Path]


def score_row(package: Path) -> NDArray[np.float32]:
    [row] = dict(stored(package, DECODER))["score.weight"]
    assert row.dtype == np.float32
    return np.asarray(row)


def difference_of(table: NDArray[np.generic]) -> NDArray[np.float32]:
    """yes - no, raised to float32 first."""
    rows = table.astype(np.float32)
    return np.asarray(rows[9693] - rows[2152])


@pytest.mark.parametrize(
    ("shape", "name"),
    [(TINY_2B, "model.language_model.embed_tokens.weight"), (TINY_8B, "lm_head.weight")],
    ids=["tied", "untied"],
)
def test_the_score_is_yes_minus_no(checkpoint: Checkpoints, package: Packages, shape: Shape, name: str) -> None:
    table = load_file(checkpoint(shape, "reranker") / SINGLE_FILE)[name]
    found = score_row(package(shape, "reranker"))
    assert np.array_equal(found, difference_of(table))
    # In bfloat16 the difference would have lost bits.
    assert not np.array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_tied_head_is_never_read(checkpoint: Checkpoints, tmp_path: Path) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = np.zeros((7, 7), np.float32)

    folder = changed(checkpoint(TINY_2B, "reranker"), tmp_path / "changed", add_head)
    export_package(folder, tmp_path / "package", PLAIN)
    table = load_file(folder / SINGLE_FILE)["model.language_model.embed_tokens.weight"]
    assert np.array_equal(score_row(tmp_path / "package"), difference_of(table))


def test_an_untied_head_must_be_there_for_scores_only(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = changed(
        checkpoint(TINY_8B, "reranker"), tmp_path / "changed", lambda tensors: tensors.pop("lm_head.weight")
    )
    assert "has no tensor lm_head.weight" in refusal(folder, tmp_path / "package")
    assert export_package(folder, tmp_path / "package", ExportOptions("tiny", task="embedding")).task == "embedding"
