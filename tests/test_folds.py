"""Folding scales into a whole model: every place, alone and together, leaves what float32 computes as it is."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from qwen_tokenizer import Task

from export.blueprint import Blueprint, read_blueprint
from export.calibration import BUILTIN, Calibration, calibrate
from export.checkpoint import Checkpoint
from export.contents import build_graphs
from export.folds import Place, make_plan, places
from export.layer_graphs import LayerGraphs
from quant.fold import Fold
from quant.selection import Plan
from runtime.graphs.decoder import Prompt
from runtime.graphs.model import Model
from runtime.graphs.vision import VisualFeatures
from runtime.manifest import DECODER, Manifest

CLOSE = 1e-5  # relative to the largest value
FAR = 1e-3
MODELS: list[tuple[Shape, Task]] = [(TINY_2B, "embedding"), (TINY_8B, "reranker")]
# Products without a place: pixels have no producer, and a GELU stands before these.
WITHOUT = ("patch_embed.proj.weight", "mlp.linear_fc2.weight", "merger.linear_fc2.weight")
TEXT, VISION = "model.language_model.", "model.visual."
WITHOUT_DEEPSTACK = "deepstack_merger_list.{}.linear_fc2.weight"


@dataclass(frozen=True, eq=False)
class Case:
    """A float32 package, its checkpoint, and one sample of text and picture with what float32 gives for it."""

    package: Path
    checkpoint: Path
    blueprint: Blueprint
    calibration: Calibration
    expected: dict[str, np.ndarray]

    def error(self, folds: Mapping[str, Fold], folder: Path) -> float:
        """The largest difference that `folds` make to any output, relative to its largest value."""
        found = self.expected
        with Checkpoint(self.checkpoint) as weights:
            graphs, _ = build_graphs(weights, self.blueprint, Plan("fp32", folds=folds))
            for graph in graphs:  # only where something is folded: the token table is large
                part = VISION if graph.name == "vision.onnx" else TEXT
                if any(name.startswith(part) for name in folds):
                    graph.write(folder, lambda count: None)
                    found = found | self.run(folder, part, found)
        return max(_difference(found[name], value) for name, value in self.expected.items())

    def run(self, folder: Path, part: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one graph of `folder`; the decoder takes the vision encoder's from `inputs`."""
        sample = self.calibration.samples[-1]
        for graph in (DECODER, f"{DECODER}.data"):  # a Model needs a decoder
            if not (folder / graph).exists():
                shutil.copyfile(self.package / graph, folder / graph)
        model = Model(folder, Manifest.read(self.package), ["CPUExecutionProvider"], threads=2)
        if part == VISION:
            features = model.vision.features(sample.visuals)[0]
            return {"tokens": features.tokens, "deepstack": features.deepstack}
        features = VisualFeatures(inputs["tokens"], inputs["deepstack"])
        return {"pooled": model.pooled([Prompt(sample.sequence, (features,))])}


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=MODELS, ids=["2B embedding", "8B reranker"])
def case(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Path],
    package: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    shape, task = request.param
    folder = checkpoint(shape, task)
    blueprint = read_blueprint(folder, task, lambda text: None)
    with Checkpoint(folder) as weights:
        scratch = tmp_path_factory.mktemp("scratch")
        calibration = calibrate(
            blueprint, LayerGraphs(weights, blueprint.config, scratch), BUILTIN, (), lambda count: None
        )
    case = Case(package(shape, task), folder, blueprint, calibration, {})
    for part in (VISION, TEXT):
        case.expected.update(case.run(case.package, part, case.expected))
    return case


def folds_of(place: Place, scales: np.ndarray) -> dict[str, Fold]:
    """One place's folds; `scales` are those of its producers' rows."""
    folds = {name: Fold(rows=1 / scales) for name in place.producers}
    return folds | {name: Fold(columns=scales[place.producer_of]) for name in place.consumers}


def random_scales(place: Place, generator: np.random.Generator) -> np.ndarray:
    """float32, from 1e-2 to 1e2."""
    size = int(place.producer_of.max()) + 1
    scales: np.ndarray = np.exp(generator.uniform(-1, 1, size) * np.log(100)).astype(np.float32)
    return scales


@pytest.mark.parametrize("precision", ["int8", "int8-portable", "int4"])
def test_the_folds_of_a_plan_change_nothing_in_float32(case: Case, precision: str, tmp_path: Path) -> None:
    with Checkpoint(case.checkpoint) as weights:
        plan = make_plan(Plan(precision), weights, case.blueprint.config, case.calibration.statistics)
    touched = {name for place in places(case.blueprint.config) for name in (*place.producers, *place.consumers)}
    assert set(plan.folds) == touched
    assert case.error(plan.folds, tmp_path) <= CLOSE


def test_each_place_alone_changes_nothing_in_float32(case: Case, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for place in places(case.blueprint.config):
        assert case.error(folds_of(place, random_scales(place, generator)), tmp_path) <= CLOSE, place.consumers


def test_half_a_fold_is_seen(case: Case, tmp_path: Path) -> None:
    """The comparison above can fail: a consumer that takes nothing back shows, of each kind of place."""
    generator = np.random.default_rng(0)
    kinds = {re.sub(r"\d+", "", place.consumers[0]): place for place in places(case.blueprint.config)}
    assert len(kinds) == 9
    for place in kinds.values():
        folds = folds_of(place, random_scales(place, generator))
        del folds[place.consumers[-1]]
        assert case.error(folds, tmp_path) > FAR, place.consumers


def test_every_product_has_one_place_but_those_without_a_producer(case: Case) -> None:
    config = case.blueprint.config
    consumers = Counter(name for place in places(config) for name in place.consumers)
    assert set(consumers.values()) == {1}
    products = set(Manifest.read(case.package).matrices) - {"model.language_model.embed_tokens.weight"}
    deepstack = tuple(WITHOUT_DEEPSTACK.format(index) for index in range(len(config.vision.deepstack_visual_indexes)))
    assert products - set(consumers) == {name for name in products if name.endswith((*WITHOUT, *deepstack))}
    assert set(consumers) < products


def test_without_pictures_the_vision_encoder_is_not_folded(case: Case) -> None:
    text = {name: each for name, each in case.calibration.statistics.items() if "visual" not in name}
    with Checkpoint(case.checkpoint) as weights:
        plan = make_plan(Plan("int8"), weights, case.blueprint.config, text)
    assert plan.folds and not any("visual" in name for name in plan.folds)
