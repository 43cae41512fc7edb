"""What there is to know: emoji that every drawing style of the core has, their names and keywords in 14 languages."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.sources import ANNOTATIONS, STYLES, fetch, read_json

# Those of the PyPI package `emoji`, under CLDR's names.
LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
CORE = ("noto", "twemoji", "fluent-flat", "openmoji")  # they say which code points each drawing stands for
SKIN_TONE = re.compile("1f3f[b-f]")


@dataclass(frozen=True)
class Concept:
    """One emoji: code points in hexadecimal, names and keywords by language, its drawing's name in each style."""

    code: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    drawings: dict[str, str]


def read_concepts(cache: Path) -> list[Concept]:
    """Every concept of the core styles with an English name, in the order of code points; skin tones left out."""
    chars = {style: _chars(cache, style) for style in CORE}
    codes = set.intersection(*(set(each) for each in chars.values()))
    annotations = {language: _annotations(cache, language) for language in LANGUAGES}
    drawn = {style: _drawing_names(cache, style) for style in STYLES}
    concepts = []
    for code in sorted(codes):
        if SKIN_TONE.search(code) or code not in annotations["en"]:
            continue
        known = {language: found[code] for language, found in annotations.items() if code in found}
        spellings = sorted({name for style in CORE for name in chars[style][code]})
        concepts.append(
            Concept(
                code,
                {language: entry["tts"][0] for language, entry in known.items() if "tts" in entry},
                {language: tuple(entry.get("default", ())) for language, entry in known.items()},
                _drawings(code, spellings, chars, drawn),
            )
        )
    return concepts


def _drawings(
    code: str, spellings: list[str], chars: dict[str, dict[str, list[str]]], drawn: dict[str, set[str]]
) -> dict[str, str]:
    """Style → name: by code point where the style says so, else under a name that another style gives the code."""
    found = {}
    for style, names in drawn.items():
        candidates = chars[style][code] if style in chars else spellings
        if usable := [name for name in candidates if name in names]:
            found[style] = usable[0]
    return found


def _chars(cache: Path, style: str) -> dict[str, list[str]]:
    """Code points (without the emoji variation selector) → names of drawings."""
    names = defaultdict(list)
    for code, name in read_json(fetch(STYLES[style], cache) / "chars.json").items():
        names[code.replace("-fe0f", "")].append(name)
    return names


def _drawing_names(cache: Path, style: str) -> set[str]:
    icons = read_json(fetch(STYLES[style], cache) / "icons.json")
    return set(icons["icons"]) | set(icons.get("aliases", {}))


def _annotations(cache: Path, language: str) -> dict[str, dict[str, Any]]:
    """Code points → CLDR's entry: `tts` is the name, `default` the keywords."""
    path = fetch(ANNOTATIONS, cache) / "annotations" / language / "annotations.json"
    entries = read_json(path)["annotations"]["annotations"]
    return {"-".join(f"{ord(char):x}" for char in emoji if char != "\ufe0f"): each for emoji, each in entries.items()}
