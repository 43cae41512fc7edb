"""Packages and options that cannot be used, found when the package is opened and named."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import FetchLimits, InputError, PackageError, Qwen3VLEmbedder, Qwen3VLReranker
from runtime.commands.cli import main
from runtime.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest

Folders = Callable[[Shape, Task], Path]
FILES = ("decoder.onnx", "decoder.onnx.data", "vision.onnx", "vision.onnx.data", "tokenizer.json")
GRAPHS = ("decoder.onnx", "vision.onnx")


@pytest.fixture
def copy(package: Folders, tmp_path: Path) -> Path:
    """An embedding package that a test may damage."""
    return Path(shutil.copytree(package(TINY_2B, "embedding"), tmp_path / "package"))


def refusal(folder: Any, **options: Any) -> str:
    """The message of the PackageError that opening raises."""
    with pytest.raises(PackageError) as caught:
        Qwen3VLEmbedder(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_and_truncated_files_are_named(name: str, copy: Path) -> None:
    path = copy / name
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    assert refusal(copy) == (
        f"{path} has {size - 1} bytes where the manifest says {size}: truncated or from another package; "
        "copy it again or export the package again."
    )
    path.unlink()
    assert refusal(copy) == f"{path} is missing from the package; copy it again or export the package again."


@pytest.mark.parametrize("name", FILES)
def test_foreign_files_are_named(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / name
    with path.open("r+b") as file:  # the size stays
        file.seek(-9, 2)
        last = file.read(1)
        file.seek(-9, 2)
        file.write(bytes([last[0] ^ 1]))
    sentence = f"{path} has SHA-256 "
    if name in GRAPHS:
        assert refusal(copy).startswith(sentence)
    assert main(["check", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {sentence}")
    assert captured.err.endswith("damaged or from another package; copy it again or export the package again.\n")
    assert captured.out == ""


def test_a_tokenizer_that_panics_is_named(copy: Path) -> None:
    path = copy / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    place = whole.index('"single"')  # of the post-processor
    path.write_text(whole[:place] + whole[place:].replace("endoftext", "endoftexu", 1), encoding="utf-8", newline="\n")
    assert refusal(copy) == f"{path} cannot be read (no entry found for key); export the package again."


def test_other_formats_and_changed_manifests_are_refused(copy: Path) -> None:
    path = copy / MANIFEST_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "format_version": FORMAT_VERSION + 1}), encoding="utf-8")
    assert refusal(copy) == (
        f"{path} has package format {FORMAT_VERSION + 1}, this runtime reads format {FORMAT_VERSION}; "
        "export the package again with the installed version."
    )
    path.write_text(json.dumps({**content, "precision": "int8"}), encoding="utf-8")
    assert refusal(copy).startswith(f"{path} was changed after the export")
    path.write_text(json.dumps(content)[:-40], encoding="utf-8")
    assert refusal(copy).startswith(f"{path} cannot be read (")


def test_what_is_no_package_is_refused(tmp_path: Path, checkpoint: Folders) -> None:
    pass_it = "pass the folder that `python -m export --model ...` wrote."
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'} does not exist; {pass_it}"
    assert refusal(str(tmp_path)) == f"{tmp_path} has no manifest.json; {pass_it}"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'} is a file; {pass_it}"
    folder = checkpoint(TINY_2B, "embedding")
    assert refusal(folder) == (
        f"{folder} is a checkpoint, not a package (no manifest.json); "
        f"make a package of it first: python -m export --model {folder}"
    )


def test_the_wrong_class_is_named(package: Folders) -> None:
    embedding, reranker = package(TINY_2B, "embedding"), package(TINY_2B, "reranker")
    assert refusal(reranker) == (
        f"{reranker} is a reranker package; open it with Qwen3VLReranker or `python -m runtime rerank`."
    )
    with pytest.raises(PackageError) as caught:
        Qwen3VLReranker(embedding)
    assert str(caught.value) == (
        f"{embedding} is an embedding package; open it with Qwen3VLEmbedder or `python -m runtime embed`."
    )


def test_other_providers_are_refused(copy: Path) -> None:
    assert refusal(copy, providers=["CUDAExecutionProvider"]) == (
        f"{copy} was made for CPUExecutionProvider, not for CUDAExecutionProvider; export it with --target cuda."
    )
    assert refusal(copy, providers=["CPUExecutionProvider", "XnnpackExecutionProvider"]) == (
        f"{copy} was made for CPUExecutionProvider, not for XnnpackExecutionProvider; "
        "pass providers=['CPUExecutionProvider']."
    )


def test_a_package_for_another_target_is_refused(copy: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider that must be absent")
    replace(Manifest.read(copy), target="cuda").sealed().write(copy)
    assert refusal(copy).startswith(f"{copy} needs CUDAExecutionProvider, onnxruntime here has ")


POSITIVE, WHOLE = "expected a positive number.", "expected a positive whole number."
OPTIONS: list[tuple[str, Any, str]] = [
    ("dimensions", 0, "expected a whole number from 1 to 64."),
    ("dimensions", 65, "expected a whole number from 1 to 64."),
    ("dimensions", True, "expected a whole number from 1 to 64."),
    ("batch_tokens", 0, WHOLE),
    ("batch_tokens", 2.0, WHOLE),
    ("threads", 0, WHOLE),
    ("threads", -1, WHOLE),
    ("threads", 5000, "expected at most 1,024; leave it out for all CPUs there are."),
    ("max_length", 0, WHOLE),
    ("max_length", 99.5, WHOLE),
    ("max_frames", -4, WHOLE),
    ("total_pixels", 0, WHOLE),
    ("min_pixels", -1, WHOLE),
    ("fps", -1, POSITIVE),
    ("fps", float("nan"), POSITIVE),
    ("fps", float("inf"), POSITIVE),
    ("default_instruction", 3, "expected a string."),
    ("special_tokens", "forbid", "expected one of allow, escape, refuse."),
    ("fetch", 3, "expected FetchLimits such as FetchLimits(timeout=5)."),
    ("providers", [], "expected a list such as ['CPUExecutionProvider']."),
    ("providers", "CPUExecutionProvider", "expected a list such as ['CPUExecutionProvider']."),
]


@pytest.mark.parametrize(("name", "value", "expected"), OPTIONS, ids=[f"{name}={value}" for name, value, _ in OPTIONS])
def test_options_out_of_range_are_named(name: str, value: Any, expected: str, package: Folders) -> None:
    folder = package(TINY_2B, "embedding")
    with pytest.raises(InputError) as caught:
        Qwen3VLEmbedder(folder, **{name: value})
    assert str(caught.value) == f"{name} is {value!r}, {expected}"
    if value == 0 and name != "dimensions":
        with pytest.raises(InputError) as caught:
            Qwen3VLReranker(package(TINY_2B, "reranker"), **{name: value})
        assert str(caught.value) == f"{name} is {value!r}, {expected}"


def test_pixel_budgets_must_leave_room(package: Folders) -> None:
    with pytest.raises(InputError, match="max_pixels 4000 is below min_pixels 4096"):
        Qwen3VLEmbedder(package(TINY_2B, "embedding"), max_pixels=4000)


@pytest.mark.parametrize("name", ["timeout", "max_bytes", "max_image_pixels"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "5"])
def test_limits_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        FetchLimits(**{name: value})
    assert str(caught.value) == f"FetchLimits.{name} is {value!r}; give a number above zero."


@pytest.mark.parametrize("opened", [Qwen3VLEmbedder, Qwen3VLReranker])
def test_torch_keywords_are_answered(opened: Any, package: Folders) -> None:
    folder = package(TINY_2B, "embedding" if opened is Qwen3VLEmbedder else "reranker")
    with pytest.warns(UserWarning) as caught:
        opened(folder, torch_dtype="bfloat16", attn_implementation="flash_attention_2", device_map="auto")
    assert [str(each.message) for each in caught] == [
        "torch_dtype has no effect here: the precision was chosen at export (--fp32, --bf16, --int8, --int4).",
        "attn_implementation has no effect here: onnxruntime's fused attention is always used.",
        "device_map has no effect here: the device was chosen at export (--target cpu or cuda).",
    ]
    assert {each.filename for each in caught} == {__file__}
    with warnings.catch_warnings(), pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        warnings.simplefilter("error")
        opened(folder, torch_dtype="bfloat16", batchsize=4)
