"""Pictures to patches, against qwen_vl_utils and transformers' fast image processor."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError, MediaError
from runtime.media.download import FetchLimits
from runtime.media.image import PatchGrid, image_visual, patchify, smart_resize, to_rgb
from runtime.media.source import load_image

PATCH = PatchGrid()
MIN_PIXELS, MAX_PIXELS = 4 * 1024, 1800 * 1024


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.fromarray(noise(60, 90, 3)).quantize(16)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


PICTURES = {
    "rgb": lambda: Image.fromarray(noise(100, 150, 3)),
    "rgba": lambda: Image.fromarray(noise(100, 150, 4)),
    "palette": lambda: palette(None),
    "palette-one-transparent": lambda: palette(3),
    "palette-alphas": lambda: palette(bytes(range(0, 160, 10))),
    "grey-alpha": lambda: Image.fromarray(noise(64, 70, 4)).convert("LA"),
    "cmyk": lambda: Image.merge("CMYK", [Image.fromarray(noise(64, 70, 1, seed)) for seed in range(4)]),
    "16-bit": lambda: Image.fromarray(np.random.default_rng(0).integers(0, 65536, (70, 90), dtype=np.uint16)),
    "grey": lambda: Image.fromarray(noise(70, 90, 1)),
    "bilevel": lambda: Image.fromarray(noise(70, 90, 1)).convert("1"),
    "one-pixel": lambda: Image.fromarray(noise(1, 1, 3)),
    "panorama": lambda: Image.fromarray(noise(40, 5000, 3)),
    "half-even-80x80": lambda: Image.fromarray(noise(80, 80, 3)),
    "half-even-48x112": lambda: Image.fromarray(noise(48, 112, 3)),
    "over-budget": lambda: Image.fromarray(noise(1500, 1700, 3)),
}


@pytest.fixture(scope="module")
def reference() -> Any:
    """picture or file:// address → (pixel values [patches, 1536], grid [1, 3]) of the reference."""
    pytest.importorskip("torch")
    importlib.import_module("export.reference").prepare_reference_imports()
    fetch_image = importlib.import_module("qwen_vl_utils.vision_process").fetch_image
    fast = importlib.import_module("transformers.models.qwen2_vl.image_processing_qwen2_vl_fast")
    processor = fast.Qwen2VLImageProcessorFast(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def run(image: Image.Image | str) -> tuple[Any, Any]:
        item = {"image": image, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        picture = fetch_image(item, image_patch_size=16)
        outputs = processor(images=[picture], do_resize=False, return_tensors="pt")
        return outputs["pixel_values"].numpy(), outputs["image_grid_thw"].numpy()

    return run


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # the reference's, not ours
def test_every_kind_of_picture_equals_the_reference(name: str, reference: Any) -> None:
    image = PICTURES[name]()
    expected, grid = reference(image.copy())
    visual = image_visual(image, MIN_PIXELS, MAX_PIXELS, PATCH)
    assert visual.patches.dtype == np.float32
    assert [list(visual.grid)] == grid.tolist()
    assert np.abs(visual.patches[0] - expected).max() == 0.0
    assert visual.tokens_per_frame * 4 == len(expected)
    assert visual.timestamps is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_every_file_format_equals_the_reference(suffix: str, tmp_path: Path, reference: Any) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(noise(120, 90, 3)).save(path)
    with Image.open(path) as theirs:  # given the path, the reference leaves GIF files open
        expected, grid = reference(theirs)
    visual = image_visual(load_image(path, FetchLimits()), MIN_PIXELS, MAX_PIXELS, PATCH)
    assert [list(visual.grid)] == grid.tolist()
    assert np.abs(visual.patches[0] - expected).max() == 0.0


def test_exif_rotation_is_not_applied(tmp_path: Path, reference: Any) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(64, 128, 3)).save(path, exif=exif)
    visual = image_visual(load_image(path, FetchLimits()), MIN_PIXELS, MAX_PIXELS, PATCH)
    assert visual.grid == (1, 4, 8)
    assert np.array_equal(visual.patches[0], reference(f"file://{path}")[0])


def test_palette_alphas_do_not_warn() -> None:
    assert to_rgb(PICTURES["palette-alphas"]()).mode == "RGB"  # a warning would fail the test


def test_patch_rows_are_channel_time_y_x_in_merge_blocks() -> None:
    grid = PatchGrid(patch_size=1, temporal_patch_size=2, spatial_merge_size=2)
    frames = np.zeros((2, 2, 4, 3), np.uint8)
    frames[0, :, :, 0] = [[0, 1, 2, 3], [4, 5, 6, 7]]
    frames[1, :, :, 0] = frames[0, :, :, 0] + 10
    values = np.rint(patchify(frames, grid) * 127.5 + 127.5).astype(int)
    assert values.shape == (1, 8, 6)
    assert values[0, :, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert values[0, :, 1].tolist() == [10, 11, 14, 15, 12, 13, 16, 17]
    assert not values[0, :, 2:].any()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (80, 80, (64, 64)),
        (48, 112, (64, 128)),
        (1, 1, (64, 64)),
        (40, 5000, (32, 4992)),
        (16, 100, (32, 160)),
    ],
)
def test_sizes_round_half_to_even(height: int, width: int, size: tuple[int, int]) -> None:
    assert smart_resize(height, width, 32, MIN_PIXELS, MAX_PIXELS) == size


def test_sizes_equal_the_reference(reference: Any) -> None:
    theirs = importlib.import_module("qwen_vl_utils.vision_process").smart_resize
    sides = np.random.default_rng(0).integers(1, 3000, (2000, 2))
    for height, width in sides[np.max(sides, 1) / np.min(sides, 1) <= 200].tolist():
        expected = theirs(height, width, 32, MIN_PIXELS, MAX_PIXELS)
        assert smart_resize(height, width, 32, MIN_PIXELS, MAX_PIXELS) == expected


def test_unusable_shapes_and_budgets_are_refused() -> None:
    with pytest.raises(MediaError, match="4020x20 pixels have an aspect ratio of 201, over the limit of 200"):
        smart_resize(20, 4020, 32, MIN_PIXELS, MAX_PIXELS)
    with pytest.raises(MediaError, match="5000x40 pixels do not fit into max_pixels 4096"):
        smart_resize(40, 5000, 32, 1024, 4096)
    with pytest.raises(InputError, match="max_pixels 1024 is below min_pixels 4096"):
        smart_resize(64, 64, 32, 4096, 1024)
