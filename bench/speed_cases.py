"""What the speed benchmark times: the cases and their inputs. Needs numpy only: every peer's environment has it.

Shapes: B prompts, S tokens each, P patches of a picture, D hidden, V visual tokens.
"""

from dataclasses import dataclass

import numpy as np

# As in the published 2B and 8B checkpoints.
VISION_START, VISION_END, IMAGE_PAD = 151652, 151653, 151655
ORDINARY_TOKENS = 150_000  # ids below are no special tokens
MERGE = 2
PATCH_VALUES = 1536  # 3 channels × 2 frames × 16 × 16 pixels
TEXT_BEFORE, TEXT_AFTER = 24, 16  # tokens around a picture: about the reference's shortest prompt
COMPARED_ROWS = 8  # of an output, for seeing that all peers compute the same


@dataclass(frozen=True)
class Case:
    """`batch` prompts of `length` text tokens, or one picture of `grid` patches (rows, columns).

    `decoder` False: the vision tower alone.
    """

    name: str
    batch: int = 1
    length: int = 0
    grid: tuple[int, int] | None = None
    decoder: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens that `seconds` are divided into: of the decoder for text, visual ones otherwise."""
        return self.batch * self.length if self.grid is None else self.grid[0] * self.grid[1] // MERGE**2


CASES = {
    case.name: case
    for case in (
        Case("text-1x32", 1, 32),
        Case("text-1x128", 1, 128),
        Case("text-4x128", 4, 128),
        Case("text-1x1024", 1, 1024),
        Case("picture-256", grid=(32, 32)),
        Case("picture-1024", grid=(64, 64)),
        Case("vision-256", grid=(32, 32), decoder=False),
        Case("vision-1024", grid=(64, 64), decoder=False),
        Case("vision-1800", grid=(90, 80), decoder=False),
    )
}


def input_ids(case: Case) -> np.ndarray:
    """int64 [B, S], the same at every call; a picture's pads stand between two pieces of text."""
    generator = np.random.default_rng(0)
    if case.grid is None:
        return generator.integers(ORDINARY_TOKENS, size=(case.batch, case.length))
    before, after = (generator.integers(ORDINARY_TOKENS, size=size) for size in (TEXT_BEFORE, TEXT_AFTER))
    picture = [VISION_START, *[IMAGE_PAD] * case.num_tokens, VISION_END]
    return np.concatenate([before, picture, after])[None].astype(np.int64)


def patches(case: Case) -> np.ndarray:
    """float32 [P, PATCH_VALUES] in -1...1: smooth, since noise is no picture and all patches of it look alike."""
    assert case.grid is not None
    generator = np.random.default_rng(1)
    waves = np.sin(np.linspace(0, 9, PATCH_VALUES) * generator.uniform(0.2, 3, (16, 1)))
    mixed = generator.normal(size=(case.grid[0] * case.grid[1], 16)) @ waves / 4
    return np.clip(mixed, -1, 1).astype(np.float32)
