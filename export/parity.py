"""One input through a package and through the torch reference, compared stage by stage.

The first stage that fails names the guilty part: prompt and ids, pixels, positions, vision, then the result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.reference import ReferenceStages
from runtime.graphs.decoder import Prompt
from runtime.graphs.package import Package
from runtime.media.image import Visual
from runtime.prompts.encode import Loaded, TokenSequence
from runtime.prompts.inputs import parse_content, parse_item, parse_request
from runtime.prompts.positions import token_positions
from runtime.vectors import finish

# The largest difference each stage may show. Integers and pictures are exact; float32 sums differ by their order.
LEVEL = 1 / 127.5  # one of the 256 levels of a colour
BOUNDS = {
    "token ids": 0.0,
    "picture pixels": 0.0,
    "video pixels": 1.01 * LEVEL,  # PIL's float resize against torch's
    "positions": 0.0,
    "visual tokens": 1e-4,  # relative to the largest value
    "DeepStack": 1e-4,
    "embedding": 2e-5,
    "score": 1e-5,
}
# One level in some pixels moves everything after it; with the exact resize the bounds above hold.
VIDEO_BOUNDS = {"visual tokens": 1e-2, "DeepStack": 1e-2, "embedding": 5e-5, "score": 2e-4}
MINIMUM_COSINE = 0.999999


@dataclass(frozen=True)
class Difference:
    """One stage of one case; `cosine` is None where it says nothing (integers, scores)."""

    case: str
    stage: str
    difference: float
    bound: float
    cosine: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the difference, and the cosine of an embedding, are within bounds."""
        close = self.difference <= self.bound
        return close and (self.stage != "embedding" or (self.cosine or 0.0) >= MINIMUM_COSINE)


def compare_embedding(package: Package, case: str, item: Any, expected: ReferenceStages) -> list[Difference]:
    """Every stage of one embedder input, the embedding normalised on both sides."""
    parsed = parse_item(item, case)
    loaded = package.encoder.load(parsed.content, parsed.fps, parsed.max_frames, case)
    sequence = package.encoder.embedding_sequence(loaded, parsed.instruction, case)
    stages = Stages(case, expected, package.encoder.options.exact_resize)
    pooled = stages.before_result(package, loaded.visuals, sequence)
    width = pooled.shape[1]
    found, wanted = finish(pooled, width, True), finish(expected.embedding[None], width, True)
    stages.add("embedding", found, wanted, cosine=True)
    return stages.differences


def compare_score(package: Package, case: str, request: Any, expected: ReferenceStages) -> list[Difference]:
    """Every stage of one pair: `request` is the reranker's dict with one document."""
    assert expected.logit is not None
    parsed = parse_request(request)

    def load(content: Any) -> Loaded:
        return package.encoder.load(content, parsed.fps, parsed.max_frames, case)

    query, document = load(parsed.query), load(parse_content(parsed.documents[0], case))
    sequence = package.encoder.rerank_sequence(query, document, parsed.instruction, case)
    stages = Stages(case, expected, package.encoder.options.exact_resize)
    logit = stages.before_result(package, query.visuals + document.visuals, sequence)
    stages.add("score", sigmoid(logit), sigmoid(np.array([expected.logit])))
    return stages.differences


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


class Stages:
    """Collects the differences of one case against the reference's stages."""

    def __init__(self, case: str, expected: ReferenceStages, exact_resize: bool):
        self.case, self.expected, self.exact_resize = case, expected, exact_resize
        self.differences: list[Difference] = []

    def before_result(self, package: Package, visuals: Sequence[Visual], sequence: TokenSequence) -> np.ndarray:
        """Compare ids, pixels, positions and vision, run the decoder and return what it pooled."""
        expected = self.expected
        self.add("token ids", sequence.input_ids, expected.input_ids)
        self.add("picture pixels", _pixels(visuals, videos=False), expected.pixel_values)
        self.add("video pixels", _pixels(visuals, videos=True), expected.pixel_values_videos)
        self.add("positions", token_positions(sequence.is_visual, sequence.blocks), expected.position_ids)
        features = package.model.vision.features(visuals)
        if features:
            tokens = np.concatenate([each.tokens for each in features])
            deepstack = np.concatenate([each.deepstack for each in features], axis=1)
            self.add("visual tokens", tokens, expected.visual_tokens, relative=True)
            self.add("DeepStack", deepstack, expected.deepstack, relative=True)
        return package.model.pooled([Prompt(sequence, tuple(features))])

    def add(
        self,
        stage: str,
        found: np.ndarray | None,
        wanted: np.ndarray | None,
        relative: bool = False,
        cosine: bool = False,
    ) -> None:
        """Compare two arrays; a different shape is infinitely different."""
        if found is None and wanted is None:
            return
        difference = math.inf
        same = found is not None and wanted is not None and found.shape == wanted.shape
        if same and found is not None and wanted is not None:
            difference = float(np.abs(found - wanted).max(initial=0))
            if relative:
                difference /= float(np.abs(wanted).max(initial=1e-30))
        bound = BOUNDS[stage]
        if self.expected.pixel_values_videos is not None and not self.exact_resize:
            bound = VIDEO_BOUNDS.get(stage, bound)
        angle = _cosine(found, wanted) if cosine and same and found is not None and wanted is not None else None
        self.differences.append(Difference(self.case, stage, difference, bound, angle))


def _pixels(visuals: Sequence[Visual], videos: bool) -> np.ndarray | None:
    chosen = [visual.patches for visual in visuals if (visual.timestamps is not None) == videos]
    return np.concatenate([patches.reshape(-1, patches.shape[-1]) for patches in chosen]) if chosen else None


def _cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
