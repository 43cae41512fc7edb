"""What is said about a concept: its name in 14 languages, short descriptions, keywords."""

import random
from collections.abc import Sequence

from training.concepts import Concept

TEMPLATES = ("a drawing of {}", "an icon: {}", "a picture that shows {}", "{} emoji", "flat illustration, {}")


def said_about(concept: Concept, random: random.Random) -> dict[str, list[str]]:
    """Texts by language: the name first, then descriptions drawn by `random`."""
    said = {}
    for language, name in concept.names.items():
        keywords = [each for each in concept.keywords[language] if each != name]
        texts = [name]
        if keywords:
            texts += [f"{name}: {_some(keywords, random)}", f"{name}, {_some(keywords, random)}"]
        if len(keywords) > 2:
            texts.append(_some(keywords, random, 3))
        if language == "en":
            texts += [template.format(name) for template in TEMPLATES]
        said[language] = texts
    return said


def _some(words: Sequence[str], random: random.Random, least: int = 1) -> str:
    return ", ".join(random.sample(words, min(len(words), random.randint(least, 4))))


def neighbours(concepts: Sequence[Concept], count: int) -> list[list[int]]:
    """For each concept the `count` others that share most of its English words: hard negatives."""
    words = [{word for text in (*each.keywords["en"], each.names["en"]) for word in text.split()} for each in concepts]
    nearest = []
    for index, own in enumerate(words):
        shared = [len(own & other) / len(own | other) for other in words]
        order = sorted(range(len(words)), key=lambda other: -shared[other])
        nearest.append([other for other in order if other != index][:count])
    return nearest
