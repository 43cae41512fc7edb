"""The drawings of all concepts in all styles as pixels, rendered once and kept beside the sources."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.concepts import Concept
from training.sources import STYLES, fetch, read_json

SIDE = 128  # pixels


def read_drawings(concepts: list[Concept], cache: Path) -> NDArray[np.uint8]:
    """uint8 [styles, concepts, SIDE, SIDE, 4], alpha premultiplied, styles in the order of STYLES.

    Where a style lacks a concept, everything is 0.
    """
    path = cache / f"drawings-{len(concepts)}-{SIDE}.npy"
    if not path.is_file():
        pixels = np.zeros((len(STYLES), len(concepts), SIDE, SIDE, 4), np.uint8)
        for index, style in enumerate(STYLES):
            _render_style(style, concepts, cache, pixels[index])
        partial = path.with_suffix(".partial.npy")  # what is cut short is not taken for the drawings
        np.save(partial, pixels)
        partial.rename(path)
    drawings: NDArray[np.uint8] = np.load(path)
    return drawings


def _render_style(style: str, concepts: list[Concept], cache: Path, pixels: NDArray[np.uint8]) -> None:
    icons = read_json(fetch(STYLES[style], cache) / "icons.json")
    for index, concept in enumerate(concepts):
        if style in concept.drawings:
            pixels[index] = _premultiplied(render(svg(icons, concept.drawings[style]), SIDE))


def svg(icons: dict[str, Any], name: str) -> str:
    """A drawing of an iconify package as an SVG document; an alias is the drawing it stands for."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def render(document: str, side: int) -> Image.Image:
    """An SVG document in the middle of a transparent square of `side` pixels."""
    import io

    import resvg_py

    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=side, height=side))))
    square = Image.new("RGBA", (side, side))
    square.paste(picture.convert("RGBA"), ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _premultiplied(picture: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(picture, np.float32)
    values = np.concatenate([values[..., :3] * values[..., 3:] / 255, values[..., 3:]], -1)
    return np.rint(values).astype(np.uint8)
