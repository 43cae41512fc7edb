"""Folders that transformers and sentence-transformers write of a model: other tensor names, another config.json."""

from collections.abc import Callable
from pathlib import Path

import pytest
from exports import PLAIN, Tensors, changed, refusal
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from export.heads import LM_HEAD
from export.package import export_package
from export.verify import verify_package
from runtime.manifest import Manifest

Factory = Callable[[Shape, Task], Path]


def bare(tensors: Tensors) -> None:
    """The names of Qwen3VLModel, which has no head."""
    tensors.pop(LM_HEAD, None)
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "embedding"), (TINY_8B, "embedding"), (TINY_2B, "reranker")])
def test_the_bare_model_gives_the_package_of_the_whole_one(
    checkpoint: Factory, package: Factory, tmp_path: Path, shape: Shape, task: Task
) -> None:
    folder = changed(checkpoint(shape, task), tmp_path / "bare", bare)
    written, whole = export_package(folder, tmp_path / "package", PLAIN), Manifest.read(package(shape, task))
    models = [(file.name, file.sha256) for file in whole.files if "onnx" in file.name]
    assert [(file.name, file.sha256) for file in written.files if "onnx" in file.name] == models
    failed = [each for each in verify_package(folder, tmp_path / "package", lambda text: None) if not each.passed]
    assert not failed


def test_the_bare_model_of_an_untied_reranker_has_no_head(checkpoint: Factory, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_8B, "reranker"), tmp_path / "bare", bare)
    assert f"has no tensor {LM_HEAD}" in refusal(folder, tmp_path / "package")
