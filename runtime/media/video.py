"""A video file or a list of frames becomes patches and timestamps, as qwen_vl_utils.fetch_video (decord) and
Qwen3VLVideoProcessor do it when the two reference classes call them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, MediaError
from runtime.media.download import FetchLimits
from runtime.media.frame_index import FrameIndex, read_index
from runtime.media.image import PatchGrid, Visual, patchify, resize_image, smart_resize, to_rgb
from runtime.media.linspace import linspace
from runtime.media.resize import resize_frame
from runtime.media.source import ImageSource, content_name, load_image, local_file, require_size
from runtime.media.video_file import checked, opened, require_decoder, upright_rgb

if TYPE_CHECKING:
    from runtime.media.video_file import VideoFrame

FRAME_FACTOR = 2  # frames are taken in pairs
MIN_FRAMES = 4
LIST_FPS = 2.0  # a list of frames carries no rate; the reference assumes this one
# Pixel bounds in units of one token's area (factor * factor), from qwen_vl_utils.
FRAME_MIN_TOKENS, FRAME_MAX_TOKENS = 128, 768
IMAGE_MIN_TOKENS, IMAGE_MAX_TOKENS = 4, 16384
LIBRARY_TOTAL_TOKENS = 128000 * 0.9


@dataclass(frozen=True)
class VideoOptions:
    """How many frames of a video are looked at, and how large.

    `fps` (frames per second of video) applies to files; at most `max_frames` frames share `total_pixels`.
    `strict_budget` gives files the reference's own 117,964,800 pixels, easily over 8,192 tokens.
    `exact_resize` is torch's resize bit for bit, slower.
    """

    fps: float
    max_frames: int
    total_pixels: int
    strict_budget: bool
    exact_resize: bool

    def __post_init__(self) -> None:
        for name in ("fps", "max_frames", "total_pixels"):
            if not getattr(self, name) > 0:
                raise InputError(f"the video option {name} is {getattr(self, name)}; give a number above zero.")

    def file_pixels(self, patch: PatchGrid) -> float:
        """The pixels that all frames of a video file share."""
        return LIBRARY_TOTAL_TOKENS * patch.factor**2 if self.strict_budget else self.total_pixels


class _Frames:
    """The sampled frames, uint8 [count, height, width, 3], each resized as it arrives."""

    def __init__(self, count: int, total_pixels: float, exact_resize: bool, patch: PatchGrid) -> None:
        self.count = count
        self.total_pixels = total_pixels
        self.patch = patch
        self.exact_resize = exact_resize
        self.source_size: tuple[int, int] | None = None

    def put(self, slot: int, pixels: NDArray[np.uint8]) -> None:
        """Keep `pixels` [H, W, 3] as frame `slot`; MediaError where its size is not the first frame's."""
        height, width = pixels.shape[:2]
        if self.source_size is None:
            self.source_size = (height, width)
            size = frame_size(self.source_size, self.count, self.total_pixels, self.patch)
            self.pixels = np.empty((self.count, *size, 3), np.uint8)
        if (height, width) != self.source_size:
            first = f"{self.source_size[1]}x{self.source_size[0]}"
            raise MediaError(f"frame {slot} is {width}x{height} where the first is {first}; make all frames one size.")
        self.pixels[slot] = resize_frame(pixels, *self.pixels.shape[1:3], self.exact_resize)

    def take(self, slot: int, frame: "VideoFrame", limits: FetchLimits) -> None:
        """Keep a decoded frame as `slot`."""
        require_size(frame.width, frame.height, "a frame", limits)  # it need not be the container's
        self.put(slot, upright_rgb(frame))

    def visual(self, indices: Sequence[int], fps: float) -> Visual:
        """All frames as patches; `indices` are their positions in the video, `fps` its rate."""
        size = self.patch.patch_size
        patches = patchify(self.pixels, self.patch)
        grid = (len(patches), self.pixels.shape[1] // size, self.pixels.shape[2] // size)
        return Visual(patches, grid, pair_timestamps(indices, fps), self.patch.spatial_merge_size)


def frame_size(source: tuple[int, int], count: int, total_pixels: float, patch: PatchGrid) -> tuple[int, int]:
    """(height, width) of each of `count` frames of a video that share `total_pixels`; `source` is theirs in it."""
    token = patch.factor * patch.factor
    least = FRAME_MIN_TOKENS * token
    share = min(FRAME_MAX_TOKENS * token, total_pixels / count * FRAME_FACTOR)
    return smart_resize(*source, patch.factor, least, max(share, int(least * 1.05)))


def sample_indices(total: int, video_fps: float, options: VideoOptions) -> NDArray[np.int64]:
    """Which of `total` frames are looked at, int64 [n], n even (smart_nframes, then rounded torch.linspace).

    MediaError where fewer than two frames would be left.
    """
    most = options.max_frames // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(total / video_fps * options.fps, MIN_FRAMES), most, total)
    count = math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR
    if count < FRAME_FACTOR:
        raise MediaError(
            f"{total} frames under max_frames {options.max_frames} leave fewer than the "
            f"{FRAME_FACTOR} that are needed; pass a longer video, an image, or a larger max_frames."
        )
    return np.rint(linspace(total - 1, count)).astype(np.int64)


def pair_timestamps(indices: Sequence[int], fps: float) -> tuple[float, ...]:
    """Seconds of each frame pair, the mean of its two frames (Qwen3VLProcessor._calculate_timestamps)."""
    seconds = [index / fps for index in indices]
    return tuple((first + second) / 2 for first, second in zip(seconds[::2], seconds[1::2], strict=True))


def video_visual(source: str | PathLike[str], options: VideoOptions, limits: FetchLimits, patch: PatchGrid) -> Visual:
    """The video file or http(s) address `source`; only the sampled frames are kept.

    What lies between them is jumped over where the file's packets tell where the frames are, and else decoded too.
    Pixels equal decord's for 8-bit video; FFmpeg versions differ in the chroma of 10-bit video and of odd heights in
    4:2:0. Frames that an edit list hides are not counted, nor, where all is decoded, those that cannot be (decord shows
    others instead). Where frames refer across key frames, decord miscounts after a jump and shows some a few later.

    MediaError names the source where it cannot be fetched, decoded or used; MissingExtraError without PyAV.
    """
    require_decoder()
    name = content_name(source)
    with local_file(source, limits) as path, _naming(name):
        return _file_visual(path, options, limits, patch)


def frames_visual(
    frames: Sequence[ImageSource], options: VideoOptions, limits: FetchLimits, patch: PatchGrid
) -> Visual:
    """A list of frames, each anything load_image takes, as a video of 2 frames per second.

    The last frame is repeated to make an even number. MediaError names the frame that cannot be used.
    """
    if not frames:
        raise MediaError("the list of frames is empty; pass at least one picture.")
    kept: Sequence[ImageSource] = frames
    if len(frames) > options.max_frames:
        kept = [frames[i] for i in np.linspace(0, len(frames) - 1, options.max_frames, dtype=int)]
    count = math.ceil(len(kept) / FRAME_FACTOR) * FRAME_FACTOR
    store = _Frames(count, options.total_pixels, options.exact_resize, patch)
    # fetch_video hands its factor on where a patch size is expected, so the factor is doubled once more.
    factor = patch.factor * patch.spatial_merge_size
    bounds = (IMAGE_MIN_TOKENS * factor * factor, IMAGE_MAX_TOKENS * factor * factor)
    for slot, frame in enumerate(kept):
        with _naming(f"frame {slot}"):
            image = load_image(frame, limits)
        with _naming(content_name(frame)):
            store.put(slot, np.asarray(resize_image(to_rgb(image), factor, *bounds)))
    store.pixels[len(kept) :] = store.pixels[len(kept) - 1]
    return store.visual(range(count), LIST_FPS)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error


def _file_visual(path: str, options: VideoOptions, limits: FetchLimits, patch: PatchGrid) -> Visual:
    with opened(path) as (container, stream):
        require_size(stream.width, stream.height, "a frame", limits)
        # Container headers may lie or be silent about the number of frames; decord counts packets too.
        total, index = read_index(container, stream)
        fps = float(stream.average_rate) if stream.average_rate else 0.0
    if not total or not fps:
        raise MediaError(f"the video has {total} frames at {fps:g} frames per second; convert it to H.264 in MP4.")
    indices = sample_indices(total, fps, options).tolist()
    store = _sought(path, index, indices, options, limits, patch) if index else None
    if store is None:
        store, decoded = _decoded(path, indices, options, limits, patch)
        if decoded <= indices[-1]:
            # Some packets hold no picture that can be shown: sample anew from the number there really is.
            indices = sample_indices(decoded, fps, options).tolist()
            store, _ = _decoded(path, indices, options, limits, patch)
    return store.visual(indices, fps)


def _sought(
    path: str, index: FrameIndex, indices: list[int], options: VideoOptions, limits: FetchLimits, patch: PatchGrid
) -> _Frames | None:
    """The frames at the rising `indices`; None where the file does not hold what its packets promise."""
    store = _Frames(len(indices), options.file_pixels(patch), options.exact_resize, patch)
    slot = -1
    try:
        for slot, frame in enumerate(index.frames(path, indices)):
            store.take(slot, frame, limits)
    except MediaError:
        return None  # decoding the whole file shows what is wrong
    return store if slot + 1 == len(indices) else None


def _decoded(
    path: str, indices: list[int], options: VideoOptions, limits: FetchLimits, patch: PatchGrid
) -> tuple[_Frames, int]:
    """The frames at the rising `indices`, and how many were decoded until the last of them was reached."""
    store = _Frames(len(indices), options.file_pixels(patch), options.exact_resize, patch)
    slot, position = 0, -1
    with opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for position, frame in enumerate(checked(container.decode(stream))):
            if position < indices[slot]:
                continue
            store.take(slot, frame, limits)
            slot += 1
            if slot == len(indices):
                break
    return store, position + 1
