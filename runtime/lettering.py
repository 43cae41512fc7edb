"""Words in pictures: a font that has their characters, or escapes where there is none; lines that fit a width."""

from functools import cache

from PIL import ImageFont

# What other scripts than Latin are written in on the usual systems; Pillow looks for them where fonts are kept.
FALLBACKS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf")
NOWHERE = "\U0010fffe"  # a code point that no font has a character for
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
    """The text and the font to draw it with; characters that no font has become escapes such as \\u9e2d."""
    own = font_named(None, size)
    assert own is not None
    if all(_has(None, size, each) for each in text):
        return text, own
    for name in FALLBACKS:
        font = font_named(name, size)
        if font is not None and all(_has(name, size, each) for each in text):
            return text, font
    known = (each if _has(None, size, each) else each.encode("unicode_escape").decode("ascii") for each in text)
    return "".join(known), own


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
        found[-1] = _shortened(found[-1] + ELLIPSIS, font, width)
    return found


def elided(text: str, font: Font, width: int) -> str:
    """A name that fits: where it is too long, its end, which tells files of a folder apart."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(ELLIPSIS + text) > width:
        text = text[1:]
    return ELLIPSIS + text


def _beginning(text: str, font: Font, width: int) -> str:
    """As many words as fit, or characters where not even one does."""
    fitting = 1
    while fitting < len(text) and font.getlength(text[: fitting + 1]) <= width:
        fitting += 1
    if fitting == len(text):
        return text
    space = text.rfind(" ", 0, fitting + 1)
    return text[:space] if space > 0 else text[:fitting]


def _shortened(text: str, font: Font, width: int) -> str:
    while len(text) > len(ELLIPSIS) and font.getlength(text) > width:
        text = text[: -len(ELLIPSIS) - 1] + ELLIPSIS
    return text


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
