"""`Qwen3VLReranker`: the reference's class of that name on onnxruntime."""

import math
import os
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from runtime.encode import Loaded, TokenSequence
from runtime.errors import Qwen3VLError
from runtime.inputs import Content, RerankRequest, parse_content, parse_request
from runtime.media import FetchLimits
from runtime.model import VisualFeatures
from runtime.package import (
    OnError,
    Skipped,
    batches,
    explain_torch_options,
    open_package,
    record_skips,
    require_finite,
    require_on_error,
    require_positive,
)
from runtime.tokens import SpecialTokens

LARGEST_EXPONENT = 700.0


class Qwen3VLReranker:
    """Scores documents against a query, each side texts, pictures, videos or mixtures.

    The options up to `default_instruction` are the reference's, with the same defaults (pixels, frames per second,
    tokens). Keyword-only: `batch_size` pairs go through the decoder together; `providers` and `threads` choose where
    onnxruntime runs; `special_tokens`, `strict_video_budget`, `exact_resize` and `fetch` as in
    `runtime.encode.EncodeOptions`. Raises PackageError. Several threads may share one.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        max_length: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        total_pixels: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        default_instruction: str | None = None,
        *,
        batch_size: int = 1,
        show_progress: bool = False,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        special_tokens: SpecialTokens = "allow",
        strict_video_budget: bool = False,
        exact_resize: bool = False,
        fetch: FetchLimits | None = None,
        **torch_options: object,
    ):
        explain_torch_options(torch_options)
        given = {
            "max_length": max_length,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "total_pixels": total_pixels,
            "fps": fps,
            "max_frames": max_frames,
            "default_instruction": default_instruction,
            "special_tokens": special_tokens,
            "strict_video_budget": strict_video_budget,
            "exact_resize": exact_resize,
            "fetch": fetch,
        }
        self.batch_size, self.show_progress = require_positive("batch_size", batch_size), show_progress
        self.package = open_package(model_name_or_path, "reranker", given, providers, threads)

    def process(
        self,
        inputs: Mapping[str, object],
        *,
        on_error: OnError = "raise",
        skipped: list[Skipped] | None = None,
    ) -> list[float]:
        """Score `documents` against `query` → the probability of "yes" for each, in input order.

        `inputs` has the keys query, documents, instruction, fps, max_frames. The query's pictures and videos are
        read and encoded once. `on_error="skip"` gives NaN for a document that cannot be used and appends it to
        `skipped`; "raise" raises InputError or MediaError naming it. A query or instruction that cannot be used
        always raises.
        """
        require_on_error(on_error)
        request = parse_request(inputs)
        scores = [math.nan] * len(request.documents)
        skips: list[Skipped] = []
        if not request.documents:
            return scores
        # It is the same for every document: a bad one is no fault of theirs and cannot be skipped.
        self.package.encoder.rerank_instruction(request.instruction, "inputs")
        query = self._load(request.query, request, "query")
        query_features = self.package.model.visual_features(query.visuals)
        with tqdm(total=len(scores), disable=not self.show_progress, unit="document") as progress:
            for indexes in batches(len(scores), self.batch_size):
                prepared = []
                for index in indexes:
                    try:
                        prepared.append((index, *self._prepare(query, request, index)))
                    except Qwen3VLError as error:
                        if on_error == "raise":
                            raise
                        skips.append(Skipped(index, error))
                for index, logit in self._logits(prepared, query_features):
                    scores[index] = 1 / (1 + math.exp(-logit)) if logit > -LARGEST_EXPONENT else 0.0
                progress.update(len(indexes))
        record_skips(skips, skipped, f"of {len(scores)} documents")
        return scores

    def _load(self, content: Content, request: RerankRequest, where: str) -> Loaded:
        return self.package.encoder.load(content, request.fps, request.max_frames, where)

    def _prepare(self, query: Loaded, request: RerankRequest, index: int) -> tuple[Loaded, TokenSequence]:
        where = f"documents[{index}]"
        document = self._load(parse_content(request.documents[index], where), request, where)
        return document, self.package.encoder.rerank_sequence(query, document, request.instruction, where)

    def _logits(
        self, prepared: Sequence[tuple[int, Loaded, TokenSequence]], query: Sequence[VisualFeatures]
    ) -> list[tuple[int, float]]:
        """(index, logit) of each pair. Raises Qwen3VLError for a result that is not finite."""
        if not prepared:
            return []
        model = self.package.model
        features: list[VisualFeatures] = []
        for _, document, _ in prepared:
            features += [*query, *model.visual_features(document.visuals)]
        logits = model.pooled([sequence for _, _, sequence in prepared], features)
        indexes = [index for index, _, _ in prepared]
        require_finite(logits, [f"documents[{index}]" for index in indexes], self.package.folder)
        return list(zip(indexes, logits.tolist(), strict=True))
