"""Exporting a checkpoint folder into a package folder: what comes out, and that nothing half does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import PLAIN, beside, refusal
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from export.blueprint import DEFAULTS
from export.checkpoint import Checkpoint
from export.folder import put_in_place
from export.options import ExportOptions, Reporter
from export.package import export_package
from runtime.errors import CheckpointError
from runtime.manifest import DECODER, FORMAT_VERSION, GOLDEN, MANIFEST_NAME, TOKENIZER, VISION, Manifest
from runtime.version import VERSION

Packages = Callable[[Shape, Task], Path]
Checkpoints = Callable[[Shape, Task], Path]

FORCE = ExportOptions("tiny", force=True)


@pytest.fixture
def tiny(checkpoint: Checkpoints) -> Path:
    return checkpoint(TINY_2B, "embedding")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where to export to; its parent folder is there and empty."""
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages" / "tiny"


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "embedding"), (TINY_8B, "reranker")])
def test_what_a_package_says_of_itself(checkpoint: Checkpoints, output: Path, shape: Shape, task: Task) -> None:
    options = ExportOptions("some/name", revision="main")
    manifest = export_package(checkpoint(shape, task), output, options)
    assert manifest == Manifest.read(output)
    manifest.check(output)
    assert beside(output) == {"tiny"}
    names = [DECODER, f"{DECODER}.data", VISION, f"{VISION}.data", TOKENIZER, GOLDEN]
    assert [file.name for file in manifest.files] == names
    assert {path.name for path in output.iterdir()} == {*names, MANIFEST_NAME}
    assert (output / TOKENIZER).read_bytes() == (checkpoint(shape, task) / TOKENIZER).read_bytes()
    assert (manifest.format_version, manifest.generator) == (FORMAT_VERSION, f"qwen3vl-edge {VERSION}")
    assert (manifest.name, manifest.task, manifest.precision, manifest.target) == ("some/name", task, "fp32", "cpu")
    assert manifest.defaults == DEFAULTS[task]
    assert (manifest.source.checkpoint, manifest.source.revision) == ("some/name", "main")
    with Checkpoint(checkpoint(shape, task)) as weights:
        assert manifest.source.sha256 == weights.fingerprint()


def test_every_matrix_and_its_scheme_are_listed(package: Packages) -> None:
    matrices = Manifest.read(package(TINY_2B, "embedding")).matrices
    assert matrices.pop("model.language_model.embed_tokens.weight") == "as-stored"
    assert set(matrices.values()) == {"fp32"}
    text, vision = TINY_2B.text, TINY_2B.vision
    mergers = 1 + len(vision.deepstack_visual_indexes)
    assert len(matrices) == 7 * text.num_hidden_layers + 1 + 6 * vision.depth + 2 * mergers


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_the_task_can_be_given(tiny: Path, output: Path, task: Task) -> None:
    said: list[str] = []
    reporter = Reporter(said.append, lambda *stage: None, lambda count: None)
    assert export_package(tiny, output, ExportOptions("tiny", task=task), reporter).task == task
    assert not any("task" in sentence for sentence in said)


def test_progress_is_told_in_bytes(tiny: Path, output: Path) -> None:
    said: list[str] = []
    stages: list[tuple[object, ...]] = []
    done: list[int] = []
    export_package(tiny, output, PLAIN, Reporter(said.append, lambda *stage: stages.append(stage), done.append))
    assert said[0].startswith("task: embedding (tokenizer.json appends <|endoftext|>")
    written = sum((output / f"{name}.data").stat().st_size for name in (DECODER, VISION))
    assert stages == [(written, "weights", "B")]
    assert 0.99 * written < sum(done) <= written  # less the gaps of alignment


def test_an_existing_package_is_kept_without_force(tiny: Path, output: Path) -> None:
    export_package(tiny, output, PLAIN)
    before = (output / MANIFEST_NAME).read_bytes()
    assert f"{output} exists already; pass --force" in refusal(tiny, output)
    assert (output / MANIFEST_NAME).read_bytes() == before


def test_force_replaces_a_package_whole(tiny: Path, output: Path) -> None:
    export_package(tiny, output, ExportOptions("old"))
    (output / "verify.json").write_text("of the old one")
    while_writing: list[str] = []
    reporter = Reporter(
        lambda text: None, lambda *stage: while_writing.append(Manifest.read(output).name), lambda n: None
    )
    export_package(tiny, output, FORCE, reporter)
    assert while_writing == ["old", "old"]  # weights, golden inputs
    assert Manifest.read(output).name == "tiny"
    assert not (output / "verify.json").exists()
    assert beside(output) == {"tiny"}


@pytest.mark.parametrize("options", [PLAIN, FORCE], ids=["without force", "with force"])
def test_what_is_no_package_is_never_replaced(tiny: Path, output: Path, options: ExportOptions) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    assert f"{output} exists and is not a package" in refusal(tiny, output, options)
    assert (output / "thesis.txt").read_text() == "years of work"
    assert "exists and is not a package" in refusal(tiny, output / "thesis.txt", options)
    assert "exists and is not a package" in refusal(tiny, tiny, options)


def test_a_package_that_appears_meanwhile_is_kept(tiny: Path, output: Path, package: Packages) -> None:
    def appear(*stage: object) -> None:
        shutil.copytree(package(TINY_2B, "reranker"), output)

    with pytest.raises(CheckpointError, match="exists already"):
        export_package(tiny, output, PLAIN, Reporter(lambda text: None, appear, lambda count: None))
    assert Manifest.read(output).task == "reranker"
    assert beside(output) == {"tiny"}


def test_an_old_package_comes_back_if_the_new_one_cannot_be_renamed(tmp_path: Path) -> None:
    output = tmp_path / "tiny"
    output.mkdir()
    (output / MANIFEST_NAME).touch()
    with pytest.raises(OSError):  # nothing can be renamed into itself
        put_in_place(tmp_path, output)
    assert beside(output) == {"tiny"}
    assert (output / MANIFEST_NAME).exists()


def test_a_link_to_a_package_stays_a_link(tiny: Path, output: Path) -> None:
    export_package(tiny, output, PLAIN)
    link = output.with_name("link")
    link.symlink_to(output, target_is_directory=True)
    export_package(tiny, link, ExportOptions("new", force=True))
    assert link.is_symlink() and Manifest.read(link).name == Manifest.read(output).name == "new"
    assert beside(output) == {"tiny", "link"}


def test_folders_on_the_way_are_made(tiny: Path, tmp_path: Path) -> None:
    export_package(tiny, tmp_path / "a" / "b" / "c", PLAIN)
    assert beside(tmp_path / "a" / "b" / "c") == {"c"}
