"""Calibrating an export: what counts how much, what the manifest says of it, and that nothing depends on chance."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B
from exports import beside
from PIL import Image
from qwen_tokenizer import Task

from export.blueprint import Blueprint, read_blueprint
from export.calibration import BUILTIN, LAST_TOKEN_BOOST, load_samples
from export.layerwise import num_steps
from export.options import ExportOptions, Reporter
from export.package import export_package
from quant.agreement import embedding_agreement
from quant.samples import builtin_items
from runtime import Qwen3VLEmbedder
from runtime.errors import CheckpointError, InputError
from runtime.graphs.model import Model
from runtime.manifest import Manifest

INT8 = ExportOptions("tiny", "int8")


@pytest.fixture
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(TINY_2B, "embedding")


@pytest.fixture
def blueprint(tiny: Path) -> Blueprint:
    return read_blueprint(tiny, "embedding", lambda text: None)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where to export to; its parent folder is there and empty."""
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages" / "tiny"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of samples: a text, a picture and two lines."""
    folder = tmp_path / "my samples"
    folder.mkdir()
    (folder / "a.txt").write_text("größer", encoding="utf-8")
    Image.new("RGB", (96, 64), "teal").save(folder / "b.png")
    (folder / "c.jsonl").write_text('{"text": "one", "instruction": "Find it"}\n{"text": ["two", "three"]}\n')
    return folder


def test_texts_and_pictures_weigh_alike_and_last_tokens_more(blueprint: Blueprint) -> None:
    samples = load_samples(blueprint, BUILTIN)
    text = visual = 0.0
    for sample in samples:
        weight, is_visual = sample.token_weight, sample.sequence.is_visual
        assert weight.dtype == np.float32 and weight.shape == is_visual.shape and not is_visual[-1]
        one = weight[:-1][~is_visual[:-1]]
        assert len(np.unique(one)) == 1
        assert weight[-1] == pytest.approx(LAST_TOKEN_BOOST * one[0])
        text, visual = text + one.sum() + one[0], visual + weight[is_visual].sum()
    assert text == pytest.approx(visual, rel=1e-4)
    tokens = sum(len(sample.token_weight) for sample in samples)
    assert text + visual == pytest.approx(tokens, rel=1e-4)


