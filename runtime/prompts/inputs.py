"""The dicts of the reference's `process` become typed values here; afterwards the core trusts them.

Mirrors format_model_input / format_mm_content: text, image and video are each one value or a list; a list of pictures
given as `video` is one video of frames, any other list is several videos.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from runtime.errors import InputError
from runtime.media.source import ImageSource, content_name

CONTENT_KEYS = ("text", "image", "video")
ITEM_KEYS = (*CONTENT_KEYS, "instruction", "fps", "max_frames")
REQUEST_KEYS = ("query", "documents", "instruction", "fps", "max_frames")
# The reference's is_image_path decides by these whether a list of strings is a list of frames.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".svg")
LONGEST_NUMBER = 128  # bits of what a message shows digit by digit; Python itself refuses some thousands of digits

Frames = tuple[ImageSource, ...]
VideoSource = str | os.PathLike[str] | Frames


@dataclass(frozen=True, eq=False)
class Content:
    """What stands in one place of a prompt: videos, pictures and texts, each in the given order."""

    texts: tuple[str, ...] = ()
    images: tuple[ImageSource, ...] = ()
    videos: tuple[VideoSource, ...] = ()

    @property
    def is_empty(self) -> bool:
        """No text, picture or video at all."""
        return not (self.texts or self.images or self.videos)


@dataclass(frozen=True, eq=False)
class Item:
    """One input of the embedder; None means the default."""

    content: Content
    instruction: str | None
    fps: float | None
    max_frames: int | None


@dataclass(frozen=True, eq=False)
class RerankRequest:
    """One call of the reranker. Documents stay as given, so that a bad one can be skipped alone."""

    query: Content
    documents: tuple[object, ...]
    instruction: str | None
    fps: float | None
    max_frames: int | None


def parse_item(item: object, where: str) -> Item:
    """One dict of the embedder's list. Raises InputError naming `where`, the key and what was expected."""
    entries = _mapping(item, where, ITEM_KEYS)
    return Item(
        parse_content({key: entries[key] for key in CONTENT_KEYS if key in entries}, where),
        _optional_text(entries, "instruction", where),
        _optional_number(entries, "fps", where),
        _optional_count(entries, "max_frames", where),
    )


def parse_content(content: object, where: str) -> Content:
    """A dict with text, image, video. Raises InputError."""
    entries = _mapping(content, where, CONTENT_KEYS)
    return Content(
        tuple(require_text(text, name) for text, name in _placed(entries.get("text"), f"{where}: text")),
        tuple(_image(image, name) for image, name in _placed(entries.get("image"), f"{where}: image")),
        _videos(entries.get("video"), f"{where}: video"),
    )


def parse_request(inputs: object) -> RerankRequest:
    """The reranker's dict; a query text may be an (instruction, text) pair as in the reference. Raises InputError."""
    entries = dict(_mapping(inputs, "inputs", REQUEST_KEYS))
    query, documents = entries.get("query"), entries.get("documents")
    if not isinstance(query, Mapping) or not query:
        raise InputError(f"inputs: query is {_shown(query)}, expected a dict with text, image or video.")
    if documents is None or not isinstance(documents, list | tuple):
        raise InputError(f"inputs: documents is {_shown(documents)}, expected a list of dicts.")
    instruction = _optional_text(entries, "instruction", "inputs")
    if isinstance(query.get("text"), tuple):
        instruction, text = _instruction_pair(query["text"])
        query = {**query, "text": text}
    return RerankRequest(
        parse_content(query, "query"),
        tuple(documents),
        instruction,
        _optional_number(entries, "fps", "inputs"),
        _optional_count(entries, "max_frames", "inputs"),
    )


def require_list(inputs: object) -> Sequence[object]:
    """The embedder's list of dicts. Raises InputError for a single dict or anything else."""
    if isinstance(inputs, list | tuple):
        return inputs
    raise InputError(f"inputs is {_shown(inputs)}, expected a list of dicts such as [{{'text': 'a red car'}}].")


def looks_like_media(text: str) -> bool:
    """Whether a text is probably the path or address of a picture, which would be embedded as text."""
    if text.startswith("data:image/"):
        return True
    return not any(map(str.isspace, text)) and _is_image_path(text)


