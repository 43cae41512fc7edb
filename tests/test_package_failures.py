"""Exports that cannot go through: refused before anything is written where possible, and nothing half stays."""

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exports import PLAIN, Tensors, beside, changed, refusal
from filelock import FileLock
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape, write_checkpoint

from export.options import ExportOptions, Reporter
from export.package import export_package
from runtime.errors import CheckpointError
from runtime.manifest import DECODER

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


def test_an_adapter_alone_is_named_as_one(tmp_path: Path, output: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "holds an adapter (adapter_config.json)" in refusal(folder, output)


@pytest.mark.parametrize("options", [PLAIN, FORCE], ids=["first", "replacing"])
def test_leftovers_of_a_killed_export_are_removed(
    tiny: Path, package: Packages, output: Path, options: ExportOptions
) -> None:
    if options.force:  # killed when both were there
        shutil.copytree(package(TINY_2B, "embedding"), output)
        shutil.copytree(package(TINY_2B, "embedding"), output.with_name(".tiny.old"))
    output.with_name(".tiny.partial").mkdir()
    (output.with_name(".tiny.partial") / DECODER).write_bytes(b"half")
    output.with_name(".tiny.lock").touch()  # held by nobody
    export_package(tiny, output, options)
    assert beside(output) == {"tiny"}


def test_a_second_export_to_the_same_place_is_refused(tiny: Path, output: Path) -> None:
    partial = output.with_name(".tiny.partial")
    partial.mkdir()
    with FileLock(output.with_name(".tiny.lock")):
        assert f"another export is writing {output}" in refusal(tiny, output)
        assert partial.exists(), "the other one's work"
    export_package(tiny, output, PLAIN)


def test_a_full_disk_is_noticed_before_anything_is_written(
    tiny: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**6, 10**6))
    assert f"{output.parent} has 0.0 GB free and the package needs 0.1 GB" in refusal(tiny, output)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")], ids=["interrupted", "bug"])
def test_an_export_that_breaks_off_leaves_nothing(tiny: Path, output: Path, error: BaseException) -> None:
    def fail(count: int) -> None:
        assert beside(output) == {".tiny.partial", ".tiny.lock"}
        raise error

    with pytest.raises(type(error)):
        export_package(tiny, output, PLAIN, Reporter(lambda text: None, lambda *stage: None, fail))
    assert beside(output) == set()


def test_a_disk_that_fills_up_is_a_sentence(tiny: Path, output: Path) -> None:
    def fail(count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        CheckpointError, match=r"cannot be written .*No space left on device.*nothing was left behind\."
    ):
        export_package(tiny, output, PLAIN, Reporter(lambda text: None, lambda *stage: None, fail))
    assert beside(output) == set()


def test_a_place_that_cannot_be_written(tiny: Path, output: Path) -> None:
    (output.parent / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_package(tiny, output.parent / "file" / "package", PLAIN)


BIAS = "model.visual.blocks.5.attn.qkv.bias"
WRONG: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda tensors: tensors.pop(BIAS), f"has no tensor {BIAS}"),
    "extra": (lambda tensors: tensors.update(extra=np.zeros(2, np.float32)), "1 tensors .*(extra)"),
    "extra layer": (
        lambda tensors: tensors.update({"model.language_model.layers.4.mlp.up_proj.weight": np.zeros(2, np.float32)}),
        "does not have (model.language_model.layers.4.mlp.up_proj.weight)",
    ),
    "other shape": (lambda tensors: tensors.update({BIAS: np.zeros(48, np.float32)}), "shape [48] where"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit_the_config(
    tiny: Path, output: Path, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    found = refusal(changed(tiny, tmp_path / "changed", change), output)
    assert all(part in found for part in message.split(".*"))


def test_a_cut_shard_is_noticed_before_anything_is_written(output: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "shards", TINY_2B, shard_bytes=10 << 20)
    last = max((tmp_path / "shards").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    assert f"{last} has" in refusal(tmp_path / "shards", output)


@pytest.mark.parametrize(
    "options", [ExportOptions("tiny", min_cosine=0.9), ExportOptions("tiny", "int8", calibrate="none", min_cosine=0.9)]
)
def test_a_bound_on_the_loss_needs_samples_to_measure_it(tiny: Path, output: Path, options: ExportOptions) -> None:
    assert "--min-cosine needs a quantised precision and calibration samples" in refusal(tiny, output, options)
