"""Folders that transformers and sentence-transformers write of a model: other tensor names, another config.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exports import PLAIN, Tensors, changed, refusal
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape, write_json

from export.heads import LM_HEAD
from export.package import export_package
from export.reference import ReferenceReranker
from export.reference_prompt import ReferenceOptions
from export.verify import verify_package
from runtime.manifest import Manifest

Factory = Callable[[Shape, Task], Path]


def bare(tensors: Tensors) -> None:
    """The names of Qwen3VLModel, which has no head."""
    tensors.pop(LM_HEAD, None)
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def differences(folder: Path, package: Path) -> list[object]:
    """What `--verify` finds."""
    return [each for each in verify_package(folder, package, lambda text: None) if not each.passed]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def respell(folder: Path) -> None:
    """The settings of a folder as transformers 5 writes them."""
    config, tokenizer = read(folder / "config.json"), read(folder / "tokenizer_config.json")
    text, vision = config["text_config"], config["vision_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    vision["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    write_json(folder / "config.json", config | {"transformers_version": "5.24.0"})
    tokenizer["extra_special_tokens"] = tokenizer.pop("additional_special_tokens")
    write_json(folder / "tokenizer_config.json", tokenizer)
    image, video = (folder / f"{kind}preprocessor_config.json" for kind in ("", "video_"))
    processor = {"processor_class": "Qwen3VLProcessor", "image_processor": read(image), "video_processor": read(video)}
    write_json(folder / "processor_config.json", processor)
    image.unlink()
    video.unlink()


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "embedding"), (TINY_8B, "reranker")])
def test_the_reference_reads_what_transformers_5_wrote(
    checkpoint: Factory, package: Factory, tmp_path: Path, shape: Shape, task: Task
) -> None:
    folder, copy = tmp_path / "saved", tmp_path / "package"
    shutil.copytree(checkpoint(shape, task), folder)
    shutil.copytree(package(shape, task), copy)  # verify.json is written there
    respell(folder)
    assert differences(folder, copy) == []


def test_the_reference_keeps_special_tokens_of_either_spelling(checkpoint: Factory, tmp_path: Path) -> None:
    published, saved = checkpoint(TINY_2B, "reranker"), tmp_path / "saved"
    shutil.copytree(published, saved)
    respell(saved)
    query, document = {"text": "a duck"}, {"text": "word <|box_start|> " * 20}  # longer than what may stay
    options = ReferenceOptions(max_length=40)
    cut = [ReferenceReranker(each, options).stages(query, document).input_ids.tolist() for each in (published, saved)]
    assert cut[0] == cut[1] and cut[0].count(151648) == 20


@pytest.mark.parametrize("inner", [False, None])
def test_the_reference_ties_a_head_that_the_outer_statement_ties(
    checkpoint: Factory, package: Factory, tmp_path: Path, inner: bool | None
) -> None:
    folder, copy = tmp_path / "saved", tmp_path / "package"
    shutil.copytree(checkpoint(TINY_2B, "reranker"), folder)
    shutil.copytree(package(TINY_2B, "reranker"), copy)
    config = read(folder / "config.json")
    config["text_config"]["tie_word_embeddings"] = inner
    write_json(folder / "config.json", config)
    assert differences(folder, copy) == []


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "embedding"), (TINY_8B, "embedding"), (TINY_2B, "reranker")])
def test_the_bare_model_gives_the_package_of_the_whole_one(
    checkpoint: Factory, package: Factory, tmp_path: Path, shape: Shape, task: Task
) -> None:
    folder = changed(checkpoint(shape, task), tmp_path / "bare", bare)
    written, whole = export_package(folder, tmp_path / "package", PLAIN), Manifest.read(package(shape, task))
    models = [(file.name, file.sha256) for file in whole.files if "onnx" in file.name]
    assert [(file.name, file.sha256) for file in written.files if "onnx" in file.name] == models
    assert differences(folder, tmp_path / "package") == []


def test_the_bare_model_of_an_untied_reranker_has_no_head(checkpoint: Factory, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_8B, "reranker"), tmp_path / "bare", bare)
    assert f"has no tensor {LM_HEAD}" in refusal(folder, tmp_path / "package")
