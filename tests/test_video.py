"""Video files and lists of frames to patches, against qwen_vl_utils with decord and transformers' processors."""

import importlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import served
from PIL import Image
from video_files import cut_by_edit_list, rotate, write_video

from runtime.errors import MediaError
from runtime.media.download import FetchLimits
from runtime.media.image import PatchGrid, Visual
from runtime.media.video import VideoOptions, frames_visual, pair_timestamps, sample_indices, video_visual

LIMITS, PATCH = FetchLimits(), PatchGrid()
OPTIONS = VideoOptions(fps=1.0, max_frames=64, total_pixels=7_864_320, strict_budget=True, exact_resize=False)
EXACT = replace(OPTIONS, exact_resize=True)
LEVEL = 2 / 255  # one step of a uint8 pixel, as a patch value
exact_on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="exact_resize repeats the x86 build of torch"
)


@pytest.fixture(scope="module")
def reference() -> Any:
    """(video, options of the reference's element) → its patches [F*P, 1536], grid [3], timestamps, indices."""
    pytest.importorskip("torch")
    importlib.import_module("export.reference").prepare_reference_imports()
    fetch_video = importlib.import_module("qwen_vl_utils.vision_process").fetch_video
    qwen3_vl = "transformers.models.qwen3_vl."
    videos = importlib.import_module(qwen3_vl + "video_processing_qwen3_vl").Qwen3VLVideoProcessor()
    processor = importlib.import_module(qwen3_vl + "processing_qwen3_vl").Qwen3VLProcessor

    def run(video: Any, **element: Any) -> tuple[Any, list[int], tuple[float, ...], list[int]]:
        pixels, metadata = fetch_video(
            {"type": "video", "video": video, **element}, image_patch_size=16, return_video_metadata=True
        )
        outputs = videos(
            videos=[pixels], video_metadata=[metadata], do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        indices = list(metadata["frames_indices"])
        times = processor._calculate_timestamps(None, list(indices), metadata["fps"], 2)
        return outputs["pixel_values_videos"].numpy(), outputs["video_grid_thw"][0].tolist(), tuple(times), indices

    return run


def assert_equal(visual: Visual, expected: tuple[Any, list[int], tuple[float, ...], list[int]], most: float) -> None:
    patches, grid, timestamps, _ = expected
    assert list(visual.grid) == grid
    assert visual.timestamps == timestamps
    assert visual.patches.shape == (grid[0], grid[1] * grid[2], 1536)
    assert np.abs(visual.patches.reshape(patches.shape) - patches).max() <= most


CLIPS = [
    ("clip.mp4", (320, 240), 75, 25),
    ("odd.mp4", (322, 178), 33, Fraction(30000, 1001)),  # upscaled, an odd number of frames
    ("large.mp4", (1280, 720), 8, 4),  # shrunk
    ("short.mp4", (64, 64), 3, 1),
    ("unnumbered.mkv", (320, 240), 41, 10),  # Matroska states no number of frames
    ("vp9.webm", (160, 96), 20, 10),
]


@pytest.mark.parametrize(("name", "size", "count", "fps"), CLIPS, ids=[clip[0] for clip in CLIPS])
@pytest.mark.parametrize(
    ("options", "most"), [(OPTIONS, LEVEL * 1.001), pytest.param(EXACT, 0.0, marks=exact_on_x86)], ids=["pil", "exact"]
)
def test_files_equal_the_reference(
    name: str,
    size: tuple[int, int],
    count: int,
    fps: Any,
    options: VideoOptions,
    most: float,
    tmp_path: Path,
    reference: Any,
) -> None:
    codec = "libvpx-vp9" if name.endswith(".webm") else "libx264"
    path = write_video(tmp_path / name, size, count, fps, codec=codec)
    assert_equal(video_visual(path, options, LIMITS, PATCH), reference(f"file://{path}", fps=1, max_frames=64), most)


@exact_on_x86
@pytest.mark.parametrize("first", ["tff", "bff"])
def test_interlaced_files_equal_the_reference(first: str, tmp_path: Path, reference: Any) -> None:
    path = write_video(tmp_path / "camcorder.mp4", (160, 96), 8, options={"x264-params": f"{first}=1"})
    visual = video_visual(path, EXACT, LIMITS, PATCH)
    assert_equal(visual, reference(f"file://{path}", fps=1, max_frames=64), 0.0)


@exact_on_x86
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_files_equal_the_reference(degrees: int, tmp_path: Path, reference: Any) -> None:
    path = rotate(write_video(tmp_path / "phone.mp4", (320, 192), 20), degrees)
    visual = video_visual(path, EXACT, LIMITS, PATCH)
    assert (visual.grid[1] > visual.grid[2]) == (degrees != 180)
    assert_equal(visual, reference(f"file://{path}", fps=1, max_frames=64), 0.0)


def test_a_long_file_is_sampled_like_the_reference(tmp_path: Path, reference: Any) -> None:
    path = write_video(tmp_path / "long.mp4", (64, 64), 1000, 10)
    for fps, max_frames in ((1.0, 8), (0.07, 64), (2.0, 5)):
        options = replace(OPTIONS, fps=fps, max_frames=max_frames)
        expected = reference(f"file://{path}", fps=fps, max_frames=max_frames)
        assert sample_indices(1000, 10.0, options).tolist() == expected[3]
        assert_equal(video_visual(path, options, LIMITS, PATCH), expected, LEVEL * 1.001)


def test_our_budget_holds_for_files_too(tmp_path: Path, reference: Any) -> None:
    path = write_video(tmp_path / "wide.mp4", (1280, 720), 20, 1)
    options = replace(OPTIONS, strict_budget=False, total_pixels=3_000_000)
    visual = video_visual(path, options, LIMITS, PATCH)
    assert visual.grid[0] * visual.tokens_per_frame * 1024 <= 3_000_000
    assert_equal(visual, reference(f"file://{path}", fps=1, max_frames=64, total_pixels=3_000_000), LEVEL * 1.001)
    assert video_visual(path, OPTIONS, LIMITS, PATCH).tokens_per_frame == 720


def test_only_frames_that_can_be_shown_are_counted(tmp_path: Path) -> None:
    path = cut_by_edit_list(write_video(tmp_path / "cut.mp4", (64, 64), 40, 10, {}), first=10, count=20)
    visual = video_visual(path, replace(OPTIONS, fps=10.0), LIMITS, PATCH)
    assert visual.timestamps == pair_timestamps(range(20), 10.0)


def test_undecodable_packets_at_the_start_are_not_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.ts", (320, 240), 60, 25, {"g": "20"})
    path.write_bytes(path.read_bytes()[188 * 60 :])  # into the middle of a group of pictures
    visual = video_visual(path, replace(OPTIONS, fps=25.0), LIMITS, PATCH)
    assert visual.timestamps == pair_timestamps(range(40), 25.0)


def test_addresses_are_downloaded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", (64, 64), 10)
    with served(path.read_bytes()) as address:
        visual = video_visual(f"{address}/clip.mp4", OPTIONS, LIMITS, PATCH)
        assert np.array_equal(visual.patches, video_visual(path, OPTIONS, LIMITS, PATCH).patches)
        with pytest.raises(MediaError, match=r"missing\.png answered HTTP 404"):
            video_visual(f"{address}/missing.png", OPTIONS, LIMITS, PATCH)


@pytest.mark.parametrize("total", [2, 3, 4, 5, 17, 100, 11_547, 12_694, 200_000])
def test_indices_equal_torch(total: int) -> None:
    torch = pytest.importorskip("torch")
    for max_frames in (4, 6, 64, 126, 768):
        indices = sample_indices(total, 1.0, replace(OPTIONS, max_frames=max_frames))
        assert len(indices) == min(max_frames, total // 2 * 2)
        assert indices.tolist() == torch.linspace(0, total - 1, len(indices)).round().long().tolist()


def test_timestamps_are_the_mean_of_each_pair() -> None:
    assert pair_timestamps([0, 3, 10, 20], 10.0) == (0.15, 1.5)


def pictures(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    random = np.random.default_rng(2)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@exact_on_x86
@pytest.mark.parametrize(
    "sizes",
    [[(240, 320)] * 4, [(240, 320)] * 3, [(100, 100)], [(900, 1300)] * 2, [(190, 250), (200, 260)]],
    ids=["even", "odd", "one", "large", "unequal, equal once rounded to 64"],
)
def test_lists_of_frames_equal_the_reference(sizes: Sequence[tuple[int, int]], reference: Any) -> None:
    frames = pictures(sizes)
    expected = reference(frames, total_pixels=OPTIONS.total_pixels)
    assert_equal(frames_visual(frames, EXACT, LIMITS, PATCH), expected, 0.0)
    assert_equal(frames_visual(frames, OPTIONS, LIMITS, PATCH), expected, LEVEL * 1.001)


def test_a_list_over_max_frames_is_thinned_like_the_reference(tmp_path: Path, reference: Any) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(11)]
    for path, picture in zip(paths, pictures([(128, 128)] * 11), strict=True):
        picture.save(path)
    chosen = [f"file://{paths[index]}" for index in np.linspace(0, 10, 5, dtype=int)]
    visual = frames_visual([str(path) for path in paths], replace(OPTIONS, max_frames=5), LIMITS, PATCH)
    assert visual.timestamps == (0.25, 1.25, 2.25)
    assert_equal(visual, reference(chosen, total_pixels=OPTIONS.total_pixels), LEVEL * 1.001)
