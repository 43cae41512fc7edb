"""A video file opened with PyAV, and its frames as decord shows them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MediaError
from runtime.extras import needing_extra

if TYPE_CHECKING:  # names of PyAV's for the modules beside this one too
    from av.container import InputContainer as InputContainer
    from av.video.frame import VideoFrame as VideoFrame
    from av.video.stream import VideoStream as VideoStream

Given = TypeVar("Given")


def require_decoder() -> None:
    """MissingExtraError without PyAV."""
    with needing_extra("video", "video files need PyAV"):
        import av  # noqa: F401


@contextmanager
def opened(path: str) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The file and its best video stream; MediaError where it has none, or where it cannot be decoded meanwhile."""
    import av

    try:
        # FFmpeg gets no name to open, and may open none: a playlist, or a file in place of a video, may lead anywhere.
        with open(path, "rb") as file, av.open(file, "r", options={"protocol_whitelist": "none"}) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise MediaError("the file holds no video stream; pass a video.")
            if stream.codec_context is None:
                raise _undecodable("its codec is unknown")
            yield container, stream
    except (av.error.FFmpegError, OSError, UnicodeError) as error:
        raise _undecodable(getattr(error, "strerror", None) or error) from error


def checked(values: Iterable[Given]) -> Iterator[Given]:
    """What PyAV gives. Where damage adds a stream, PyAV looks for it in a list of those that it knew before."""
    iterator = iter(values)
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        except IndexError as error:
            raise _undecodable(error) from error
        yield value


def upright_rgb(frame: "VideoFrame") -> NDArray[np.uint8]:
    """uint8 [height, width, 3]. Phones store portrait video lying down with a rotation, counted counterclockwise."""
    quarters = 0 if frame.rotation % 90 else frame.rotation // 90
    return np.rot90(_progressive(frame).to_ndarray(format="rgb24"), quarters)


def _progressive(frame: "VideoFrame") -> "VideoFrame":
    """The frame without the mark of two fields: PyAV 17 turns each into RGB by itself, decord does not."""
    if not frame.interlaced_frame:
        return frame
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("setfield", "prog"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def _undecodable(reason: object) -> MediaError:
    return MediaError(f"the video cannot be decoded ({reason}); replace the file or convert it to H.264 in MP4.")
