"""A ranked list as one picture: the query on top, then a tile for each document in order."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from runtime.search.lettering import elided, lettering, wrapped
from runtime.search.preview import Preview, Tile

COLUMNS = 5
MARGIN, GAP = 24, 16
TILE = 240  # side of a tile's picture
CAPTION = 64  # below it
STRIP = 26  # at its bottom, for words that go with it
QUERY = 144  # side of the query's picture
HEADER = QUERY + 3 * MARGIN
LARGE, MIDDLE, SMALL = 24, 16, 14
PAGE, PAPER, LINE = (246, 246, 244), (255, 255, 255), (221, 221, 217)
INK, FADED, ACCENT = (28, 28, 30), (110, 110, 115), (178, 60, 23)


def contact_sheet(query: Preview, words: str, tiles: Sequence[Tile]) -> Image.Image:
    """RGB; `words` say below the query what was searched."""
    columns = min(COLUMNS, max(3, len(tiles)))
    rows = -(-len(tiles) // columns)
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    height = HEADER + rows * (TILE + CAPTION + GAP) + MARGIN - GAP * bool(rows)
    sheet = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(sheet)
    _draw_query(sheet, draw, query, words)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (TILE + GAP), HEADER + row * (TILE + CAPTION + GAP))
        _draw_tile(sheet, draw, corner, tile)
    return sheet


def _draw_query(sheet: Image.Image, draw: ImageDraw.ImageDraw, query: Preview, words: str) -> None:
    left = MARGIN
    if query.picture is not None:
        _draw_picture(sheet, draw, (MARGIN, MARGIN), QUERY, query.picture)
        left += QUERY + MARGIN
    width = sheet.width - MARGIN - left
    text, font = lettering(query.text, LARGE)
    lines = wrapped(text, font, width, 3)
    top = MARGIN + (QUERY - (len(lines) + 1) * (LARGE + 8)) // 2
    for line in lines:
        draw.text((left, top), line, INK, font)
        top += LARGE + 8
    _draw_line(draw, (left, top + 4), words, FADED, MIDDLE)
    draw.line((MARGIN, HEADER - MARGIN, sheet.width - MARGIN, HEADER - MARGIN), LINE)


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile) -> None:
    left, top = corner
    if tile.preview.picture is not None:
        _draw_picture(sheet, draw, corner, TILE, tile.preview.picture)
        text, font = lettering(tile.preview.text, SMALL)
        for line in wrapped(text, font, TILE - 16, 1):  # of a document that is a picture with words
            draw.rectangle((left, top + TILE - STRIP, left + TILE - 1, top + TILE - 1), PAPER, LINE)
            draw.text((left + 8, top + TILE - STRIP + 5), line, INK, font)
    else:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), PAPER, LINE)
        text, font = lettering(tile.preview.text, MIDDLE)
        for number, line in enumerate(wrapped(text, font, TILE - 32, (TILE - 32) // (MIDDLE + 6))):
            draw.text((left + 16, top + 16 + number * (MIDDLE + 6)), line, INK, font)
    rank, first, *others = str(tile.rank), *tile.figures
    _draw_line(draw, (left, top + TILE + 8), rank, ACCENT, LARGE)
    beside = left + 16 + 14 * len(rank)
    _draw_line(draw, (beside, top + TILE + 14), first, INK, MIDDLE)
    if others:
        text, font = lettering("  ".join(others), SMALL)
        draw.text((left + TILE - font.getlength(text), top + TILE + 15), text, FADED, font)
    text, font = lettering(tile.name, SMALL)
    draw.text((left, top + TILE + 40), elided(text, font, TILE), FADED, font)


def _draw_picture(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, picture: Image.Image
) -> None:
    """Whole, in the middle of a square."""
    left, top = corner
    draw.rectangle((left, top, left + side - 1, top + side - 1), PAPER, LINE)
    scale = (side - 2) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # A small picture is enlarged as it is: smoothing would show what is not there.
    shown = picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    sheet.paste(shown, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def _draw_line(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int], size: int
) -> None:
    shown, font = lettering(text, size)
    draw.text(place, shown, ink, font)
