"""`Qwen3VLEmbedder`: the reference's class of that name on onnxruntime."""

import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from runtime.encode import Loaded, TokenSequence
from runtime.errors import Qwen3VLError
from runtime.inputs import parse_item, require_list
from runtime.media import FetchLimits
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
from runtime.vectors import finish, require_dimensions

BATCH_SIZE = 4


class Qwen3VLEmbedder:
    """Embeds texts, pictures, videos and mixtures with a package made by `python -m export`.

    The options up to `default_instruction` are the reference's, with the same defaults (pixels, frames per second,
    tokens). Keyword-only: `dimensions` cuts every vector (Matryoshka); `batch_size` inputs go through the decoder
    together; `providers` and `threads` choose where onnxruntime runs; `special_tokens`, `strict_video_budget`,
    `exact_resize` and `fetch` as in `runtime.encode.EncodeOptions`. Raises PackageError. Several threads may share one.
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
        dimensions: int | None = None,
        batch_size: int = BATCH_SIZE,
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
        self.package = open_package(model_name_or_path, "embedding", given, providers, threads)
        self.dimensions = require_dimensions(dimensions, self.package.manifest.text.hidden_size)

    def process(
        self,
        inputs: Sequence[object],
        normalize: bool = True,
        *,
        dimensions: int | None = None,
        on_error: OnError = "raise",
        skipped: list[Skipped] | None = None,
    ) -> np.ndarray:
        """Embed a list of dicts (text, image, video, instruction, fps, max_frames) → float32 [N, dimensions].

        Rows are L2-normalised unless `normalize` is False. `on_error="skip"` leaves a NaN row for an input that
        cannot be used and appends it to `skipped`; "raise" raises InputError or MediaError naming the input.
        """
        require_on_error(on_error)
        items = require_list(inputs)
        width = require_dimensions(
            self.dimensions if dimensions is None else dimensions, self.package.manifest.text.hidden_size
        )
        rows = np.full((len(items), width), np.nan, np.float32)
        skips: list[Skipped] = []
        with tqdm(total=len(items), disable=not self.show_progress, unit="input") as progress:
            for indexes in batches(len(items), self.batch_size):
                prepared = []
                for index in indexes:
                    try:
                        prepared.append((index, *self._prepare(items[index], f"inputs[{index}]")))
                    except Qwen3VLError as error:
                        if on_error == "raise":
                            raise
                        skips.append(Skipped(index, error))
                if prepared:
                    kept, loaded, sequences = zip(*prepared, strict=True)
                    rows[list(kept)] = finish(self._pooled(kept, loaded, sequences), width, normalize)
                progress.update(len(indexes))
        record_skips(skips, skipped, f"of {len(items)} inputs")
        return rows

    def _prepare(self, item: object, where: str) -> tuple[Loaded, TokenSequence]:
        parsed = parse_item(item, where)
        loaded = self.package.encoder.load(parsed.content, parsed.fps, parsed.max_frames, where)
        return loaded, self.package.encoder.embedding_sequence(loaded, parsed.instruction, where)

    def _pooled(
        self, indexes: Sequence[int], loaded: Sequence[Loaded], sequences: Sequence[TokenSequence]
    ) -> np.ndarray:
        """Hidden states float32 [B, D] of the last tokens. Raises Qwen3VLError for a result that is not finite."""
        model = self.package.model
        features = model.visual_features([visual for each in loaded for visual in each.visuals])
        pooled = model.pooled(sequences, features)
        require_finite(pooled, [f"inputs[{index}]" for index in indexes], self.package.folder)
        return pooled
