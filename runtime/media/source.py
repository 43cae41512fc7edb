"""What a user gives (path, address, data URI, bytes, PIL image, array) as a decoded picture or a local file.

Nothing here changes or depends on process-wide state, so any number of threads may load at once.
"""

import base64
import binascii
import io
import os
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import MediaError
from runtime.media.address import without_password
from runtime.media.download import LONGEST_NAME, FetchLimits, download, shortened

__all__ = ["FetchLimits", "ImageSource", "content_name", "load_image", "local_file", "require_size"]

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]

LONGEST_DATA_URI_NAME = 48
# Of Pillow's formats: a PostScript file is a program, which Ghostscript runs for as long as it wishes.
PROGRAMS = ("EPS",)
# Two letters at least, so that C:// stays a Windows drive.
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(data):", re.IGNORECASE)
# Pillow's plugins raise all of these on damaged bytes; MemoryError and our own mistakes pass through.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def content_name(source: object) -> str:
    """A short name of `source` for messages: the path or address, or what kind of object it is."""
    if isinstance(source, str):
        longest = LONGEST_DATA_URI_NAME if _scheme(source) == "data" else LONGEST_NAME
        return shortened(without_password(source), longest)
    if isinstance(source, os.PathLike):
        return str(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"bytes ({memoryview(source).nbytes} of them)"
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width}x{source.height})"
    if isinstance(source, np.ndarray):
        return f"array ({source.dtype}, shape {source.shape})"
    return type(source).__name__


