"""Calibration: samples through the float model, layer by layer, into the plan of a quantised package.

What float32 gives for each sample is kept, so that the loss of the finished package can be measured on the spot.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from export.blueprint import Blueprint
from export.checkpoint import Checkpoint
from export.layerwise import Layerwise, Sample
from quant.agreement import Agreement, embedding_agreement, score_agreement
from quant.losses import LayerLoss, layer_losses
from quant.prompts import Prompt, sample_prompt
from quant.samples import builtin_items, items_from
from quant.statistics import Accumulator, InputStatistics
from quant.taps import TappedPackage
from runtime.encode import EncodeOptions, Encoder
from runtime.image import PatchGrid
from runtime.manifest import TOKENIZER, CalibrationRecord, Manifest
from runtime.model import Model
from runtime.tokens import PromptTokenizer

BUILTIN, NONE = "builtin", "none"
# The pooled token is the one that counts in the end, but it is one in a whole prompt.
LAST_TOKEN_BOOST = 16.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of every matrix's input, the samples, and what float32 gives for them.

    `pooled`: float32 [N, D] final-norm states of an embedding model, logits [N] of a reranker. `hidden`: the last row
    after every layer, as `Layerwise.hidden`.
    """

    statistics: dict[str, InputStatistics]
    samples: tuple[Sample, ...]
    pooled: np.ndarray
    hidden: dict[str, list[np.ndarray]]
    record: CalibrationRecord

    def agreement(self, model: Model) -> Agreement:
        """The finished package on the same samples, against float32."""
        found = [model.pooled([sample.sequence], model.visual_features(sample.visuals))[0] for sample in self.samples]
        compare = embedding_agreement if self.pooled.ndim == 2 else score_agreement
        return compare(self.pooled, np.stack(found))

    def layer_losses(self, folder: Path, manifest: Manifest) -> list[LayerLoss]:
        """What each layer of the package in `folder` costs at the last token of each sample, against float32."""
        package = TappedPackage(folder, manifest)
        for sample in self.samples:
            package.pooled(Prompt(sample.sequence, sample.visuals), rows=1)
        found = package.rows
        # The package reads more than one patch, the last one first.
        return layer_losses(self.hidden, {name: [rows[:1] for rows in found[name]] for name in self.hidden})


def load_samples(blueprint: Blueprint, source: str) -> tuple[Sample, ...]:
    """The built-in samples, or those of the folder `source`, through the task's own prompts. Raises InputError."""
    items = builtin_items() if source == BUILTIN else items_from(Path(source))
    vision = blueprint.config.vision
    patch = PatchGrid(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    tokenizer = PromptTokenizer(blueprint.folder / TOKENIZER, blueprint.tokenizer.tokens)
    encoder = Encoder(tokenizer, patch, EncodeOptions(**asdict(blueprint.defaults)))
    prompts = [sample_prompt(encoder, blueprint.task, item, f"sample {number}") for number, item in enumerate(items)]
    text = sum(int((~prompt.sequence.is_visual).sum()) for prompt in prompts)
    visual = sum(int(prompt.sequence.is_visual.sum()) for prompt in prompts)
    return tuple(
        Sample(prompt.sequence, prompt.visuals, _token_weight(prompt.sequence.is_visual, text, visual))
        for prompt in prompts
    )


def calibrate(
    blueprint: Blueprint, checkpoint: Checkpoint, source: str, scratch: Path, advance: Callable[[int], object]
) -> Calibration:
    """Run the samples of `source` (BUILTIN or a folder); `advance(1)` is called after each of `layerwise.num_steps`."""
    samples = load_samples(blueprint, source)
    accumulator = Accumulator()
    layerwise = Layerwise(checkpoint, blueprint.config, scratch, advance)
    states = layerwise.run(samples, accumulator)
    tokens = sum(len(sample.token_weight) for sample in samples)
    visual = sum(int(sample.sequence.is_visual.sum()) for sample in samples)
    record = CalibrationRecord(source if source == BUILTIN else Path(source).name, len(samples), tokens, visual)
    pooled = blueprint.head.apply(checkpoint, states)
    return Calibration(accumulator.statistics(), samples, pooled, layerwise.hidden, record)


def _token_weight(is_visual: np.ndarray, text: int, visual: int) -> np.ndarray:
    """Equal total weight for the text and the visual tokens of all samples, and more for the last token of each."""
    weight = np.where(is_visual, (text + visual) / (2 * max(visual, 1)), (text + visual) / (2 * max(text, 1)))
    weight[-1] *= LAST_TOKEN_BOOST
    return weight.astype(np.float32)
