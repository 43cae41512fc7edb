"""`Qwen3VLReranker`: the reference's class of that name on onnxruntime."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence

from runtime.faults import LOADING, OPENING, Errors, blaming, noting
from runtime.graphs.memory import MemoryMode
from runtime.graphs.package import (
    OnError,
    Skipped,
    explain_torch_options,
    open_package,
    record_skips,
    require_on_error,
    require_positive,
)
from runtime.graphs.windows import Entry, Request
from runtime.media.source import FetchLimits
from runtime.progress import counting
from runtime.prompts.encode import Loaded
from runtime.prompts.inputs import Content, RerankRequest, parse_content, parse_request
from runtime.prompts.tokens import SpecialTokens
from runtime.shared import SharesPackage

LARGEST_EXPONENT = 700.0


def probability(logit: float) -> float:
    """Of "yes": the sigmoid, without overflow."""
    return 1 / (1 + math.exp(-logit)) if logit > -LARGEST_EXPONENT else 0.0


class Qwen3VLReranker(SharesPackage):
    """Scores documents against a query, each side texts, pictures, videos or mixtures.

    The options up to `default_instruction` are the reference's, with the same defaults (pixels, frames per second,
    tokens). Keyword-only: `batch_tokens` go through the decoder together, padding included, and longer pairs in pieces
    of as many; `providers` and `threads` are onnxruntime's, the provider that the package was made for first;
    `memory="low"` takes less of it and more time; `special_tokens`, `strict_video_budget`, `exact_resize` and `fetch`
    as in `runtime.prompts.encode.EncodeOptions`. Raises InputError for an option, PackageError, OutOfMemoryError.
    Several threads may share one.
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
        batch_tokens: int | None = None,
        show_progress: bool = False,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        memory: MemoryMode = "normal",
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
        if batch_tokens is not None:
            require_positive("batch_tokens", batch_tokens)
        with blaming(str(model_name_or_path), OPENING):
            self.package = open_package(model_name_or_path, "reranker", given, providers, threads, memory)
        self.batch_tokens = batch_tokens or self.package.memory.batch_tokens
        self.show_progress = show_progress

    def release_vision(self) -> None:
        """Give the vision encoder's memory back until the next picture; `memory="low"` does so itself."""
        self.package.model.vision.release()

    def process(
        self,
        inputs: Mapping[str, object],
        *,
        on_error: OnError = "raise",
        skipped: list[Skipped] | None = None,
    ) -> list[float]:
        """Score `documents` against `query` → the probability of "yes" for each, in input order.

        `inputs` has the keys query, documents, instruction, fps, max_frames. What the prompts begin with, the query and
        its pictures and videos, is computed once. `on_error="skip"` gives NaN for a document that cannot be used and
        appends it to `skipped`; "raise" raises InputError, MediaError, OutOfMemoryError or NotFiniteError naming it. A
        query or instruction that cannot be used always raises.
        """
        require_on_error(on_error)
        request = parse_request(inputs)
        scores = [math.nan] * len(request.documents)
        if not request.documents:
            return scores
        # It is the same for every document: a bad one is no fault of theirs and cannot be skipped.
        self.package.encoder.rerank_instruction(request.instruction, "inputs")
        with blaming("query", LOADING):
            query = self._load(request.query, request, "query")
        errors: Errors = {}
        noted = None if on_error == "raise" else errors
        with counting(len(scores), "document", self.show_progress) as progress:
            for index, logit in self._logits(query, request, noted):
                scores[index] = probability(logit)
                progress(1)
            progress(len(errors))
        record_skips([Skipped(*each) for each in sorted(errors.items())], skipped, f"of {len(scores)} documents")
        return scores

    def _load(self, content: Content, request: RerankRequest, where: str) -> Loaded:
        return self.package.encoder.load(content, request.fps, request.max_frames, where)

    def _entries(self, query: Loaded, request: RerankRequest, errors: Errors | None) -> Iterator[Entry]:
        """Documents as entries, one at a time; what is wrong with one is noted in `errors`, or raised without it."""
        for index, item in enumerate(request.documents):
            where = f"documents[{index}]"
            with noting(errors, index), blaming(where, LOADING):
                document = self._load(parse_content(item, where), request, where)
                sequence = self.package.encoder.rerank_sequence(query, document, request.instruction, where)
                yield Entry(index, where, sequence, document.visuals)

    def _logits(self, query: Loaded, request: RerankRequest, errors: Errors | None) -> Iterator[tuple[int, float]]:
        """(index, logit) of each pair."""
        run = Request(self.package.model, self.batch_tokens, errors)
        before = run.features(query.visuals, "query")
        for indexes, logits in run.pooled(self._entries(query, request, errors), before):
            yield from zip(indexes, logits.tolist(), strict=True)
