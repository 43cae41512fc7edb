"""A model run layer by layer gives what its package gives; of float32, what goes into each matrix is measured."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from qwen_tokenizer import Task

from export.blueprint import read_blueprint
from export.calibration import BUILTIN, load_samples
from export.checkpoint import Checkpoint
from export.contents import build_graphs
from export.layer_graphs import LayerGraphs
from export.layerwise import Layerwise, Sample, num_steps
from export.options import ExportOptions
from export.package import export_package
from quant.kernels import KERNELS
from quant.prompts import Prompt
from quant.selection import Plan
from quant.statistics import InputStatistics
from quant.taps import TappedPackage
from runtime.graphs.model import Model
from runtime.manifest import Manifest

CLOSE = 1e-5  # relative to the largest value
LAYER = "model.language_model.layers.0"


class Run:
    """Samples through the layers of a checkpoint: states [N, D], statistics and steps."""

    def __init__(self, folder: Path, task: Task, scratch: Path, choose: Callable[[Sample], bool]):
        blueprint = read_blueprint(folder, task, lambda text: None)
        self.samples = [sample for sample in load_samples(blueprint, BUILTIN) if choose(sample)]
        self.config, self.steps = blueprint.config, list[int]()
        with Checkpoint(folder) as weights:
            layerwise = Layerwise(LayerGraphs(weights, self.config, scratch), self.steps.append)
            self.states = layerwise.run(self.samples)
            self.pooled = blueprint.head.apply(weights, self.states)
        self.statistics: dict[str, InputStatistics] = layerwise.statistics.statistics()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def everything(sample: Sample) -> bool:
    return True


def only_text(sample: Sample) -> bool:
    return not sample.visuals and len(sample.sequence.input_ids) < 60


def read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with Checkpoint(folder) as weights:
        return weights.tensor(name, shape).read()


@pytest.mark.parametrize("task", ["embedding", "reranker"])
@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2B", "8B"])
def test_it_gives_what_the_package_gives(
    checkpoint: Callable[..., Path], package: Callable[..., Path], scratch: Path, shape: Shape, task: Task
) -> None:
    """Texts, pictures and both, short and long."""
    run = Run(checkpoint(shape, task), task, scratch, everything)
    folder = package(shape, task)
    model = Model(folder, Manifest.read(folder), ["CPUExecutionProvider"], threads=2)
    found = np.stack([model.pooled([model.prompt(sample.sequence, sample.visuals)])[0] for sample in run.samples])
    assert run.pooled.shape == ((len(found), shape.text.hidden_size) if task == "embedding" else (len(found),))
    assert np.abs(run.pooled - found).max() <= CLOSE * np.abs(found).max()
    assert set(run.statistics) == set(Manifest.read(folder).matrices) - {"model.language_model.embed_tokens.weight"}
    assert run.steps == [1] * num_steps(run.config)
    assert not list(scratch.iterdir())


@pytest.mark.usefixtures("cuda_on_cpu")
@pytest.mark.parametrize(
    ("precision", "target"),
    [("int8", "cpu"), ("int8-portable", "cpu"), ("int4", "cpu"), ("int8", "cuda"), ("int4", "cuda")],
)
def test_a_written_package_runs_layer_by_layer(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, target: str
) -> None:
    """Its own bytes, on every hidden state and at the end, for CUDA in float32; nothing is added to the folder."""
    folder, output = checkpoint(TINY_8B, "reranker"), tmp_path / "package"
    plan = Plan(precision, kernels=KERNELS[target]).in_float32()
    monkeypatch.setitem(KERNELS, target, plan.kernels)
    manifest = export_package(folder, output, ExportOptions("tiny", precision, target, calibrate="none"))
    names = sorted(output.iterdir())
    blueprint = read_blueprint(folder, "reranker", lambda text: None)
    samples = [each for each in load_samples(blueprint, BUILTIN) if each.visuals or len(each.token_weight) < 120]
    with Checkpoint(folder) as weights:
        graphs, _ = build_graphs(weights, blueprint, plan)
        package = LayerGraphs(weights, blueprint.config, output, plan, {graph.name: graph for graph in graphs})
        layerwise = Layerwise(package, lambda count: None)
        logits = blueprint.head.apply(weights, layerwise.run(samples))
    whole = TappedPackage(output, manifest)
    expected = np.stack([whole.pooled(Prompt(sample.sequence, sample.visuals), rows=1) for sample in samples])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=CLOSE * np.abs(expected).max())
    assert set(layerwise.hidden) == {name for name in whole.rows if name.endswith(":hidden")}
    for name, rows in layerwise.hidden.items():
        found, wanted = np.concatenate(rows), np.concatenate([each[:1] for each in whole.rows[name]])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())
    assert not layerwise.statistics.statistics()
    assert sorted(output.iterdir()) == names


def test_texts_alone_leave_the_vision_encoder_out(checkpoint: Callable[..., Path], scratch: Path) -> None:
    run = Run(checkpoint(TINY_2B, "embedding"), "embedding", scratch, only_text)
    assert len(run.states) == len(run.samples) > 3
    assert not any(name.startswith("model.visual") for name in run.statistics)
    assert sum(run.steps) == num_steps(run.config)
    assert not list(scratch.iterdir())


def test_statistics_of_tokens_are_weighted_sums(checkpoint: Callable[..., Path], scratch: Path) -> None:
    """The first layer's input in numpy: rows of the token table through a norm."""
    folder, text = checkpoint(TINY_2B, "embedding"), TINY_2B.text
    run = Run(folder, "embedding", scratch, only_text)
    table = read(folder, "model.language_model.embed_tokens.weight", (text.vocab_size, text.hidden_size))
    norm = read(folder, f"{LAYER}.input_layernorm.weight", (text.hidden_size,))
    rows = np.concatenate([table[sample.sequence.input_ids] for sample in run.samples]).astype(np.float64)
    weight = np.concatenate([sample.token_weight for sample in run.samples]).astype(np.float64)
    x = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + text.rms_norm_eps) * norm
    for name in "qkv":
        found = run.statistics[f"{LAYER}.self_attn.{name}_proj.weight"]
        np.testing.assert_allclose(found.mean_square, (x**2 * weight[:, None]).sum(axis=0) / weight.sum(), rtol=1e-4)
        np.testing.assert_allclose(found.largest, np.abs(x).max(axis=0), rtol=1e-5)