def _mapping(value: object, where: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        hint = f"; write {{'text': {value!r:.60}}}" if isinstance(value, str) and "text" in keys else ""
        raise InputError(f"{where} is {_shown(value)}, expected a dict with {', '.join(keys)}{hint}.")
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; known keys are {', '.join(keys)}.")
    return value


def place(where: str, index: int, count: int) -> str:
    """How messages call one of several values: `where` itself if it is the only one."""
    return where if count == 1 else f"{where}[{index}]"


def _placed(value: object, where: str) -> list[tuple[Any, str]]:
    """One value or a list as (value, place) pairs; None is an empty list."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    return [(entry, place(where, index, len(values))) for index, entry in enumerate(values)]


def require_text(value: object, where: str, expected: str = "a string or a list of strings") -> str:
    """`value` as it is. Raises InputError unless it is a string that can be encoded."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {_shown(value)}, expected {expected}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where} holds a lone surrogate at position {error.start}, which is no character; "
                "decode the text with the right encoding."
            ) from None
    return value


def _image(value: object, where: str) -> ImageSource:
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return value
    raise InputError(
        f"{where} is {_shown(value)}, expected a path, URL, data URI, bytes, PIL image or numpy array, "
        "or a list of them."
    )


def _videos(value: object, where: str) -> tuple[VideoSource, ...]:
    if value is None:
        return ()
    if isinstance(value, str | os.PathLike):
        return (value,)
    if not isinstance(value, list):
        raise InputError(f"{where} is {_shown(value)}, expected a path, a URL, a list of frames or a list of videos.")
    if value and _is_frame(value[0]):
        return (_frames(value, where),)
    return tuple(_video(entry, f"{where}[{index}]") for index, entry in enumerate(value))


def _video(value: object, where: str) -> VideoSource:
    if isinstance(value, str | os.PathLike):
        return value
    if isinstance(value, list) and value:
        return _frames(value, where)
    raise InputError(f"{where} is {_shown(value)}, expected a path, a URL or a list of frames.")


def _frames(value: list[Any], where: str) -> Frames:
    return tuple(_image(frame, f"{where}: frame {index}") for index, frame in enumerate(value))


def _is_frame(value: object) -> bool:
    if isinstance(value, str | os.PathLike):
        return _is_image_path(os.fspath(value)) or str(value).startswith("data:image/")
    return isinstance(value, bytes | bytearray | memoryview | Image.Image | np.ndarray)


def _is_image_path(text: str) -> bool:
    if text.startswith(("http://", "https://")):
        try:
            text = urlparse(text).path  # without the parameters that a ; begins
        except ValueError:
            return False
    return os.path.splitext(text.lower())[1] in IMAGE_EXTENSIONS


def _instruction_pair(pair: tuple[object, ...]) -> tuple[str, str]:
    if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str):
        return require_text(pair[0], "query: instruction"), pair[1]
    raise InputError(f"query: text is {_shown(pair)}, expected a string or a pair (instruction, text).")


def _optional_text(entries: Mapping[str, Any], key: str, where: str) -> str | None:
    value = entries.get(key)
    return None if value is None else require_text(value, f"{where}: {key}", "a string")


def _optional_number(entries: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entries.get(key)
    if value is None:
        return None
    number = _float(value)
    if not 0 < number < math.inf:
        raise InputError(f"{where}: {key} is {_shown(value)}, expected a positive number.")
    return number


def _float(value: object) -> float:
    """`value` as float; NaN for what is no number or does not fit."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _optional_count(entries: Mapping[str, Any], key: str, where: str) -> int | None:
    value = entries.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{where}: {key} is {_shown(value)}, expected a positive whole number.")
    return int(value)


def _shown(value: object) -> str:
    """A value for a message: scalars and short strings as they are, the rest by kind."""
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return f"the string {value!r:.60}"
    if isinstance(value, Mapping | list | tuple) and not value:
        return f"an empty {type(value).__name__}"
    if isinstance(value, list | tuple | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    return content_name(value)
