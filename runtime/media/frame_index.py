"""Where the frames of a video file are, so that only what the wanted ones need is decoded."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runtime.media.video_file import checked, opened

if TYPE_CHECKING:
    from runtime.media.video_file import InputContainer, VideoFrame, VideoStream

# Where a packet is a frame, says when it is shown, and can be sought exactly.
FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
SKIPPING = {"h264", "hevc"}  # whose decoders leave out, packet by packet, what no other frame refers to
CODECS = SKIPPING | {"vp9", "av1"}
NEAR = 8  # frames that are sooner decoded than jumped over


@dataclass(frozen=True)
class FrameIndex:
    """When each frame is shown, int64 [frames], rising, and the places in it where decoding can begin, int64 [keys]."""

    times: NDArray[np.int64]
    keys: NDArray[np.int64]

    def frames(self, path: str, wanted: list[int]) -> Iterator["VideoFrame"]:
        """The frames at the rising places `wanted`, as decoding the whole file would show them.

        Ends early where one does not come when it should: the file does not hold what its packets promise.
        """
        times = self.times[wanted].tolist()
        with opened(path) as (container, stream):
            stream.thread_type = "AUTO"
            shown, place = _decoded(container, stream, set(times)), -1
            for target, time in zip(wanted, times, strict=True):
                key = self.keys[np.searchsorted(self.keys, target, side="right") - 1]
                if key > place + NEAR:
                    container.seek(int(self.times[key]), stream=stream)
                    shown = _decoded(container, stream, set(times))
                frame = next((frame for frame in shown if frame.pts is None or frame.pts >= time), None)
                if frame is None or frame.pts != time or frame.is_corrupt:
                    return
                yield frame
                place = target


def read_index(container: "InputContainer", stream: "VideoStream") -> tuple[int, FrameIndex | None]:
    """The number of packets with frames that are shown, and their index where packets alone can tell it."""
    times, keys, total, timed = array("q"), array("q"), 0, True
    for packet in checked(container.demux(stream)):
        if not packet.size or packet.is_discard:
            continue
        total += 1
        if packet.pts is None:
            timed = False
        else:
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    known = container.format.name in FORMATS and stream.codec_context.codec.canonical_name in CODECS
    rising = np.sort(np.asarray(times))
    places = np.searchsorted(rising, np.sort(np.asarray(keys)))
    # What is shown before the first key refers to frames that the file does not hold.
    if not (known and timed and len(keys) and places[0] == 0 and (np.diff(rising) > 0).all()):
        return total, None
    return total, FrameIndex(rising, places)


def _decoded(container: "InputContainer", stream: "VideoStream", wanted: set[int]) -> Iterator["VideoFrame"]:
    """What is shown from here on, without the frames that are neither wanted nor referred to."""
    decoder = stream.codec_context
    skipping = decoder.codec.canonical_name in SKIPPING
    for packet in checked(container.demux(stream)):
        decoder.skip_frame = "NONREF" if skipping and packet.pts not in wanted else "DEFAULT"
        yield from decoder.decode(packet)
