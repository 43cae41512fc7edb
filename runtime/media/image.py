"""Picture to patches, as qwen_vl_utils.fetch_image and Qwen2VLImageProcessorFast do it (do_resize=False)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import InputError, MediaError

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PatchGrid:
    """How the vision tower cuts pixels: patch side, frames per patch, patches per token side."""

    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2

    @property
    def factor(self) -> int:
        """Every side of a resized picture is a multiple of this many pixels."""
        return self.patch_size * self.spatial_merge_size


@dataclass(frozen=True, eq=False)
class Visual:
    """One picture or video, ready for the vision graph.

    `patches` float32 [F, P, C*T*ps*ps]; `grid` = (t, h, w) in patches with t == F and h*w == P;
    `timestamps` in seconds, one per frame pair, None for a picture.
    """

    patches: NDArray[np.float32]
    grid: tuple[int, int, int]
    timestamps: tuple[float, ...] | None
    spatial_merge_size: int = 2

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame pair (or of the picture)."""
        return self.grid[1] * self.grid[2] // self.spatial_merge_size**2

    @property
    def num_tokens(self) -> int:
        """Visual tokens of the picture, or of all frame pairs."""
        return self.grid[0] * self.tokens_per_frame


def to_rgb(image: Image.Image) -> Image.Image:
    """RGBA over white by its alpha, every other mode by Pillow's own conversion (qwen_vl_utils.to_rgb)."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    if isinstance(image.info.get("transparency"), bytes):
        # Pillow would only warn that the palette's alpha is dropped; the pixels are the same without it.
        image = image.copy()
        del image.info["transparency"]
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise MediaError(f"pictures of mode {image.mode} cannot become RGB ({error}); convert it first.") from error


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """(height, width) in multiples of `factor` with an area within the bounds (qwen_vl_utils.smart_resize).

    Rounds half to even. MediaError for sides more than 200 to 1, or one that max_pixels shrinks to nothing; InputError
    for a max_pixels below min_pixels.
    """
    if max_pixels < min_pixels:
        raise InputError(f"max_pixels {max_pixels} is below min_pixels {min_pixels}; give a budget that leaves room.")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            f"{width}x{height} pixels have an aspect ratio of {ratio:.0f}, over the limit of "
            f"{MAX_ASPECT_RATIO}; crop or pad it."
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = math.floor(height / shrink / factor) * factor
        new_width = math.floor(width / shrink / factor) * factor
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    if not new_height or not new_width:
        raise MediaError(
            f"{width}x{height} pixels do not fit into max_pixels {max_pixels} with sides of at least "
            f"{factor}; crop it or raise max_pixels."
        )
    return new_height, new_width


def resize_image(image: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """An RGB picture at its smart_resize size, bicubic on uint8."""
    height, width = smart_resize(image.height, image.width, factor, min_pixels, max_pixels)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def patchify(frames: NDArray[np.uint8], patch: PatchGrid) -> NDArray[np.float32]:
    """uint8 [T, H, W, C] → float32 [T/temporal, P, C*temporal*ps*ps] in -1...1, patches in merge-block order.

    T, H and W must be multiples of the grid's sizes. One row is (channel, time, y, x).
    """
    size, merge, pair = patch.patch_size, patch.spatial_merge_size, patch.temporal_patch_size
    count, height, width, channels = frames.shape
    blocks = frames.reshape(
        count // pair, pair, height // patch.factor, merge, size, width // patch.factor, merge, size, channels
    )
    # (t, pair, H, mh, y, W, mw, x, c) → (t, H, W, mh, mw, c, pair, y, x)
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(
        count // pair, (height // size) * (width // size), channels * pair * size * size
    )
    # The float32 values of rescale + normalise with mean and deviation 0.5, by one look-up.
    table = (np.arange(256, dtype=np.float32) - np.float32(127.5)) / np.float32(127.5)
    return table[ordered]


def image_visual(image: Image.Image, min_pixels: int, max_pixels: int, patch: PatchGrid) -> Visual:
    """A decoded picture of any mode, doubled in time to one frame pair, within the pixel budget.

    MediaError where its shape or mode cannot be used.
    """
    pixels = np.asarray(resize_image(to_rgb(image), patch.factor, min_pixels, max_pixels))
    height, width, channels = pixels.shape
    frames = np.broadcast_to(pixels, (patch.temporal_patch_size, height, width, channels))
    grid = (1, height // patch.patch_size, width // patch.patch_size)
    return Visual(patchify(frames, patch), grid, None, patch.spatial_merge_size)
