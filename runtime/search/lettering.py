"""Words in pictures: a font that has their characters, or what stands for those that no font has; lines that fit."""

import unicodedata
from bisect import bisect_right
from functools import cache

from PIL import ImageFont

# Pillow's own font has little more than ASCII. It looks for these where the usual systems keep theirs.
FALLBACKS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "arial.ttf", "Arial Unicode.ttf"),
    *("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc"),
)
NOWHERE = "\U0010fffe"  # a code point that no font has a character for
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font_named(name: str | None, size: int) -> Font | None:
    """Pillow's own font for None; None where there is no such font."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None


def lettering(text: str, size: int) -> tuple[str, Font]:
    """The text and the font to draw it with; without any that has all, letters lose accents or become \\u9e2d."""
    own = font_named(None, size)
    assert own is not None
    if all(_has(None, size, each) for each in text):
        return text, own
    for name in FALLBACKS:
        font = font_named(name, size)
        if font is not None and all(_has(name, size, each) for each in text):
            return text, font
    return "".join(each if _has(None, size, each) else _stand_in(each) for each in text), own


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    found: list[str] = []
    for paragraph in text.splitlines():
        rest = paragraph.strip()
        while rest and len(found) <= lines:
            line = _beginning(rest, font, width)
            found.append(line)
            rest = rest[len(line) :].lstrip()
    if len(found) > lines:
        found = found[:lines]
        found[-1] = found[-1][: _fitting(found[-1], font, width - font.getlength(ELLIPSIS))] + ELLIPSIS
    return found


def elided(text: str, font: Font, width: int) -> str:
    """A name that fits: where it is too long, its end, which tells files of a folder apart."""
    if len(text) <= width and font.getlength(text) <= width:
        return text
    text = text[-width:]  # hardly any takes less than a pixel
    room = width - font.getlength(ELLIPSIS)
    lost = bisect_right(range(len(text)), -room, key=lambda start: -font.getlength(text[start:]))
    return ELLIPSIS + text[lost:]


def _beginning(text: str, font: Font, width: int) -> str:
    """As many words as fit, or characters where not even one does."""
    fitting = max(1, _fitting(text, font, width))
    if fitting == len(text):
        return text
    space = text.rfind(" ", 0, fitting + 1)
    return text[:space] if space > 0 else text[:fitting]


def _fitting(text: str, font: Font, width: float) -> int:
    """How many of the first characters fit."""
    most = min(len(text), max(0, int(width)))  # hardly any takes less than a pixel
    return bisect_right(range(1, most + 1), width, key=lambda count: font.getlength(text[:count]))


def _stand_in(character: str) -> str:
    if character in DASHES:
        return "-"
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode("ascii")
    return base if base.isprintable() and base else character.encode("unicode_escape").decode("ascii")


@cache
def _has(name: str | None, size: int, character: str) -> bool:
    """Whether the font draws something else than its sign for what it lacks."""
    if character in " \n":
        return True
    if not character.isprintable():
        return False
    font = font_named(name, size)
    assert font is not None
    return bytes(font.getmask(character)) != bytes(font.getmask(NOWHERE))
