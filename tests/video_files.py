"""Small video files for tests, written with PyAV."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MATRIX_ONE = 1 << 16


def write_video(
    path: Path,
    size: tuple[int, int],
    count: int,
    fps: Fraction | int = 25,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
) -> Path:
    """`count` moving, noisy frames of size (width, height) in yuv420p."""
    width, height = size
    random = np.random.default_rng(1)
    tiles = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = tiles.repeat(8, 0).repeat(8, 1)[:height, :width].astype(int)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast"} if options is None else options
        for index in range(count):
            moved = np.roll(picture, 3 * index, axis=1) + random.integers(-9, 10, (height, 1, 3))
            moved[: height // 4] = index * 7 % 256
            frame = av.VideoFrame.from_ndarray(np.clip(moved, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Write a clockwise rotation into the track header of an MP4, as phones do."""
    cosine = {0: 1, 90: 0, 180: -1, 270: 0}[degrees] * MATRIX_ONE
    sine = {0: 0, 90: 1, 180: 0, 270: -1}[degrees] * MATRIX_ONE
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    assert content[header] == 0, "version 0 of tkhd: the matrix stands 40 bytes in"
    struct.pack_into(">9i", content, header + 40, cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut_by_edit_list(path: Path, first: int, count: int) -> Path:
    """Let an MP4 show only `count` frames from `first` on; all packets stay in the file."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    duration, start = struct.unpack_from(">Ii", content, entry)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        assert stream.average_rate is not None
        ticks = round(1 / (stream.time_base * stream.average_rate))
        struct.pack_into(">Ii", content, entry, duration * count // stream.frames, start + first * ticks)
    path.write_bytes(content)
    return path
