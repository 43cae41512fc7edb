"""What a contact sheet shows of a query or a document: its picture, its words, and what was found out about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from runtime.errors import InputError
from runtime.media.download import FetchLimits
from runtime.media.image import to_rgb
from runtime.media.source import DECODE_ERRORS, content_name, load_image

LONGEST_SIDE = 480  # pixels: twice a tile, for screens that show two as one
MOST_CHARACTERS = 400


@dataclass(frozen=True, eq=False)
class Preview:
    """`picture` is RGB, at most LONGEST_SIDE; either may be missing."""

    picture: Image.Image | None
    text: str


@dataclass(frozen=True, eq=False)
class Tile:
    """A document of a ranked list; `figures` are its scores in words, as "0.973"."""

    rank: int
    name: str
    figures: tuple[str, ...]
    preview: Preview


def preview(item: Mapping[str, Any] | InputError, limits: FetchLimits) -> Preview:
    """The first picture of an item, upright, and its texts; what is wrong with it where it cannot be shown."""
    if isinstance(item, InputError):
        return Preview(None, str(item))
    texts = [*_values(item.get("text")), *(f"video: {_file_name(each)}" for each in _values(item.get("video")))]
    text = "\n".join(map(str, texts)).strip()
    pictures = _values(item.get("image"))
    try:
        picture = _thumbnail(pictures[0], limits) if pictures else None
    except InputError as error:
        return Preview(None, str(error))
    return Preview(picture, text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")


def _values(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _file_name(source: object) -> str:
    return Path(content_name(source)).name


def _thumbnail(source: Any, limits: FetchLimits) -> Image.Image:
    picture = to_rgb(_upright(load_image(source, limits)))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except DECODE_ERRORS:  # damaged EXIF, which nothing else reads
        return picture
