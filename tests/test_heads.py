"""The score row of reranker packages: which table it is taken from, and how."""

import json
import shutil
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
from export.heads import LM_HEAD
from export.options import ExportOptions
from export.package import export_package
from quant.selection import TOKEN_TABLE
from runtime.manifest import DECODER

Packages = Callable[[Shape, Task], Path]
Checkpoints = Callable[[Shape, Task], Path]


def score_row(package: Path) -> NDArray[np.float32]:
    [row] = dict(stored(package, DECODER))["score.weight"]
    assert row.dtype == np.float32
    return np.asarray(row)


def untied_with(checkpoint: Checkpoints, tmp_path: Path, outer: bool | None, inner: bool | None) -> Path:
    """A reranker whose lm_head.weight is no copy of its token table, and what its config.json states of that."""
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint(TINY_8B, "reranker"), folder)
    state_ties(folder, outer, inner)
    return folder


def state_ties(folder: Path, outer: bool | None, inner: bool | None) -> None:
    """Write tie_word_embeddings at both levels of config.json; None leaves it out."""
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for section, value in ((content, outer), (content["text_config"], inner)):
        section["tie_word_embeddings"] = value
        if value is None:
            del section["tie_word_embeddings"]
    path.write_text(json.dumps(content), encoding="utf-8")


def difference_of(table: NDArray[np.generic]) -> NDArray[np.float32]:
    """yes - no, raised to float32 first."""
    rows = table.astype(np.float32)
    return np.asarray(rows[9693] - rows[2152])


@pytest.mark.parametrize(
    ("shape", "name"),
    [(TINY_2B, TOKEN_TABLE), (TINY_8B, LM_HEAD)],
    ids=["tied", "untied"],
)
def test_the_score_is_yes_minus_no(checkpoint: Checkpoints, package: Packages, shape: Shape, name: str) -> None:
    table = load_file(checkpoint(shape, "reranker") / SINGLE_FILE)[name]
    found = score_row(package(shape, "reranker"))
    assert np.array_equal(found, difference_of(table))
    # In bfloat16 the difference would have lost bits.
    assert not np.array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("outer", [True, False, None])
def test_a_tied_head_with_other_rows_is_refused(checkpoint: Checkpoints, tmp_path: Path, outer: bool | None) -> None:
    """transformers 4.57 scores with the token table, 5 with what it finds."""
    folder = untied_with(checkpoint, tmp_path, outer, inner=True)
    message = refusal(folder, tmp_path / "package")
    assert "transformers 4.57 scores with the table and transformers 5 with lm_head.weight" in message
    assert "set tie_word_embeddings to false" in message and "or remove that tensor" in message
    assert export_package(folder, tmp_path / "package", ExportOptions("tiny", task="embedding")).task == "embedding"


@pytest.mark.parametrize("inner", [False, None])
@pytest.mark.parametrize("outer", [True, False, None])
def test_a_head_that_is_there_scores_unless_the_text_config_ties_it(
    checkpoint: Checkpoints, tmp_path: Path, outer: bool | None, inner: bool | None
) -> None:
    folder = untied_with(checkpoint, tmp_path, outer, inner)
    export_package(folder, tmp_path / "package", PLAIN)
    assert np.array_equal(score_row(tmp_path / "package"), difference_of(load_file(folder / SINGLE_FILE)[LM_HEAD]))


def test_a_copy_of_the_tied_rows_is_left_out(checkpoint: Checkpoints, tmp_path: Path) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors[LM_HEAD] = tensors[TOKEN_TABLE].copy()
        tensors[LM_HEAD][5] = 0  # a token that is not scored

    folder = changed(checkpoint(TINY_2B, "reranker"), tmp_path / "changed", add_head)
    export_package(folder, tmp_path / "package", PLAIN)
    assert np.array_equal(score_row(tmp_path / "package"), difference_of(load_file(folder / SINGLE_FILE)[TOKEN_TABLE]))


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (True, None), (False, True), (None, True)])
def test_without_a_head_one_statement_is_enough(
    checkpoint: Checkpoints, tmp_path: Path, outer: bool | None, inner: bool | None
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint(TINY_2B, "reranker"), folder)
    state_ties(folder, outer, inner)
    export_package(folder, tmp_path / "package", PLAIN)
    assert np.array_equal(score_row(tmp_path / "package"), difference_of(load_file(folder / SINGLE_FILE)[TOKEN_TABLE]))


def test_an_untied_head_must_be_there_for_scores_only(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_8B, "reranker"), tmp_path / "changed", lambda tensors: tensors.pop(LM_HEAD))
    assert "has no tensor lm_head.weight" in refusal(folder, tmp_path / "package")
    assert export_package(folder, tmp_path / "package", ExportOptions("tiny", task="embedding")).task == "embedding"
