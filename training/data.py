"""Batches: concepts with hard negatives among them, a text and a picture of each."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.augment import SIZES, augmented, drawn_size, patches
from training.concepts import Concept
from training.drawings import read_drawings
from training.prompts import Ids, Prompter
from training.sources import STYLES, UNSEEN
from training.texts import neighbours, said_about

ENGLISH_SHARE = 0.4
NEIGHBOURS = 24
LONGEST = 16  # tokens of a text
CELL = 32  # pixels a side of a visual token


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches [B, P, 1536] of a grid of patches, and the cells of visual tokens they become."""

    patches: Tensor
    grid: tuple[int, int]
    cells: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Contents:
    """Texts as ids, or pictures instead."""

    texts: list[Ids]
    pictures: Batch | None = None

    def __len__(self) -> int:
        return len(self.texts if self.pictures is None else self.pictures.patches)

    def first(self, count: int) -> "Contents":
        """The first so many."""
        batch = self.pictures
        return Contents(self.texts[:count], batch and replace(batch, patches=batch.patches[:count]))


class Data:
    """All concepts with their texts as token ids, and their drawings."""

    def __init__(self, cache: Path, prompter: Prompter, concepts: list[Concept], seed: int, device: str = "cpu"):
        self.sizes = SIZES
        self.concepts, self._random, self._numpy = concepts, random.Random(seed), np.random.default_rng(seed)
        drawings = torch.from_numpy(read_drawings(concepts, cache)).to(device)
        self.drawings = drawings[[style != UNSEEN for style in STYLES]]  # [styles, concepts, H, W, 4]
        self.unseen = drawings[list(STYLES).index(UNSEEN)]
        styles = [style for style in STYLES if style != UNSEEN]
        self._drawn = [[i for i, style in enumerate(styles) if style in each.drawings] for each in concepts]
        self._neighbours = neighbours(concepts, NEIGHBOURS)
        self._texts = [_as_ids(each, prompter, self._random) for each in concepts]

    def some_concepts(self, count: int, hard: bool) -> list[int]:
        """`count` different ones; `hard`: in groups that share words."""
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            start = self._random.randrange(len(self.concepts))
            group = self._random.sample(self._neighbours[start], 11) if hard else []
            chosen |= dict.fromkeys([start, *group])
        return list(chosen)[:count]

    def groups(self, count: int, size: int, hard: float) -> list[int]:
        """`count` groups of `size` different concepts, one after the other; a share `hard` of them near each other."""
        chosen = []
        for _ in range(count):
            start = self._random.randrange(len(self.concepts))
            near = self._random.random() < hard
            others = self._neighbours[start] if near else [i for i in range(len(self.concepts)) if i != start]
            chosen += [start, *self._random.sample(others, size - 1)]
        return chosen

    def near(self, chosen: list[int]) -> list[int]:
        """For each a concept that is near it."""
        return [self._random.choice(self._neighbours[each]) for each in chosen]

    def replace_neighbours(self, neighbours: list[list[int]]) -> None:
        """Take others for hard negatives than those that share words."""
        self._neighbours = neighbours

    def coin(self) -> int:
        """0 or 1."""
        return self._random.randrange(2)

    def contents(self, kind: str, chosen: list[int]) -> Contents:
        """A "text" or a "picture" about each."""
        return Contents(self.texts(chosen)) if kind == "text" else Contents([], self.pictures(chosen))

    def texts(self, chosen: list[int]) -> list[Ids]:
        """A text about each."""
        found = []
        for each in chosen:
            languages = self._texts[each]
            language = "en" if self._random.random() < ENGLISH_SHARE else self._random.choice(list(languages))
            found.append(self._random.choice(languages[language]))
        return found

    def pictures(self, chosen: list[int]) -> Batch:
        """A drawing of each in any style but the unseen one, augmented; all of one size."""
        size = drawn_size(self._numpy, self.sizes)
        styles = [self._random.choice(self._drawn[each]) for each in chosen]
        return as_batch(augmented(self.drawings[styles, chosen], size))


def as_batch(pictures: Tensor) -> Batch:
    """float32 [B, 3, H, W] in 0 … 1."""
    height, width = pictures.shape[2:]
    return Batch(*patches(pictures), (height // CELL, width // CELL))


def _as_ids(concept: Concept, prompter: Prompter, random: random.Random) -> dict[str, list[Ids]]:
    """Texts by language; long ones are left out, for the sake of the padding, unless nothing is left."""
    said = {language: prompter.ids(texts) for language, texts in said_about(concept, random).items()}
    return {language: [ids for ids in texts if len(ids) <= LONGEST] or texts[:1] for language, texts in said.items()}