def load_image(source: ImageSource, limits: FetchLimits) -> Image.Image:
    """The picture `source` leads to, decoded to its last pixel, in its own mode and without EXIF rotation.

    `source` is a path, file:// or http(s):// address, data: URI, encoded bytes, PIL image, or a uint8 array
    [H, W, 3], [H, W, 4] or [H, W]. MediaError names the source where it cannot be read, fetched or decoded.
    """
    name = content_name(source)
    if isinstance(source, Image.Image):
        return _decoded(source, name, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_stream(io.BytesIO(source), name, limits)
    if isinstance(source, str) and _scheme(source) == "data":
        return _from_stream(io.BytesIO(_data_uri_bytes(source, name, limits)), name, limits)
    if isinstance(source, str) and _scheme(source) in ("http", "https"):
        buffer = io.BytesIO()
        download(source, limits, buffer.write)
        return _from_stream(buffer, name, limits)
    path = _existing_file(source, name, "a picture")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise MediaError(f"{name} cannot be opened ({error.strerror}); check its permissions.") from error
    with stream:
        return _from_stream(stream, name, limits)


@contextmanager
def local_file(source: str | os.PathLike[str], limits: FetchLimits) -> Iterator[str]:
    """A path that leads to `source`: a path or file:// address is itself, an http(s) address is downloaded.

    The download is deleted on leaving. MediaError names the source where there is no such file.
    """
    name = content_name(source)
    if not (isinstance(source, str) and _scheme(source) in ("http", "https")):
        yield str(_existing_file(source, name, "a video"))
        return
    with tempfile.TemporaryDirectory(prefix="qwen3vl-") as folder:
        path = os.path.join(folder, "download")
        with open(path, "wb") as stream:
            download(source, limits, stream.write)
        yield path


def _scheme(source: str) -> str:
    """`http`, `file`, `data`, ... in lower case; empty for a plain path."""
    match = SCHEME.match(source)
    return (match[1] or match[2]).lower() if match else ""


def _existing_file(source: object, name: str, kind: str) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise MediaError(f"{name} is not {kind}; pass a path, an http(s) address or what the documentation lists.")
    text = os.fspath(source)
    scheme = _scheme(text) if isinstance(source, str) else ""
    if scheme == "file":
        host, slash, rest = text[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise MediaError(f"{name} names the host '{host}'; write file:///absolute/path or a plain path.")
        try:
            text = url2pathname(slash + rest)
        except OSError as error:  # on Windows, where a colon stands behind a drive's letter and nowhere else
            raise MediaError(
                f"{name} leads to no file ({error}); write file:///C:/folder/name or a plain path."
            ) from error
    elif scheme:
        raise MediaError(f"{name} has the unknown scheme '{scheme}'; use a path, file:// or http(s):// for {kind}.")
    if not text:
        raise MediaError(f"the path is empty; pass the path of {kind} file, or leave the key out.")
    path = Path(text)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        # Not the whole OSError: it would repeat the path, which may be a picture in base64.
        words = getattr(error, "strerror", None) or error
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({words})"
        raise MediaError(f"{name} {reason}; check the path (working folder: {Path.cwd()}).") from error
    if stat.S_ISDIR(found.st_mode):
        raise MediaError(f"{name} is a directory; pass the path of {kind} file.")
    if not stat.S_ISREG(found.st_mode):  # a pipe cannot be sought in, and may be waited for without end
        raise MediaError(f"{name} is a pipe or a device; write what comes out of it to a file, and pass that.")
    if not found.st_size:
        raise MediaError(f"{name} has zero bytes; replace the file, its download or copy probably failed.")
    return path


def _data_uri_bytes(source: str, name: str, limits: FetchLimits) -> bytes:
    header, comma, payload = source.partition(",")
    if not comma:
        raise MediaError(f"{name} has no comma; a data URI is data:[type][;base64],content.")
    # Base64 that is escaped takes four characters a byte; what is longer is not decoded.
    if len(payload) <= 4 * limits.max_bytes:
        content = _data_uri_content(header, payload, name)
        if len(content) <= limits.max_bytes:
            return content
    raise MediaError(f"{name} is over the limit of {limits.max_bytes} bytes; raise FetchLimits.max_bytes.")


def _data_uri_content(header: str, payload: str, name: str) -> bytes:
    try:
        content = unquote_to_bytes(payload)
    except UnicodeEncodeError as error:
        place = len(header) + 1 + error.start
        raise MediaError(f"{name} holds a lone surrogate at position {place}; encode the file again.") from None
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise MediaError(f"{name} is not valid base64 ({error}); encode the file again.") from error


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    colour = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not colour or 0 in array.shape:
        raise MediaError(f"{name} is not a picture; expected uint8 of shape [H, W, 3], [H, W, 4] or [H, W].")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_stream(stream: BinaryIO, name: str, limits: FetchLimits) -> Image.Image:
    if not stream.seek(0, os.SEEK_END):
        raise MediaError(f"{name} has zero bytes; pass the content of a picture file.")
    stream.seek(0)
    try:
        image = _identified(stream)
    except DECODE_ERRORS as error:
        raise _undecodable(name, error) from error
    if image is None:
        raise MediaError(f"{name} is not a picture that Pillow can read; pass a PNG, JPEG, WebP, GIF, BMP or TIFF.")
    return _decoded(image, name, limits)


def _identified(stream: BinaryIO) -> Image.Image | None:
    """Pillow's plugins tried in their order, as Image.open does, header only; None where none knows the file.

    Image.open itself warns about large pictures through the process-wide warning filters, which no thread can
    change for itself alone; asking the plugins directly leaves the size check to `_decoded` and its limit.
    """
    Image.preinit()
    Image.init()
    prefix = stream.read(16)
    for identifier in [each for each in Image.ID if each not in PROGRAMS]:
        factory, accept = Image.OPEN[identifier]
        try:
            accepted = accept is None or accept(prefix)
            if isinstance(accepted, str) or not accepted:
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # how a plugin says that the file is not its own
    return None


def require_size(width: int, height: int, name: str, limits: FetchLimits) -> None:
    """MediaError for a picture of more pixels than are decoded."""
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name} decodes to {width}x{height} pixels, over the limit of "
            f"{limits.max_image_pixels}; shrink it or raise FetchLimits.max_image_pixels."
        )


def _decoded(image: Image.Image, name: str, limits: FetchLimits) -> Image.Image:
    require_size(image.width, image.height, name, limits)
    if not image.width * image.height:
        raise MediaError(f"{name} has no pixels ({image.width}x{image.height}); pass a picture with an area.")
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise _undecodable(name, error) from error
    return image


def _undecodable(name: str, error: BaseException) -> MediaError:
    return MediaError(f"{name} is damaged or truncated ({error}); replace the file or convert it with another tool.")
