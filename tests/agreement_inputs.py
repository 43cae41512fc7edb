"""Inputs on which packages are compared in tests, none of them among those they were calibrated on."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.graphs.target import TARGETS
from runtime.manifest import Manifest

Model = Qwen3VLEmbedder | Qwen3VLReranker
WORDS = ("river", "stone", "market", "engine", "violet", "harvest", "signal", "copper", "window", "thunder", "orchard")
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 233)  # words
QUERY = {"text": "a stone bridge over a river"}


def items() -> list[dict[str, Any]]:
    """Texts from short to long, pictures, and both together."""
    generator = np.random.default_rng(5)
    found: list[dict[str, Any]] = [{"text": " ".join(generator.choice(WORDS, length))} for length in LENGTHS]
    found += [{"image": picture(seed, (64 + 32 * seed, 200 - 32 * seed))} for seed in range(4)]
    return found + [{"text": " on a ".join(WORDS[at : at + 2]), "image": picture(10 + at, (96, 96))} for at in (0, 4)]


@cache
def item_results(folder: Path) -> np.ndarray:
    """`results` of `items`, once a session."""
    return results(folder, items())


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise over a gradient."""
    noise = np.random.default_rng(seed).integers(0, 120, (*size, 3))
    return Image.fromarray((noise + np.linspace(0, 135, size[1])[None, :, None]).astype(np.uint8))


def opened(folder: Path, threads: int | None = None, batch_tokens: int = TARGETS["cpu"].batch_tokens) -> Model:
    """A package of either task."""
    kind = Qwen3VLEmbedder if Manifest.read(folder).task == "embedding" else Qwen3VLReranker
    return kind(folder, threads=threads, batch_tokens=batch_tokens)


def results(folder: Path, among: list[dict[str, Any]]) -> np.ndarray:
    """`results_of` a package that is opened for them."""
    return results_of(opened(folder), among)


def results_of(model: Model, among: list[dict[str, Any]]) -> np.ndarray:
    """What a package of either task gives: unit vectors [N, D], or logits [N] of the documents for QUERY."""
    if isinstance(model, Qwen3VLEmbedder):
        return model.process(among)
    scores = model.process({"query": QUERY, "documents": among})
    found: np.ndarray = np.log(scores) - np.log1p(np.negative(scores))
    return found
