"""What it costs to look at a few frames of a long video: jumping to them, and decoding all.

    python -m bench.video FOLDER [--minutes 30] [--rounds 3]

FOLDER/long.mp4 is written: 20 seconds of 1280 × 720 at 30 frames a second, H.264 in x264's default settings, again and
again. Both ways give the same pixels, which is checked.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from runtime.media import video
from runtime.media.download import FetchLimits
from runtime.media.frame_index import FrameIndex, read_index
from runtime.media.image import PatchGrid
from runtime.media.video_file import opened

SIZE, FPS, SECONDS = (1280, 720), 30, 20
OPTIONS = video.VideoOptions(fps=1.0, max_frames=64, total_pixels=7_864_320, strict_budget=False, exact_resize=False)
LIMITS, PATCH = FetchLimits(), PatchGrid()


def main() -> None:
    """Write the video and print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    path = str(write_long(options.folder, options.minutes))
    total, index = indexed(path)
    places = video.sample_indices(total, FPS, OPTIONS).tolist()
    ways: dict[str, Callable[[], Any]] = {
        "all decoded": lambda: video._decoded(path, places, OPTIONS, LIMITS, PATCH)[0],
        "jumping": lambda: video._sought(path, indexed(path)[1], places, OPTIONS, LIMITS, PATCH),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        frames = []
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            frames.append(way().pixels)
            took[name].append((time.perf_counter() - wall, time.process_time() - processor))
        assert np.array_equal(*frames)
    print(f"{len(places)} of {total:,} frames, {len(index.keys)} keys; median of {options.rounds}: wall, processor")
    for name, times in took.items():
        wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"{name:12} {wall:7.1f} s {processor:7.1f} s")


def indexed(path: str) -> tuple[int, FrameIndex]:
    """As `read_index`."""
    with opened(path) as (container, stream):
        total, index = read_index(container, stream)
    assert index is not None
    return total, index


def write_long(folder: Path, minutes: int) -> Path:
    """FOLDER/long.mp4."""
    folder.mkdir(parents=True, exist_ok=True)
    short, long = write_short(folder / "short.mp4"), folder / "long.mp4"
    with av.open(str(short)) as source, av.open(str(long), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        for turn in range(minutes * 60 // SECONDS):
            source.seek(0, stream=stream)
            later = int(turn * SECONDS / stream.time_base)
            for packet in source.demux(stream):
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, copied
                target.mux(packet)
    return long


def write_short(path: Path) -> Path:
    """A picture of noisy tiles that moves."""
    width, height = SIZE
    random = np.random.default_rng(1)
    tiles = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    picture = np.clip(tiles + random.integers(-6, 7, (height, width, 1)), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SECONDS * FPS):
            moved = np.roll(picture, (number // 3, 2 * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
