"""Which matrix gets which scheme: one predicate in one place, with the scales and statistics that go with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quant.blockwise import Blockwise
from quant.fold import Fold
from quant.per_token import PerToken
from quant.schemes import AsStored, Float32, Scheme
from quant.statistics import InputStatistics
from quant.table import Int8Rows
from quant.two_level import TwoLevel

PRECISIONS = ("fp32", "int8", "int8-portable", "int4", "int4-portable")
TOKEN_TABLE = "model.language_model.embed_tokens.weight"
DECODER, VISION = "model.language_model.", "model.visual."
KEPT_IN_FLOAT = ("model.visual.patch_embed.",)
INT8_BLOCK = 128
PORTABLE_BLOCK = 64  # loses two thirds of what 128 does, and takes a tenth longer
INT4_BLOCKS = (16, 32, 64, 128)
# Blocks of 16 with two levels take the bytes of blocks of 32 with a float scale, and lose less.
DEFAULT_BLOCKS = {"int4": 16, "int4-portable": 32}
# Largest |x| over the rms of the whole input: above it, one scale a token leaves the other channels no levels.
MASSIVE_RATIO = 200.0


@dataclass(frozen=True, eq=False)
class Plan:
    """How the matrices of one package are stored.

    `block` of 4-bit weights, None for the precision's own. `massive`: matrices whose input has massive activations;
    `folds` and `importance` (mean square of each input) by name, empty without calibration. `to_uint8`: as `TwoLevel`
    has it.
    """

    precision: str
    block: int | None = None
    massive: frozenset[str] = frozenset()
    folds: Mapping[str, Fold] = field(default_factory=dict)
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    to_uint8: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.block is not None and self.block not in INT4_BLOCKS:
            raise ValueError(f"int4 block {self.block} is not one of {INT4_BLOCKS}")

    @property
    def two_level(self) -> bool:
        """Whether there are matrices that the decoder unpacks."""
        return self.precision == "int4"

    def scheme_for(self, name: str) -> Scheme:
        """The scheme of the matrix called `name` (its checkpoint name, with a suffix for a part of a tensor)."""
        if self.precision == "fp32":
            return AsStored() if name == TOKEN_TABLE else Float32()
        if name == TOKEN_TABLE:
            return Int8Rows()
        if name.startswith(KEPT_IN_FLOAT):
            return Float32()
        is_int4 = self.precision in DEFAULT_BLOCKS and name.startswith(DECODER)
        block = self.block or DEFAULT_BLOCKS.get(self.precision, 0)
        if self.precision == "int4-portable" and is_int4:
            return Blockwise(4, block, symmetric=False)
        if self.precision.endswith("-portable"):
            return Blockwise(8, PORTABLE_BLOCK, symmetric=True)
        if name in self.massive:
            return Blockwise(8, INT8_BLOCK, symmetric=True)
        return TwoLevel(block, self.to_uint8) if is_int4 else PerToken()


FLOAT32 = Plan("fp32")


def is_massive(statistics: InputStatistics) -> bool:
    """Whether one scale a token would be spent on few channels."""
    rms = float(np.sqrt(statistics.mean_square.mean()))
    return bool(statistics.largest.max() > MASSIVE_RATIO * max(rms, 1e-12))
