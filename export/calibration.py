"""Calibration: samples through the float model, layer by layer, into the plan of a quantised package.

What float32 gives for each sample is kept, so that the loss of the written package can be measured on the spot, with
one layer in memory again. The golden inputs go along in both runs: reading the weights takes longer than they do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.blueprint import Blueprint
from export.layer_graphs import LayerGraphs
from export.layerwise import Layerwise, Sample
from quant.agreement import FEWEST_LOGITS, Agreement, embedding_agreement, score_agreement
from quant.losses import LayerLoss, layer_losses
from quant.prompts import sample_prompt
from quant.samples import builtin_items, items_from
from quant.statistics import InputStatistics
from runtime.errors import NotFiniteError
from runtime.manifest import CalibrationRecord

BUILTIN, NONE = "builtin", "none"
# The pooled token is the one that counts in the end, but it is one in a whole prompt.
LAST_TOKEN_BOOST = 16.0


@dataclass(frozen=True, eq=False)
class Results:
    """What a model gives for the samples.

    `pooled`: float32 [N, D] final-norm states of an embedding model, logits [N] of a reranker. `hidden`: the last row
    after every layer, as `Layerwise.hidden`. `golden`: as `pooled`, of the golden inputs.
    """

    pooled: np.ndarray
    hidden: dict[str, list[np.ndarray]]
    golden: np.ndarray

    @property
    def is_too_few(self) -> bool:
        """Whether they are logits too few to correlate."""
        return self.pooled.ndim == 1 and len(self.pooled) < FEWEST_LOGITS

    def agreement(self, found: "Results") -> Agreement:
        """How well another model's results agree with these."""
        compare = embedding_agreement if self.pooled.ndim == 2 else score_agreement
        return compare(self.pooled, found.pooled)

    def layer_losses(self, found: "Results") -> list[LayerLoss]:
        """What each layer of another model costs at the last token of each sample."""
        return layer_losses(self.hidden, found.hidden)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The samples, what float32 gives for them, and statistics of every matrix's input."""

    samples: tuple[Sample, ...]
    results: Results
    statistics: dict[str, InputStatistics]
    record: CalibrationRecord


def load_samples(blueprint: Blueprint, source: str) -> tuple[Sample, ...]:
    """The built-in samples, or those of the folder `source`, through the task's own prompts. Raises InputError."""
    builtin = ((f"sample {number}", item) for number, item in enumerate(builtin_items()))
    items = builtin if source == BUILTIN else items_from(Path(source))
    prompts = [sample_prompt(blueprint.encoder, blueprint.task, item, where) for where, item in items]
    text = sum(int((~prompt.sequence.is_visual).sum()) for prompt in prompts)
    visual = sum(int(prompt.sequence.is_visual.sum()) for prompt in prompts)
    return tuple(
        Sample(prompt.sequence, prompt.visuals, _token_weight(prompt.sequence.is_visual, text, visual))
        for prompt in prompts
    )


def calibrate(
    blueprint: Blueprint,
    float32: LayerGraphs,
    source: str,
    golden: Sequence[Sample],
    advance: Callable[[int], object],
) -> Calibration:
    """Run the samples of `source` (BUILTIN or a folder) and the golden inputs through the float model.

    `advance(1)` is called after each of `layerwise.num_steps`.
    """
    samples = load_samples(blueprint, source)
    layerwise = Layerwise(float32, advance)
    results = _results(blueprint, layerwise, [*samples, *golden])
    tokens = sum(len(sample.token_weight) for sample in samples)
    visual = sum(int(sample.sequence.is_visual.sum()) for sample in samples)
    record = CalibrationRecord(source if source == BUILTIN else Path(source).name, len(samples), tokens, visual)
    return Calibration(samples, results, layerwise.statistics.statistics(), record)


def measure(
    blueprint: Blueprint, graphs: LayerGraphs, samples: Sequence[Sample], advance: Callable[[int], object]
) -> Results:
    """What a model gives for samples and golden inputs; `advance` as in `calibrate`."""
    return _results(blueprint, Layerwise(graphs, advance), samples)


def _results(blueprint: Blueprint, layerwise: Layerwise, samples: Sequence[Sample]) -> Results:
    states = layerwise.run(samples)
    if not np.isfinite(states).all():
        raise NotFiniteError(
            f"{blueprint.folder} gives NaN or infinity for a sample; check its weights against the published ones."
        )
    pooled, measured = blueprint.head.apply(layerwise.graphs.checkpoint, states), [each.measured for each in samples]
    return Results(pooled[measured], layerwise.hidden, pooled[np.logical_not(measured)])


def _token_weight(is_visual: np.ndarray, text: int, visual: int) -> np.ndarray:
    """Equal total weight for the text and the visual tokens of all samples, and more for the last token of each."""
    weight = np.where(is_visual, (text + visual) / (2 * max(visual, 1)), (text + visual) / (2 * max(text, 1)))
    weight[-1] *= LAST_TOKEN_BOOST
    return weight.astype(np.float32)
