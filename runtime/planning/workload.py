"""Inputs known by their size alone: prompts of the length that real ones would have, without a pixel or a graph."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from runtime.errors import InputError
from runtime.manifest import Task
from runtime.media.image import Visual, smart_resize
from runtime.media.source import require_size
from runtime.media.video import frame_size, pair_timestamps, sample_indices
from runtime.prompts.encode import Encoder, Loaded, TokenSequence
from runtime.prompts.inputs import Content

QUERY = Loaded(Content(("a red car",)), ())  # of the pair in which a reranker's input stands
VIDEO_FPS = 30  # of a video of which only the seconds are known
NO_LIMIT = 2**40
TOKENS = re.compile(r"(?:(\d+)x)?(\d+)")
PICTURE = re.compile(r"(\d+)x(\d+)")
VIDEO = re.compile(r"(\d+(?:\.\d+)?)s@(\d+)x(\d+)")


@dataclass(frozen=True, eq=False)
class Workload:
    """`count` inputs of one kind that are given together, and the (height, width) of the source of a visual.

    `beyond`: tokens of the text that are left out of `loaded`, as they are over max_length anyway.
    """

    name: str
    loaded: Loaded
    count: int = 1
    source: tuple[int, int] = (0, 0)
    beyond: int = 0


@dataclass(frozen=True)
class Outline:
    """What a workload is to the graphs: `sequence` of each input, None where it is refused, and `note` says why.

    `tokens` are those of the prompt before anything is cut; `note` is empty where nothing is.
    """

    sequence: TokenSequence | None
    tokens: int
    visual_tokens: int
    note: str


def text_workload(size: str, encoder: Encoder) -> Workload:
    """`128` or, for four of them together, `4x128` tokens of text. Raises InputError."""
    expected = "a number of tokens such as 128, or 4x128 for four texts"
    count, tokens = map(int, _numbers(TOKENS, size, "--tokens", expected))
    name = f"{f'{count} texts' if count > 1 else 'text'} of {tokens:,} tokens"
    read = min(tokens, encoder.options.max_length)
    return Workload(name, Loaded(Content((words(read),)), ()), count, beyond=tokens - read)


def picture_workload(size: str, encoder: Encoder) -> Workload:
    """A picture of `WIDTHxHEIGHT` pixels. Raises InputError, also for one the runtime refuses."""
    width, height = map(int, _numbers(PICTURE, size, "--image", "the size of a picture such as 4000x3000"))
    options, patch = encoder.options, encoder.patch
    require_size(width, height, "it", options.fetch)
    resized = smart_resize(height, width, patch.factor, options.min_pixels, options.max_pixels)
    visual = _blank(encoder, (1, resized[0] // patch.patch_size, resized[1] // patch.patch_size), None)
    return Workload(f"picture {size}", Loaded(Content(images=("",)), (visual,)), source=(height, width))


def video_workload(size: str, encoder: Encoder) -> Workload:
    """A video file of `SECONDSs@WIDTHxHEIGHT`, at VIDEO_FPS frames a second. Raises InputError."""
    seconds, *sides = _numbers(VIDEO, size, "--video", "seconds and size of a video such as 30s@1280x720")
    width, height = map(int, sides)
    options, patch = encoder.video_options(), encoder.patch
    indices = sample_indices(max(1, round(seconds * VIDEO_FPS)), VIDEO_FPS, options).tolist()
    rows, columns = frame_size((height, width), len(indices), options.file_pixels(patch), patch)
    grid = (len(indices) // patch.temporal_patch_size, rows // patch.patch_size, columns // patch.patch_size)
    visual = _blank(encoder, grid, pair_timestamps(indices, VIDEO_FPS))
    return Workload(f"video {size}", Loaded(Content(videos=("",)), (visual,)), source=(height, width))


def outline(workload: Workload, encoder: Encoder, task: Task) -> Outline:
    """The prompt of each input, cut or refused as the runtime cuts and refuses."""
    whole = Encoder(encoder.tokenizer, encoder.patch, replace(encoder.options, max_length=NO_LIMIT))
    asked = prompt_of(workload.loaded, whole, task, workload.name)
    tokens, visual_tokens = len(asked.input_ids) + workload.beyond, int(asked.is_visual.sum())
    try:
        sequence = prompt_of(workload.loaded, encoder, task, workload.name)
    except InputError as error:
        return Outline(None, tokens, visual_tokens, f"refused, {error}")
    lost = tokens - len(sequence.input_ids)
    limit = encoder.options.max_length
    note = f"{workload.name}: {tokens:,} tokens are over max_length {limit:,}, {lost:,} of the text are cut."
    return Outline(sequence, tokens, visual_tokens, note if lost else "")


def prompt_of(loaded: Loaded, encoder: Encoder, task: Task, where: str) -> TokenSequence:
    """The prompt in which an input stands alone, or as the document of QUERY. Raises InputError."""
    if task == "embedding":
        return encoder.embedding_sequence(loaded, None, where)
    return encoder.rerank_sequence(QUERY, loaded, None, where)


def words(tokens: int) -> str:
    """A text of as many tokens, each of them a word."""
    return "a" + " a" * (tokens - 1)


def _numbers(pattern: re.Pattern[str], text: str, flag: str, expected: str) -> list[float]:
    """The numbers in `text`, 1 for one left out. Raises InputError unless all are there, positive and finite."""
    match = pattern.fullmatch(text)
    numbers = [float(group or 1) for group in match.groups()] if match else []
    if not numbers or min(numbers) <= 0 or max(numbers) == math.inf:
        raise InputError(f"{flag} is {text!r}, expected {expected}.")
    return numbers


def _blank(encoder: Encoder, grid: tuple[int, int, int], timestamps: tuple[float, ...] | None) -> Visual:
    """A visual of which no pixel is stored."""
    patch = encoder.patch
    numbers = 3 * patch.temporal_patch_size * patch.patch_size**2
    patches = np.broadcast_to(np.float32(0), (grid[0], grid[1] * grid[2], numbers))
    return Visual(patches, grid, timestamps, patch.spatial_merge_size)
