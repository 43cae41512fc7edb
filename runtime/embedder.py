"""`Qwen3VLEmbedder`: the reference's class of that name on onnxruntime."""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

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
from runtime.prompts.inputs import parse_item, require_list
from runtime.prompts.tokens import SpecialTokens
from runtime.sentences import encode_items, explain_encode_options
from runtime.shared import SharesPackage
from runtime.vectors import finish, require_dimensions


class Qwen3VLEmbedder(SharesPackage):
    """Embeds texts, pictures, videos and mixtures with a package made by `python -m export`.

    The options up to `default_instruction` are the reference's, with the same defaults (pixels, frames per second,
    tokens). Keyword-only: `dimensions` cuts every vector (Matryoshka); `batch_tokens` go through the decoder together,
    padding included, and longer inputs in pieces of as many; `providers` and `threads` are onnxruntime's, the provider
    that the package was made for first; `memory="low"` takes less of it and more time; `special_tokens`,
    `strict_video_budget`, `exact_resize` and `fetch` as in `runtime.prompts.encode.EncodeOptions`. Raises InputError
    for an option, PackageError, OutOfMemoryError. Several threads may share one.
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
            self.package = open_package(model_name_or_path, "embedding", given, providers, threads, memory)
        self.batch_tokens = batch_tokens or self.package.memory.batch_tokens
        self.show_progress = show_progress
        self.dimensions = require_dimensions(dimensions, self.package.manifest.text.hidden_size)

    def release_vision(self) -> None:
        """Give the vision encoder's memory back until the next picture; `memory="low"` does so itself."""
        self.package.model.vision.release()

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
        cannot be used and appends it to `skipped`; "raise" raises InputError, MediaError, OutOfMemoryError or
        NotFiniteError naming the input.
        """
        require_on_error(on_error)
        items = require_list(inputs)
        width = self._width(dimensions)
        rows = np.full((len(items), width), np.nan, np.float32)
        errors: Errors = {}
        noted = None if on_error == "raise" else errors
        with counting(len(items), "input", self.show_progress) as progress:
            for indexes, pooled in self._pooled(items, noted):
                rows[indexes] = finish(pooled, width, normalize)
                progress(len(indexes))
            progress(len(errors))
        record_skips([Skipped(*each) for each in sorted(errors.items())], skipped, f"of {len(items)} inputs")
        return rows

    def encode(
        self,
        inputs: object,
        *,
        prompt: str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        **sentence_transformers_options: object,
    ) -> np.ndarray:
        """As in sentence-transformers: one text, PIL image or dict → float32 [D], a list of them → float32 [N, D].

        `prompt` is the instruction, `truncate_dim` the `dimensions` of `process`. Their `encode`'s other options are
        answered with a warning, or with InputError where they ask for another result; so is a string that looks like
        the path or address of a picture or video. Raises what `process` raises, too.
        """
        explain_encode_options(sentence_transformers_options)
        items, is_single = encode_items(inputs, prompt)
        rows = self.process(items, normalize_embeddings, dimensions=truncate_dim)
        return rows[0] if is_single else rows

    def stream(
        self,
        inputs: Iterable[object],
        normalize: bool = True,
        *,
        dimensions: int | None = None,
        on_error: OnError = "raise",
        skipped: list[Skipped] | None = None,
    ) -> Iterator[np.ndarray]:
        """As `process`, for inputs without end: a row float32 [dimensions] for each, in order.

        Inputs are read ahead as far as sorting them by length needs: eight calls of `batch_tokens`, at most 256. One
        that cannot be used raises when its turn comes, after the rows of those before it, and ends the reading; so does
        what `inputs` raises.
        """
        require_on_error(on_error)
        width = self._width(dimensions)
        skips = [] if skipped is None else skipped
        errors: Errors = {}
        done: dict[int, np.ndarray] = {}
        broken: list[Exception] = []
        ending: Errors = errors if on_error == "raise" else {}
        turn = 0
        for indexes, pooled in self._pooled(_readable(inputs, broken, ending), errors):
            done |= zip(indexes, finish(pooled, width, normalize), strict=True)
            while turn in done or turn in errors:
                if turn in ending:
                    raise ending[turn]
                if turn in errors:
                    skips.append(Skipped(turn, errors.pop(turn)))
                    yield np.full(width, np.nan, np.float32)
                else:
                    yield done.pop(turn)
                turn += 1
        if skipped is None:
            record_skips(skips, None, f"of {turn} inputs")
        if broken:
            raise broken[0]

    def _width(self, dimensions: int | None) -> int:
        chosen = self.dimensions if dimensions is None else dimensions
        return require_dimensions(chosen, self.package.manifest.text.hidden_size)

    def _entries(self, inputs: Iterable[object], errors: Errors | None) -> Iterator[Entry | None]:
        """Inputs as entries, one at a time; what is wrong with one is noted in `errors` and gives None, or raised."""
        for index, item in enumerate(inputs):
            where = f"inputs[{index}]"
            entry = None
            with noting(errors, index), blaming(where, LOADING):
                parsed = parse_item(item, where)
                loaded = self.package.encoder.load(parsed.content, parsed.fps, parsed.max_frames, where)
                sequence = self.package.encoder.embedding_sequence(loaded, parsed.instruction, where)
                entry = Entry(index, where, sequence, loaded.visuals)
            yield entry

    def _pooled(self, inputs: Iterable[object], errors: Errors | None) -> Iterator[tuple[list[int], np.ndarray]]:
        """Hidden states float32 [B, D] of the last tokens."""
        request = Request(self.package.model, self.batch_tokens, errors)
        return request.pooled(self._entries(inputs, errors))


def _readable(inputs: Iterable[object], broken: list[Exception], ending: Errors) -> Iterator[object]:
    """The inputs up to where there is an error in `ending`, or reading them raises, which is put into `broken`."""
    try:
        for item in inputs:
            yield item
            if ending:
                return
    except Exception as error:
        broken.append(error)
