"""What a package says of itself, and the folders and files that are refused as packages."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape, write_checkpoint

from export.options import ExportOptions
from export.package import export_package
from runtime.errors import PackageError
from runtime.manifest import (
    DECODER,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER,
    VISION,
    Manifest,
    PackageFile,
    Source,
    describe_file,
)

Packages = Callable[[Shape, Task], Path]
Checkpoints = Callable[[Shape, Task], Path]
Content = dict[str, Any]


@pytest.fixture
def copied(package: Packages, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(package(TINY_2B, "embedding"), tmp_path / "package"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of another checkpoint of the same sizes: other weights and another epsilon in the decoder."""
    folder = tmp_path_factory.mktemp("other")
    write_checkpoint(folder / "checkpoint", TINY_2B, seed=1)
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["rms_norm_eps"] = 1e-5
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    export_package(folder / "checkpoint", folder / "package", ExportOptions("other"))
    return folder / "package"


def refusal(folder: Path) -> str:
    """The message of the error that reading raises, one sentence on one line."""
    with pytest.raises(PackageError) as caught:
        Manifest.read(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", f"--model {folder}"))
    return message


def content_of(folder: Path) -> Content:
    content: Content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return content


def rewrite(folder: Path, content: object) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")


def resealed(folder: Path, **changes: Any) -> Manifest:
    """The folder's manifest with changes and a fingerprint that fits them, written."""
    manifest = replace(Manifest.read(folder), **changes).sealed()
    manifest.write(folder)
    return manifest


def test_what_is_written_is_read(copied: Path) -> None:
    manifest = resealed(
        copied,
        name='模型 "quoted"',
        source=Source("somewhere", None, "0" * 64),
        matrices={"a.weight": "fp32", "b.weight[q]": "as-stored"},
    )
    assert Manifest.read(copied) == manifest
    manifest = resealed(copied, source=Source("somewhere", "main", "0" * 64))
    assert Manifest.read(copied) == manifest
    assert manifest.source.revision == "main"


def test_the_bytes_are_the_same_everywhere(copied: Path) -> None:
    raw = (copied / MANIFEST_NAME).read_bytes()
    Manifest.read(copied).write(copied)
    assert (copied / MANIFEST_NAME).read_bytes() == raw
    assert b"\r" not in raw and raw.endswith(b"}\n")


def test_the_fingerprint_is_that_of_every_field(copied: Path) -> None:
    manifest = Manifest.read(copied)
    assert manifest.sealed() == manifest
    changes: list[Content] = [
        {"name": "other"},
        {"task": "reranker"},
        {"text": replace(manifest.text, rope_theta=1.0)},
        {"files": manifest.files[:-1]},
        {"source": replace(manifest.source, revision="main")},
    ]
    prints = {replace(manifest, **change).sealed().fingerprint for change in changes}
    assert len(prints | {manifest.fingerprint}) == 1 + len(changes)


WRONG: dict[str, tuple[Callable[[Content], object], str]] = {
    "missing key": (lambda c: c.pop("precision"), r"manifest\.json holds \[.*expected the keys \[.*'precision'"),
    "extra key": (lambda c: c.update(colour="red"), r"manifest\.json holds \[.*'colour'.*expected the keys"),
    "missing nested key": (lambda c: c["text"].pop("head_dim"), r"manifest\.json: text holds .*'head_dim'"),
    "extra nested key": (lambda c: c["vision"].update(a=1), r"manifest\.json: vision holds \['a'"),
    "no section": (lambda c: c.update(tokens=None), r"manifest\.json: tokens holds None, expected the keys"),
    "text for a number": (lambda c: c["text"].update(head_dim="32"), r"text: head_dim is '32', expected int"),
    "fraction": (lambda c: c["text"].update(head_dim=32.0), r"text: head_dim is 32\.0, expected int"),
    "truth for a number": (lambda c: c["text"].update(head_dim=True), r"text: head_dim is True, expected int"),
    "truth for a fraction": (lambda c: c["defaults"].update(fps=True), r"defaults: fps is True, expected float"),
    "no float": (lambda c: c["defaults"].update(fps=10**400), r"defaults: fps is 1000.*, expected float"),
    "number for text": (lambda c: c.update(name=3), r"manifest\.json: name is 3, expected str"),
    "null": (lambda c: c.update(generator=None), r"generator is None, expected str"),
    "unknown task": (lambda c: c.update(task="chat"), r"task is 'chat', expected embedding or reranker"),
    "list for a dict": (lambda c: c.update(matrices=[]), r"matrices is \[\], expected dict"),
    "wrong in a dict": (lambda c: c["matrices"].update(a=1), r"matrices\.a is 1, expected str"),
    "number for a list": (lambda c: c["tokens"].update(special=1), r"tokens: special is 1, expected tuple"),
    "wrong in a list": (lambda c: c["tokens"].update(special=[1, "2"]), r"tokens: special\[1\] is '2', expected int"),
    "wrong file": (lambda c: c["files"][1].pop("size"), r"files\[1\] holds \['name', 'sha256'\]"),
    "wrong revision": (lambda c: c["source"].update(revision=1), r"source: revision is 1, expected str"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_manifest_with_wrong_content(copied: Path, change: Callable[[Content], object], message: str) -> None:
    content = content_of(copied)
    change(content)
    rewrite(copied, content)
    with pytest.raises(PackageError, match=message):
        Manifest.read(copied)
    assert "export the package again" in refusal(copied)


@pytest.mark.parametrize("version", [None, 0, FORMAT_VERSION + 1, str(FORMAT_VERSION)])
def test_another_format_is_named(copied: Path, version: object) -> None:
    rewrite(copied, {"format_version": version, "whatever": "it holds"})
    assert f"has package format {version}, this runtime reads format {FORMAT_VERSION}" in refusal(copied)


@pytest.mark.parametrize("content", [b"{not json", b"\xff\xfe", b"", b"[" * 10**5], ids=lambda raw: ascii(raw[:9]))
def test_a_manifest_that_is_no_json(copied: Path, content: bytes) -> None:
    (copied / MANIFEST_NAME).write_bytes(content)
    assert f"{copied / MANIFEST_NAME} cannot be read" in refusal(copied)


@pytest.mark.parametrize("content", [[], "text", None])
def test_a_manifest_that_is_no_object(copied: Path, content: object) -> None:
    rewrite(copied, content)
    assert "has package format None" in refusal(copied)


def test_a_change_after_the_export_is_noticed(copied: Path) -> None:
    content = content_of(copied)
    content["text"]["rope_theta"] = 10000.0
    rewrite(copied, content)
    assert "was changed after the export" in refusal(copied)


@pytest.mark.parametrize("name", [DECODER, f"{DECODER}.data", VISION, f"{VISION}.data", TOKENIZER])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert f"{copied / name} is missing from the package" in refusal(copied)


@pytest.mark.parametrize("name", [DECODER, f"{DECODER}.data", VISION, f"{VISION}.data", TOKENIZER])
def test_a_truncated_file_shows_both_sizes(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1])
    assert f"{copied / name} has {len(content) - 1} bytes where the manifest says {len(content)}" in refusal(copied)


def test_a_graph_of_another_checkpoint_is_found_at_load(copied: Path, other: Path) -> None:
    shutil.copyfile(other / DECODER, copied / DECODER)
    assert (copied / DECODER).stat().st_size == (other / DECODER).stat().st_size
    assert f"{copied / DECODER} has SHA-256 {describe_file(other / DECODER).sha256[:12]} where" in refusal(copied)


@pytest.mark.parametrize("name", [f"{DECODER}.data", f"{VISION}.data"])
def test_weights_of_another_checkpoint_are_found_by_check(copied: Path, other: Path, name: str) -> None:
    Manifest.read(copied).check(copied)
    shutil.copyfile(other / name, copied / name)
    manifest = Manifest.read(copied)  # gigabytes are not hashed at every load
    with pytest.raises(PackageError, match=r"onnx\.data has SHA-256 .* damaged or from another package"):
        manifest.check(copied)


def test_a_file_is_described_by_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_file(tmp_path / "abc") == PackageFile("abc", 3, sha256)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist; pass the folder" in refusal(tmp_path / "gone")


def test_a_file_instead_of_a_folder(copied: Path) -> None:
    assert f"{copied / DECODER} is a file; pass the folder" in refusal(copied / DECODER)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    assert f"{tmp_path} has no manifest.json; pass the folder" in refusal(tmp_path)


def test_a_checkpoint_folder_leads_to_the_export_command(checkpoint: Checkpoints) -> None:
    folder = checkpoint(TINY_2B, "embedding")
    message = refusal(folder)
    assert "is a checkpoint, not a package" in message and message.endswith(f"python -m export --model {folder}")
