"""A ranked list as one HTML file with everything in it: no scripts, nothing from elsewhere, all text escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from runtime.search.preview import Preview, Tile

STYLE = """
body { margin: 2rem auto; max-width: 84rem; padding: 0 1.5rem; background: #f6f6f4; color: #1c1c1e;
  font: 16px/1.4 system-ui, sans-serif; }
header { display: flex; gap: 1.5rem; align-items: center; padding-bottom: 1rem; border-bottom: 1px solid #ddddd9; }
header img { width: 9rem; height: 9rem; }
h1 { margin: 0 0 .3rem; font-size: 1.5rem; font-weight: 500; white-space: pre-wrap; overflow-wrap: anywhere; }
header p, figcaption { color: #6e6e73; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem 1rem;
  padding-top: 1.5rem; }
figure { margin: 0; min-width: 0; }
.tile { aspect-ratio: 1; border: 1px solid #ddddd9; background: #fff; }
img { object-fit: contain; width: 100%; height: 100%; }
.tile p { margin: 1rem; height: calc(100% - 2rem); overflow: hidden; white-space: pre-wrap; overflow-wrap: anywhere; }
.rank { color: #b23c17; font-size: 1.5rem; }
.score { color: #1c1c1e; margin: 0 .8rem; }
.name { overflow-wrap: anywhere; font-size: .875rem; }
""".strip()

PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>
{style}
</style></head><body>
<header>{query}<div><h1>{title}</h1><p>{words}</p></div></header>
<main>
{tiles}
</main></body></html>
"""

FIGURE = (
    '<figure><div class="tile">{content}</div><figcaption><span class="rank">{rank}</span>'
    '<span class="score">{first}</span>{others}<div class="name">{name}</div></figcaption></figure>'
)


def contact_page(query: Preview, words: str, tiles: Sequence[Tile]) -> str:
    """HTML; `words` say below the query what was searched."""
    return PAGE.format(
        style=STYLE,
        title=_text(query.text) or "picture",
        query="" if query.picture is None else _image(query.picture, ""),
        words=_text(words),
        tiles="\n".join(map(_figure, tiles)),
    )


def _figure(tile: Tile) -> str:
    preview, (first, *others) = tile.preview, tile.figures
    content = f"<p>{_text(preview.text)}</p>" if preview.picture is None else _image(preview.picture, preview.text)
    return FIGURE.format(
        content=content, rank=tile.rank, first=_text(first), others=_text("  ".join(others)), name=_text(tile.name)
    )


def _text(text: str) -> str:
    """Escaped; what is no character has no place in UTF-8."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _image(picture: Image.Image, text: str) -> str:
    """`text` goes with the picture, and is shown under the pointer."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    words, content = _text(text), base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{words}" title="{words}" src="data:image/jpeg;base64,{content}">'
