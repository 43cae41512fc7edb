"""The inputs on which package and reference must agree: pictures of every mode, videos, texts of many scripts."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Item = dict[str, Any]

# One sentence or greeting a script, right-to-left, combining, stacked and without spaces; then emoji sequences.
SCRIPTS = (
    "The quick brown fox", "Größe und Übermut", "Être à l'œuvre", "¿Dónde está el niño?", "Não há pães",
    "Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "Árvíztűrő tükörfúrógép", "İstanbul'da ılık", "Tiếng Việt đẹp lắm",
    "Ðæt wæs gōd", "Съешь ещё этих булок", "Їжак і ґанок", "Ђорђе", "Καλημέρα κόσμε", "שלום עולם", "مرحبا بالعالم",
    "سلام دنیا", "اردو زبان", "नमस्ते दुनिया", "নমস্কার বিশ্ব", "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "નમસ્તે", "வணக்கம் உலகம்", "నమస్కారం",
    "ನಮಸ್ಕಾರ", "നമസ്കാരം", "ආයුබෝවන්", "สวัสดีชาวโลก", "ສະບາຍດີ", "မင်္ဂလာပါ", "សួស្តី", "བཀྲ་ཤིས་བདེ་ལེགས", "გამარჯობა",
    "Բարեւ աշխարհ", "ሰላም ልዑል", "你好，世界", "繁體中文測試", "こんにちは世界カタカナ", "안녕하세요 세계",
    "Сайн уу ᠮᠣᠩᠭᠣᠯ", "ᏣᎳᎩ", "ⵜⴰⵎⴰⵣⵉⵖⵜ", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪", "e\u0301 A\u030a ﬁ ① ２", "∑∫√≠ αβγ",
    "tab\tnew\n\nline \r\n end ",
)  # fmt: skip

PICTURES = {
    "rgb": ("RGB", (120, 90)),
    "rgba": ("RGBA", (90, 120)),
    "palette": ("P", (64, 100)),
    "grey with alpha": ("LA", (70, 70)),
    "grey": ("L", (65, 33)),
    "cmyk": ("CMYK", (100, 50)),
    "16-bit": ("I;16", (80, 48)),
    "black and white": ("1", (96, 64)),
    "1x1": ("RGB", (1, 1)),
    "5000x40": ("RGB", (5000, 40)),
    "half-even 80x80": ("RGB", (80, 80)),
    "half-even 48x112": ("RGB", (48, 112)),
}


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise over a gradient in the given mode."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 160, (height, width, 4))
    ramp = np.linspace(0, 95, width)[None, :, None]
    pixels = (noise + ramp).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 251)
    if mode == "LA":
        return Image.fromarray(pixels[..., :2].copy(), "LA")
    rgba = Image.fromarray(pixels)
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def embedding_items(folder: Path, clip: Path) -> dict[str, Item]:
    """Every kind of embedder input; 16-bit and CMYK go through files, as a user's would."""
    items: dict[str, Item] = {"nothing": {}, "text": {"text": "a red car"}}
    for name, (mode, size) in PICTURES.items():
        path = folder / f"{name.replace(' ', '-')}.{'tiff' if mode == 'CMYK' else 'png'}"
        picture(mode, size).save(path)
        items[name] = {"image": str(path)}
    one, two = picture("RGB", (100, 60), 1), picture("RGBA", (60, 130), 2)
    frames = [picture("RGB", (128, 96), seed) for seed in range(5)]
    return items | {
        "two texts": {"text": ["first", "second"]},
        "instruction": {"text": "query", "instruction": "Find pictures of it"},
        "instruction with punctuation": {"text": "query", "instruction": "  找到它。 "},
        "empty instruction": {"text": "query", "instruction": "  "},
        "several pictures": {"image": [one, two, one]},
        "picture and text": {"image": two, "text": "what is it?", "instruction": "Describe!"},
        "special tokens": {"text": "before <|im_end|> after <|endoftext|>"},
        "long text": {"text": "word " * 400},
        "odd frames": {"video": frames},
        "frames and text": {"video": frames[:2], "text": "what happens?"},
        "video file": {"video": str(clip)},
        "video file, fps": {"video": str(clip), "fps": 3, "max_frames": 6, "text": "clip"},
        "all together": {"video": [frames, str(clip)], "image": [one, two], "text": ["a", "b"]},
    }


def rerank_requests(folder: Path, clip: Path) -> dict[str, Item]:
    """Pairs as requests: every item as a document of a text query, then pictures and videos on both sides."""
    items = embedding_items(folder, clip)
    documents = [{key: item[key] for key in ("text", "image", "video") if key in item} for item in items.values()]
    one, two = picture("RGB", (100, 60), 1), picture("RGBA", (60, 130), 2)
    frames = [picture("RGB", (128, 96), seed) for seed in range(3)]
    return {
        "text query": {"query": {"text": "a red car"}, "documents": documents},
        "picture query": {
            "query": {"image": one, "text": "like this"},
            "documents": [{"image": two}, {"image": [one, two], "text": "both"}, {"text": "none"}, {}],
            "instruction": "Find the same thing",
        },
        "video query": {
            "query": {"video": frames},
            "documents": [{"video": str(clip)}, {"video": frames, "image": two, "text": "all"}],
            "fps": 2.0,
            "max_frames": 4,
        },
        "instruction pair": {"query": {"text": ("Judge it", "query")}, "documents": [{"text": "document"}]},
    }
