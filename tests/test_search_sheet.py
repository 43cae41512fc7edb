"""The contact sheet as a picture and as a page: every document in its place, nothing that can be executed."""

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError
from runtime.prompts.encode import DEFAULT_LIMITS
from runtime.search.contact_page import contact_page
from runtime.search.contact_sheet import CAPTION, GAP, HEADER, MARGIN, TILE, contact_sheet
from runtime.search.lettering import elided, font_named, lettering, wrapped
from runtime.search.paths import one_line
from runtime.search.preview import LONGEST_SIDE, Preview, Tile, preview

RED, BLUE = (200, 30, 30), (30, 30, 200)
NASTY = "<script>alert('x')</script> \"&\" 鸭 \u202e\U0001f986 \udcff"


def tile(rank: int, shown: Preview, name: str = "a.png") -> Tile:
    return Tile(rank, name, ("score 0.9000", "cosine 0.5000"), shown)


def filled(colour: tuple[int, int, int], size: tuple[int, int] = (300, 300)) -> Preview:
    return Preview(Image.new("RGB", size, colour), "")


def middle(sheet: Image.Image, index: int) -> Any:
    """The colour in the middle of a tile."""
    row, column = divmod(index, 5)
    left, top = MARGIN + column * (TILE + GAP), HEADER + row * (TILE + CAPTION + GAP)
    return sheet.getpixel((left + TILE // 2, top + TILE // 2))


def test_tiles_stand_in_the_order_of_rank() -> None:
    colours = [RED, BLUE, BLUE, RED, BLUE, RED, RED]
    sheet = contact_sheet(
        Preview(None, "query"), "7 of 9", [tile(n + 1, filled(each)) for n, each in enumerate(colours)]
    )
    assert sheet.size == (2 * MARGIN + 5 * TILE + 4 * GAP, HEADER + 2 * (TILE + CAPTION + GAP) + MARGIN - GAP)
    assert [middle(sheet, n) for n in range(7)] == colours


@pytest.mark.parametrize("count", [0, 1, 4, 12])
@pytest.mark.parametrize("query", [Preview(None, ""), filled(RED, (1, 5000)), Preview(None, NASTY * 50)])
def test_any_number_and_any_query(count: int, query: Preview) -> None:
    shown = [filled(BLUE, (1, 1)), filled(BLUE, (480, 3)), Preview(None, NASTY * 30), Preview(None, "")]
    sheet = contact_sheet(query, NASTY, [tile(n + 1, shown[n % 4], NASTY * 9) for n in range(count)])
    assert sheet.mode == "RGB" and sheet.width <= 2 * MARGIN + 5 * TILE + 4 * GAP


def test_a_text_is_drawn_in_its_tile() -> None:
    empty, text = (contact_sheet(Preview(None, "q"), "", [tile(1, Preview(None, words))]) for words in ("", "words"))
    box = (MARGIN, HEADER, MARGIN + TILE, HEADER + TILE)
    assert np.any(np.asarray(empty.crop(box)) != np.asarray(text.crop(box)))
    below = (0, HEADER + TILE, empty.width, empty.height)
    assert np.array_equal(np.asarray(empty.crop(below)), np.asarray(text.crop(below)))


def test_a_picture_keeps_its_words() -> None:
    picture = filled(RED).picture
    plain, words = (contact_sheet(Preview(None, "q"), "", [tile(1, Preview(picture, each))]) for each in ("", "words"))
    assert middle(plain, 0) == middle(words, 0) == RED
    box = (MARGIN, HEADER + TILE - 26, MARGIN + TILE, HEADER + TILE)
    assert np.any(np.asarray(plain.crop(box)) != np.asarray(words.crop(box)))
    page = contact_page(Preview(None, "q"), "", [tile(1, Preview(picture, '"><script>'))])
    (attributes,) = (attributes for tag, attributes in Reading(page).elements if tag == "img")
    assert attributes["alt"] == '"><script>'


def test_what_no_font_has_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.search.lettering.FALLBACKS", ("no-such-font.ttf",))
    own = font_named(None, 16)
    assert lettering("plain <b>", 16) == ("plain <b>", own)
    assert lettering("Größe – café", 16) == ("Gro\\xdfe - cafe", own)
    assert lettering("a 鸭 \u202e", 16) == ("a \\u9e2d \\u202e", own)
    assert lettering("\udcff\0", 16)[0] == "\\udcff\\x00"


def test_a_font_that_has_them_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    dejavu = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    monkeypatch.setattr("runtime.search.lettering.FALLBACKS", ("no-such-font.ttf", dejavu))
    text, font = lettering("Größe – утка", 16)
    assert text == "Größe – утка" and font is font_named(dejavu, 16)
    assert lettering("утка 鸭", 16) == ("\\u0443\\u0442\\u043a\\u0430 \\u9e2d", font_named(None, 16))


def test_lines_fit() -> None:
    font = font_named(None, 16)
    assert font is not None
    text = "some words, averyveryveryveryveryverylongone\n\nand a last line"
    lines = wrapped(text, font, 120, 10)
    assert max(map(font.getlength, lines)) <= 120 and "".join(lines).replace(" ", "") == "".join(text.split())
    short = wrapped(text, font, 120, 2)
    assert len(short) == 2 and short[1].endswith("...") and font.getlength(short[1]) <= 120
    assert wrapped("", font, 120, 2) == [] and wrapped("WW", font, 1, 5) == ["W", "W"]
    assert elided("folder/name.png", font, 60).startswith("...") and elided("a", font, 60) == "a"
    assert elided("folder/name.png", font, 60).endswith(".png")


def test_a_preview_is_small_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (2000, 1000), RED).save(tmp_path / "a.jpg", exif=exif)
    shown = preview({"image": tmp_path / "a.jpg", "text": "words"}, DEFAULT_LIMITS)
    assert shown.picture is not None and shown.picture.size == (LONGEST_SIDE // 2, LONGEST_SIDE)
    assert shown.text == "words"
    several = preview({"image": [tmp_path / "a.jpg", "gone.png"], "text": ["a", "b" * 900]}, DEFAULT_LIMITS)
    assert several.picture is not None and len(several.text) == 401
    gone = preview({"image": "gone.png"}, DEFAULT_LIMITS)
    assert gone.picture is None and gone.text.startswith("gone.png does not exist")
    assert preview(InputError("changed"), DEFAULT_LIMITS).text == "changed"
    assert preview({"video": "clips/a.mp4"}, DEFAULT_LIMITS).text == "video: a.mp4"


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_with_damaged_exif_is_shown_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (60, 30), RED).save(path, exif=b"damaged")
    shown = preview({"image": path}, DEFAULT_LIMITS)
    assert shown.picture is not None and shown.picture.size == (60, 30)


class Reading(HTMLParser):
    """The elements of a page, their attributes and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_everything_and_runs_nothing() -> None:
    tiles = [tile(1, filled(RED), NASTY), tile(2, Preview(None, NASTY), "b.txt")]
    page = contact_page(Preview(filled(BLUE).picture, NASTY), NASTY, tiles)
    page.encode()  # surrogates would not go
    assert "<script" not in page and "javascript:" not in page
    reading = Reading(page)
    tags = [tag for tag, _ in reading.elements]
    assert tags.count("figure") == 2 and tags.count("img") == 2 and not {"script", "link", "iframe", "a"} & set(tags)
    assert reading.text.count(NASTY.replace("\udcff", "\\udcff")) == 5, "title, heading, words, name and text"
    for tag, attributes in reading.elements:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            kind, _, content = (attributes["src"] or "").partition(",")
            assert kind == "data:image/jpeg;base64"
            with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
                assert picture.size == (300, 300)
    assert "default-src 'none'" in page


def test_names_stay_on_their_line() -> None:
    escaped: Callable[[str], str] = one_line
    assert escaped("a\nb\t\udcff\x1b[1m \u202e é 鸭") == "a\\nb\\t\\udcff\\x1b[1m \\u202e é 鸭"
