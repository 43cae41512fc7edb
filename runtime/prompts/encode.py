"""From a content of texts, pictures and videos to what the graphs take: visuals loaded, prompt tokenised, cut, counted.

No graph runs here, so everything that can be wrong with an input is found before the expensive part.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from runtime.errors import InputError, Qwen3VLError
from runtime.manifest import TOKENIZER, TokenIds, VisionConfig
from runtime.media.image import PatchGrid, Visual, image_visual
from runtime.media.source import FetchLimits, ImageSource, content_name, load_image
from runtime.media.video import VideoOptions, frames_visual, video_visual
from runtime.notice import warn_caller
from runtime.prompts import prompt
from runtime.prompts.inputs import Content, VideoSource, looks_like_media, place, require_text
from runtime.prompts.tokens import SPECIAL_TOKENS, PromptTokenizer, SpecialTokens

DEFAULT_LIMITS = FetchLimits()
HIGHEST_FPS = sys.float_info.max  # an int may be higher, and then is no float


@dataclass(frozen=True)
class EncodeOptions:
    """The options of the reference's constructors (lengths in tokens, budgets in pixels), and our own below them.

    `special_tokens`: whether special tokens in a user's text are tokenised as such ("allow", as the reference does),
    made ordinary characters ("escape") or refused ("refuse").
    `strict_video_budget`: give video files the reference's own pixel budget instead of `total_pixels`.
    `exact_resize`: resize video frames bit by bit as torch does, slower.
    """

    max_length: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    fps: float
    max_frames: int
    default_instruction: str
    special_tokens: SpecialTokens = "allow"
    strict_video_budget: bool = False
    exact_resize: bool = False
    fetch: FetchLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{field.name} is {value!r}, expected a positive whole number.")
        if isinstance(self.fps, bool) or not isinstance(self.fps, int | float) or not 0 < self.fps <= HIGHEST_FPS:
            raise InputError(f"fps is {self.fps!r}, expected a positive number.")
        if self.max_pixels < self.min_pixels:
            raise InputError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}; swap or widen them.")
        require_text(self.default_instruction, "default_instruction", "a string")
        if not isinstance(self.fetch, FetchLimits):
            raise InputError(f"fetch is {self.fetch!r:.60}, expected FetchLimits such as FetchLimits(timeout=5).")
        if self.special_tokens not in SPECIAL_TOKENS:
            raise InputError(f"special_tokens is {self.special_tokens!r}, expected one of {', '.join(SPECIAL_TOKENS)}.")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A content whose pictures and videos are patches; `visuals` stand in the order of the prompt."""

    content: Content
    visuals: tuple[Visual, ...]


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One prompt: input_ids int64 [S], is_visual bool [S], blocks (rows, columns) of merged cells in order.

    The first `preamble` tokens are in front of what the user gives: system turn and instruction.
    """

    input_ids: np.ndarray
    is_visual: np.ndarray
    blocks: tuple[tuple[int, int], ...]
    preamble: int = 0


class Encoder:
    """Loads contents and builds token sequences for one package. May be used from several threads."""

    def __init__(self, tokenizer: PromptTokenizer, patch: PatchGrid, options: EncodeOptions):
        self.tokenizer, self.patch, self.options = tokenizer, patch, options
        self._warned = False

    def load(self, content: Content, fps: float | None, max_frames: int | None, where: str) -> Loaded:
        """Check the texts and load the visuals: videos, then pictures. Raises InputError starting with `where`."""
        text = self._checked(content.texts, f"{where}: text")
        video_options = self.video_options(fps, max_frames)
        visuals = []
        for index, video in enumerate(content.videos):
            with located(place(f"{where}: video", index, len(content.videos))):
                visuals.append(self._video(video, video_options))
        for index, image in enumerate(content.images):
            with located(place(f"{where}: image", index, len(content.images))):
                visuals.append(self._picture(image))
        return Loaded(Content(text, content.images, content.videos), tuple(visuals))

    def video_options(self, fps: float | None = None, max_frames: int | None = None) -> VideoOptions:
        """How video files are looked at; `fps` and `max_frames` replace those of the constructor."""
        options = self.options
        return VideoOptions(
            fps or options.fps,
            max_frames or options.max_frames,
            options.total_pixels,
            options.strict_video_budget,
            options.exact_resize,
        )

    def embedding_sequence(self, loaded: Loaded, instruction: str | None, where: str) -> TokenSequence:
        """The embedder's prompt for one content. Raises InputError where it is too long."""
        chosen = prompt.embedding_instruction(instruction, self.options.default_instruction)
        text = prompt.embedding_prompt(loaded.content, self._instruction(chosen, where))
        return self._sequence(text, loaded.visuals, self.tokenizer.embedding_ids, where)

    def rerank_sequence(self, query: Loaded, document: Loaded, instruction: str | None, where: str) -> TokenSequence:
        """The reranker's prompt for one pair, its texts cut to the length limit. Raises InputError."""
        text = prompt.rerank_prompt(query.content, document.content, self.rerank_instruction(instruction, where))
        return self._sequence(text, query.visuals + document.visuals, self.tokenizer.rerank_ids, where)

    def rerank_instruction(self, instruction: str | None, where: str) -> str:
        """The instruction of a rerank request, or the default. Raises InputError for a visual pad in it."""
        return self._instruction(instruction or self.options.default_instruction, where)

    def _instruction(self, instruction: str, where: str) -> str:
        return self.tokenizer.checked_text(instruction, self.options.special_tokens, f"{where}: instruction")

    def _checked(self, texts: Sequence[str], where: str) -> tuple[str, ...]:
        """The texts as one, as the prompt joins them: two of them may make a special token together."""
        path_like = None if self._warned else next(filter(looks_like_media, texts), None)
        if path_like is not None:
            self._warned = True
            warn_caller(
                f"{where} {path_like!r:.80} looks like a picture's path or address and is embedded as text; "
                "pass it as 'image' to embed the picture."
            )
        return (self.tokenizer.checked_text("".join(texts), self.options.special_tokens, where),) if texts else ()

    def _picture(self, image: ImageSource) -> Visual:
        picture = load_image(image, self.options.fetch)
        with located(content_name(image)):
            return image_visual(picture, self.options.min_pixels, self.options.max_pixels, self.patch)

    def _video(self, video: VideoSource, options: VideoOptions) -> Visual:
        if isinstance(video, tuple):
            # A list of frames obeys the constructor's max_frames, as in the reference.
            return frames_visual(video, self.video_options(), self.options.fetch, self.patch)
        return video_visual(video, options, self.options.fetch, self.patch)

    def _sequence(
        self,
        text: str,
        visuals: Sequence[Visual],
        tokenize: Callable[[str, int], np.ndarray],
        where: str,
    ) -> TokenSequence:
        tokens = [prompt.VisualTokens(visual.tokens_per_frame, visual.timestamps) for visual in visuals]
        with located(where):
            ids = tokenize(prompt.expand_visuals(text, tokens), self.options.max_length)
        merge = self.patch.spatial_merge_size
        blocks = tuple(
            (visual.grid[1] // merge, visual.grid[2] // merge) for visual in visuals for _ in range(visual.grid[0])
        )
        return TokenSequence(ids, self.tokenizer.is_visual(ids), blocks, self.tokenizer.preamble(ids))


def make_encoder(folder: Path, vision: VisionConfig, tokens: TokenIds, options: EncodeOptions) -> Encoder:
    """The encoder of a package or a checkpoint; its tokenizer.json lies in `folder`."""
    patch = PatchGrid(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    return Encoder(PromptTokenizer(folder / TOKENIZER, tokens), patch, options)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place of the item before an error's sentence."""
    try:
        yield
    except Qwen3VLError as error:
        raise type(error)(f"{where}: {error}") from error