def test_statistics_of_patches_count_each_patch_once(checkpoint: Callable[..., Path], scratch: Path) -> None:
    run = Run(checkpoint(TINY_2B, "embedding"), "embedding", scratch, lambda sample: bool(sample.visuals))
    found = run.statistics["model.visual.patch_embed.proj.weight"]
    visuals = [visual.patches for sample in run.samples for visual in sample.visuals]
    x = np.concatenate([each.reshape(-1, each.shape[-1]) for each in visuals]).astype(np.float64)
    np.testing.assert_allclose(found.mean_square, (x**2).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.largest, np.abs(x).max(axis=0), rtol=1e-6)


def test_an_error_leaves_nothing_behind(checkpoint: Callable[..., Path], scratch: Path) -> None:
    """Nor is a file still mapped while the error is alive: Windows would not have deleted it."""
    folder = checkpoint(TINY_2B, "embedding")
    blueprint = read_blueprint(folder, "embedding", lambda text: None)
    sample, other = load_samples(blueprint, BUILTIN)[:2]
    broken = Sample(other.sequence, (), other.token_weight[1:])
    with Checkpoint(folder) as weights, pytest.raises(Exception, match="broadcast"):
        Layerwise(LayerGraphs(weights, blueprint.config, scratch), lambda count: None).run([sample, broken])
    assert not list(scratch.iterdir())
    if sys.platform == "linux":
        assert str(scratch) not in Path("/proc/self/maps").read_text(encoding="utf-8")
