"""A checkpoint's own defaults.json: what it changes in a package, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import PLAIN
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from refusals import refusal

from export.blueprint import DEFAULTS, DEFAULTS_NAME, read_defaults
from export.package import export_package
from export.source import find_checkpoint
from export.verify import verify_package
from runtime import CheckpointError, Qwen3VLEmbedder
from runtime.manifest import Manifest

Checkpoints = Callable[[Shape, Task], Path]


@pytest.fixture
def folder(checkpoint: Checkpoints, tmp_path: Path) -> Path:
    copy: Path = shutil.copytree(checkpoint(TINY_2B, "embedding"), tmp_path / "checkpoint")
    (copy / DEFAULTS_NAME).write_text(json.dumps({"max_pixels": 96 * 96, "default_instruction": "Find it."}))
    return copy


def test_they_reach_the_package_and_the_reference(folder: Path, tmp_path: Path) -> None:
    export_package(folder, tmp_path / "package", PLAIN)
    defaults = Manifest.read(tmp_path / "package").defaults
    assert (defaults.max_pixels, defaults.default_instruction) == (9216, "Find it.")
    assert defaults.max_length == DEFAULTS["embedding"].max_length
    options = Qwen3VLEmbedder(tmp_path / "package").package.encoder.options
    assert (options.max_pixels, options.default_instruction) == (9216, "Find it.")
    differences = verify_package(folder, tmp_path / "package", lambda text: None)
    assert differences and all(each.passed for each in differences)


def test_without_the_file_they_are_the_references(checkpoint: Checkpoints) -> None:
    assert read_defaults(checkpoint(TINY_2B, "reranker"), "reranker") == DEFAULTS["reranker"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "holds [1], expected an object with some of max_length, min_pixels"),
        ('{"pixels": 3}', "holds {'pixels': 3}, expected an object with some of"),
        ('{"max_pixels": 0}', "max_pixels is 0, expected a positive int."),
        ('{"max_pixels": 2.5}', "max_pixels is 2.5, expected a positive int."),
        ('{"max_pixels": true}', "max_pixels is True, expected a positive int."),
        ('{"fps": "fast"}', "fps is 'fast', expected a positive float."),
        ('{"default_instruction": 1}', "default_instruction is 1, expected a text."),
        ("{", "cannot be read"),
        pytest.param("[" * 10**5, "cannot be read", id="deep"),
    ],
)
def test_others_are_refused(folder: Path, content: str, reason: str) -> None:
    path = folder / DEFAULTS_NAME
    path.write_text(content)
    sentence = refusal(lambda: read_defaults(folder, "embedding"), CheckpointError)
    assert sentence.startswith(str(path)) and reason in sentence


def test_the_small_model_looks_at_small_pictures() -> None:
    assert read_defaults(find_checkpoint("tiny"), "embedding").max_pixels == 96 * 96
    assert read_defaults(find_checkpoint("tiny-reranker"), "reranker").max_pixels == 128 * 128
