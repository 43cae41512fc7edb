"""What videos may cost, and what is said where one cannot be used."""

import os
import sys
import tracemalloc
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_server import served
from PIL import Image
from video_files import write_video

import runtime.media.video
from runtime.errors import InputError, MediaError, MissingExtraError
from runtime.media.download import FetchLimits
from runtime.media.image import PatchGrid
from runtime.media.video import VideoOptions, frames_visual, sample_indices, video_visual

LIMITS, PATCH = FetchLimits(), PatchGrid()
TS_PACKET = 188  # bytes of an MPEG transport stream
OPTIONS = VideoOptions(fps=1.0, max_frames=8, total_pixels=7_864_320, strict_budget=False, exact_resize=False)


def failure(source: Any) -> str:
    with pytest.raises(MediaError) as caught:
        video_visual(source, OPTIONS, LIMITS, PATCH)
    message = str(caught.value)
    assert message.endswith(".")
    return message


def test_a_long_clip_is_never_in_memory(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", (320, 240), 3000, 25, {"preset": "ultrafast", "crf": "40"})
    tracemalloc.start()
    try:
        visual = video_visual(path, OPTIONS, LIMITS, PATCH)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert visual.grid[0] == 4
    # All 3000 frames would be 690 MB; the result, its uint8 frames and two copies while cutting are enough.
    assert peak < 2.5 * visual.patches.nbytes + 10_000_000


def test_decoding_stops_at_the_last_frame_wanted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", (64, 64), 60)
    _, decoded = runtime.media.video._decoded(str(path), [0, 5], OPTIONS, LIMITS, PATCH)
    assert decoded == 6


def test_bad_files_are_named(tmp_path: Path) -> None:
    text, empty, half = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "half.mp4"
    text.write_text("no film")
    empty.touch()
    whole = write_video(tmp_path / "clip.mp4", (64, 64), 30).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])  # the index is at the end
    assert failure(tmp_path / "gone.mp4").startswith(f"{tmp_path / 'gone.mp4'} does not exist")
    assert failure(str(tmp_path)).startswith(f"{tmp_path} is a directory")
    assert failure(empty).startswith(f"{empty} has zero bytes")
    assert failure(text).startswith(f"{text}: the video cannot be decoded")
    assert failure(half).startswith(f"{half}: the video cannot be decoded")
    assert failure("ftp://host/clip.mp4").startswith("ftp://host/clip.mp4 has the unknown scheme 'ftp'")
    assert failure(b"bytes").startswith("bytes (5 of them) is not a video")


def test_a_codec_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", (64, 64), 10)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    assert "the video cannot be decoded (its codec is unknown); replace the file or convert it" in failure(path)


def test_a_stream_that_damage_adds_is_no_index_error(tmp_path: Path) -> None:
    """PyAV looks for it past the end of its list, in which the streams of the file's beginning are."""
    path = write_video(tmp_path / "clip.ts", (64, 64), 30)
    content = bytearray(path.read_bytes())
    starts = [at for at in range(0, len(content), TS_PACKET) if content[at + 1 : at + 3] == b"\x41\x00"]
    content[starts[-1] + 1] = 0x59  # the packet in which the last frame begins names a stream that nobody declared
    path.write_bytes(content)
    message = failure(path)
    assert message.startswith(f"{path}: the video cannot be decoded (list index out of range); replace the file or")


def test_our_own_index_errors_are_not_blamed_on_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", (64, 64), 4)
    monkeypatch.setattr(runtime.media.video._Frames, "put", lambda *given: [][1])
    with pytest.raises(IndexError):
        video_visual(path, OPTIONS, LIMITS, PATCH)


def test_files_without_enough_frames_are_named(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.mp4", (64, 64), 1)
    assert failure(one).startswith(f"{one}: 1 frames under max_frames 8 leave fewer than the 2")
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        stream.writeframes(bytes(16000))
    assert failure(sound).startswith(f"{sound}: the file holds no video stream")
    narrow = write_video(tmp_path / "narrow.mp4", (4020, 20), 4)
    assert failure(narrow).startswith(f"{narrow}: 4020x20 pixels have an aspect ratio of 201")


def test_a_name_with_a_colon_is_a_file_not_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no such names")
    write_video(tmp_path / "clip.mp4", (64, 64), 4).rename(tmp_path / "http:clip.mp4")
    monkeypatch.chdir(tmp_path)
    assert video_visual("http:clip.mp4", OPTIONS, LIMITS, PATCH).grid[0] == 2


def test_a_playlist_does_not_reach_the_network(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.ts", (64, 64), 4)
    playlist = tmp_path / "list.m3u8"
    with served(clip.read_bytes()) as address:
        playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}/clip.ts\n#EXT-X-ENDLIST\n")
        assert failure(playlist).startswith(f"{playlist}: ")


@pytest.mark.parametrize(
    "beginning", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n"]
)
@pytest.mark.parametrize("named", ["clip.ts", "list.m3u8"])
def test_a_playlist_opens_no_other_file(beginning: str, named: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.ts", (64, 64), 4)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(beginning.format(named))
    assert failure(playlist).startswith(f"{playlist}: the video cannot be decoded (Invalid argument); replace")


def test_large_frames_are_refused_before_they_are_made_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "clip.mp4", (64, 64), 4)
    monkeypatch.setattr(runtime.media.video, "upright_rgb", lambda _: pytest.fail("too late"))
    with pytest.raises(MediaError, match=r"clip\.mp4: a frame decodes to 64x64 pixels, over the limit of 4000; shrink"):
        video_visual(clip, OPTIONS, FetchLimits(max_image_pixels=4000), PATCH)


def test_frame_lists_that_cannot_be_used(tmp_path: Path) -> None:
    small, large = Image.new("RGB", (128, 128)), Image.new("RGB", (512, 512))
    with pytest.raises(MediaError, match="the list of frames is empty"):
        frames_visual([], OPTIONS, LIMITS, PATCH)
    with pytest.raises(MediaError, match=r"512x512.*: frame 1 is 512x512 where the first is 128x128"):
        frames_visual([small, large], OPTIONS, LIMITS, PATCH)
    with pytest.raises(MediaError, match=r"gone\.png does not exist"):
        frames_visual([small, str(tmp_path / "gone.png")], OPTIONS, LIMITS, PATCH)


@pytest.mark.parametrize("name", ["fps", "max_frames", "total_pixels"])
def test_options_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"the video option {name} is 0"):
        replace(OPTIONS, **{name: 0})
    with pytest.raises(MediaError, match="10 frames under max_frames 1 leave fewer than the 2"):
        sample_indices(10, 1.0, replace(OPTIONS, max_frames=1))


def test_without_pyav_the_install_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # what Python itself does for a blocked import
    with pytest.raises(MissingExtraError, match=r'pip install "qwen3vl-edge\[video\]"'):
        video_visual(tmp_path / "clip.mp4", OPTIONS, LIMITS, PATCH)
    assert frames_visual([Image.new("RGB", (64, 64))], OPTIONS, LIMITS, PATCH).grid[0] == 1
