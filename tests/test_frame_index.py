"""Frames that are jumped to are those that decoding the whole file shows, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from video_files import cut_by_edit_list, write_video

import runtime.media.frame_index
import runtime.media.video
from runtime.media.download import FetchLimits
from runtime.media.frame_index import FrameIndex, read_index
from runtime.media.image import PatchGrid
from runtime.media.video import VideoOptions, video_visual
from runtime.media.video_file import opened

COUNT = 150
OPTIONS = VideoOptions(fps=1.0, max_frames=64, total_pixels=10**7, strict_budget=False, exact_resize=False)
OPEN = {"preset": "veryfast", "g": "30", "x264-params": "open-gop=1:bframes=4:scenecut=0"}
FILES = {  # name: codec, its options
    "closed.mp4": ("libx264", {"preset": "veryfast", "g": "30"}),
    "open.mp4": ("libx264", OPEN),
    "open.mkv": ("libx264", OPEN),
    "short.mp4": ("libx264", {"preset": "veryfast", "g": "4", "bf": "3"}),
    "intra.mp4": ("libx264", {"preset": "ultrafast", "g": "1"}),
    "fields.mp4": ("libx264", {"preset": "veryfast", "g": "30", "x264-params": "tff=1"}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=30:open-gop=1:bframes=4:log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "30"}),
    "hidden.webm": ("libvpx-vp9", {"cpu-used": "8", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1.mp4": ("libsvtav1", {"preset": "13", "g": "30"}),
}
WANTED = ([0], [COUNT - 1], [3, 95, 97], [29, 30, 31, 59, 60, 61], list(range(0, COUNT, 7)), list(range(COUNT)))


def whole(path: Path) -> list[NDArray[np.uint8]]:
    with opened(str(path)) as (container, stream):
        return [frame.to_ndarray() for frame in container.decode(stream)]


def index_of(path: Path) -> tuple[int, FrameIndex | None]:
    with opened(str(path)) as (container, stream):
        return read_index(container, stream)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The times of all frames that an index decodes."""
    times: list[int] = []
    original = runtime.media.frame_index._decoded

    def counted(*arguments: Any) -> Iterator[Any]:
        for frame in original(*arguments):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(runtime.media.frame_index, "_decoded", counted)
    return times


@pytest.mark.parametrize("name", FILES)
def test_frames_equal_those_of_the_whole_file(name: str, tmp_path: Path) -> None:
    codec, options = FILES[name]
    path = write_video(tmp_path / name, (96, 64), COUNT, 25, options, codec)
    frames = whole(path)
    total, index = index_of(path)
    assert total == COUNT == len(frames)
    assert index is not None
    for wanted in WANTED:
        found = [frame.to_ndarray() for frame in index.frames(str(path), wanted)]
        assert len(found) == len(wanted)
        assert all(np.array_equal(frames[place], each) for place, each in zip(wanted, found, strict=True))


def test_what_lies_between_is_not_decoded(tmp_path: Path, decoded: list[int]) -> None:
    codec, options = FILES["vp9.webm"]
    path = write_video(tmp_path / "vp9.webm", (96, 64), COUNT, 25, options, codec)
    _, index = index_of(path)
    assert index is not None
    assert index.keys.tolist() == [0, 30, 60, 90, 120]
    assert len(list(index.frames(str(path), [2, 62, 122]))) == 3
    assert len(decoded) == 9


def test_frames_that_no_other_needs_are_not_decoded(tmp_path: Path, decoded: list[int]) -> None:
    options = {"preset": "veryfast", "g": "1000", "x264-params": "bframes=3:b-adapt=0:scenecut=0"}
    path = write_video(tmp_path / "clip.mp4", (96, 64), COUNT, 25, options)
    _, index = index_of(path)
    assert index is not None
    assert len(list(index.frames(str(path), [0, COUNT - 1]))) == 2
    assert len(decoded) < 0.6 * COUNT


def test_a_file_that_cannot_be_entered_at_its_keys_is_decoded_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"preset": "ultrafast", "g": "30", "x264-params": "intra-refresh=1:bframes=0:scenecut=0"}
    path = write_video(tmp_path / "refresh.mp4", (96, 64), COUNT, 25, options)
    total, index = index_of(path)
    assert index is not None
    assert list(index.frames(str(path), [62])) == []
    visual = video_visual(path, OPTIONS, FetchLimits(), PatchGrid())
    monkeypatch.setattr(runtime.media.video, "read_index", lambda *_: (total, None))
    assert np.array_equal(visual.patches, video_visual(path, OPTIONS, FetchLimits(), PatchGrid()).patches)


@pytest.mark.parametrize("name", ["clip.ts", "clip.avi"])
def test_files_whose_packets_do_not_tell_have_no_index(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, (96, 64), COUNT, 25, FILES["closed.mp4"][1])
    assert index_of(path) == (COUNT, None)


def test_a_file_that_begins_before_its_first_key_has_no_index(tmp_path: Path) -> None:
    path = cut_by_edit_list(write_video(tmp_path / "cut.mp4", (64, 64), 40, 10, {}), first=10, count=20)
    total, index = index_of(path)
    assert (total, index) == (20, None)