def test_texts_alone_weigh_one_half_each_way(blueprint: Blueprint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c")
    (sample,) = load_samples(blueprint, str(tmp_path))
    assert len(np.unique(sample.token_weight[:-1])) == 1
    assert sample.token_weight[-1] == LAST_TOKEN_BOOST * sample.token_weight[0]


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_samples_go_through_the_prompts_of_the_task(checkpoint: Callable[..., Path], own: Path, task: Task) -> None:
    folder = checkpoint(TINY_8B, task)
    samples = load_samples(read_blueprint(folder, task, lambda text: None), str(own))
    assert [len(sample.visuals) for sample in samples] == [0, 1, 0, 0]
    assert [int(sample.sequence.is_visual.sum()) for sample in samples] == [0, 6, 0, 0]
    lengths = [len(sample.sequence.input_ids) for sample in samples]
    assert min(lengths) > (60 if task == "reranker" else 10)


def test_the_manifest_says_what_was_calibrated_on(tiny: Path, output: Path, own: Path) -> None:
    manifest = export_package(tiny, output, replace(INT8, calibrate=str(own)))
    assert manifest == Manifest.read(output)
    record, loss = manifest.calibration, manifest.loss
    assert record is not None and loss is not None
    assert (record.source, record.samples, record.visual_tokens) == ("my samples", 4, 6)
    assert 40 < record.tokens < 400
    assert 0.9 < loss.cosine_minimum <= loss.cosine_mean <= 1 and 0 < loss.largest < 0.5
    assert str(own) not in (output / "manifest.json").read_text(encoding="utf-8")  # packages are handed on


def test_the_built_in_samples_are_the_default(package: Callable[..., Path]) -> None:
    for precision in ("int8", "int8-portable", "int4"):
        record = Manifest.read(package(TINY_2B, "embedding", precision)).calibration
        assert record is not None and record.source == BUILTIN and record.samples == len(builtin_items())
        assert record.visual_tokens > 500 and record.tokens > 2 * record.visual_tokens
    assert Manifest.read(package(TINY_2B, "embedding")).calibration is None


@pytest.mark.parametrize("precision", ["int8", "int8-portable", "int4"])
def test_none_is_recorded_as_none(tiny: Path, output: Path, precision: str) -> None:
    manifest = export_package(tiny, output, replace(INT8, precision=precision, calibrate="none"))
    assert manifest.calibration is None and manifest.loss is None
    assert np.isfinite(Qwen3VLEmbedder(output).process([{"text": "a"}])).all()


def test_float32_runs_no_samples(tiny: Path, output: Path, tmp_path: Path) -> None:
    manifest = export_package(tiny, output, replace(INT8, precision="fp32", calibrate=str(tmp_path / "missing")))
    assert manifest.calibration is None


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_two_exports_are_equal_to_the_byte(
    tiny: Path, output: Path, package: Callable[..., Path], precision: str
) -> None:
    first = package(TINY_2B, "embedding", precision)
    export_package(tiny, output, replace(INT8, precision=precision, task="embedding"))
    assert beside(output / "x") == beside(first / "x")
    for path in first.iterdir():
        assert path.read_bytes() == (output / path.name).read_bytes(), path.name


def test_the_samples_are_told_as_a_stage(tiny: Path, output: Path, blueprint: Blueprint, own: Path) -> None:
    stages: list[tuple[int, str, str]] = []
    done: list[int] = []
    finished: list[int] = []

    def start(total: int, name: str, unit: str) -> None:
        finished.append(sum(done))
        stages.append((total, name, unit))

    export_package(tiny, output, replace(INT8, calibrate=str(own)), Reporter(lambda text: None, start, done.append))
    layers = num_steps(blueprint.config)
    assert stages[0] == (layers, "calibration", "layer") and stages[2] == (layers, "measuring the loss", "layer")
    assert [name for _, name, _ in stages] == ["calibration", "weights", "measuring the loss"]
    assert finished[:2] == [0, layers] and sum(done) - finished[2] == layers


def test_unusable_samples_leave_nothing(tiny: Path, output: Path, own: Path) -> None:
    def refused(start: str) -> None:
        with pytest.raises(InputError) as caught:
            export_package(tiny, output, replace(INT8, calibrate=str(own)))
        message = str(caught.value)
        assert message.startswith(start) and "\n" not in message
        assert beside(output) == set()

    (own / "d.jsonl").write_text(json.dumps({"text": 3}))
    refused(f"{own / 'd.jsonl'}, line 1: text")
    (own / "d.jsonl").write_text("{")
    refused(f"{own / 'd.jsonl'}, line 1: not JSON (")
    (own / "d.jsonl").unlink()
    (own / "b.png").write_bytes(b"no picture")
    refused(f"{own / 'b.png'}: image: ")


def test_the_loss_is_that_of_the_finished_package(
    checkpoint: Callable[..., Path], output: Path, own: Path, blueprint: Blueprint
) -> None:
    """Measured layer by layer, and again here on the whole package."""
    folder = checkpoint(TINY_2B, "embedding")
    manifest = export_package(folder, output, replace(INT8, precision="int4", calibrate=str(own)))
    float_package = output.with_name("float")
    results = []
    for package in (export_package(folder, float_package, replace(INT8, precision="fp32")), manifest):
        model = Model(output if package is manifest else float_package, package, ["CPUExecutionProvider"], threads=2)
        samples = load_samples(blueprint, str(own))
        results.append([model.pooled([model.prompt(each.sequence, each.visuals)])[0] for each in samples])
    agreement = embedding_agreement(np.stack(results[0]), np.stack(results[1]))
    assert manifest.loss is not None
    assert manifest.loss.cosine_mean == pytest.approx(agreement.cosine_mean, abs=1e-6)
    assert manifest.loss.largest == pytest.approx(agreement.largest, abs=1e-5)
    assert 1 - manifest.loss.cosine_mean > 1e-4


def test_a_package_below_min_cosine_is_refused(tiny: Path, output: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        export_package(tiny, output, ExportOptions("tiny", "int4", min_cosine=0.999999))
    assert str(caught.value).startswith("tiny in int4 reaches a mean cosine of 0.")
    assert beside(output) == set()
