"""Which matrix gets which scheme: one predicate in one place, with the scales and statistics that go with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from quant.blockwise import Blockwise
from quant.fold import Fold
from quant.kernels import CPU, Kernels
from quant.per_token import PerToken
from quant.schemes import AsStored, Float, Scheme
from quant.statistics import InputStatistics
from quant.table import Int8Rows
from quant.two_level import TwoLevel

UNQUANTISED = ("fp32", "bf16")
TOKEN_TABLE = "model.language_model.embed_tokens.weight"
DECODER, VISION = "model.language_model.", "model.visual."
KEPT_IN_FLOAT = ("model.visual.patch_embed.",)
INT8_BLOCK = 128
PORTABLE_BLOCK = 64  # loses two thirds of what 128 does, and takes a tenth longer
INT4_BLOCKS = (8, 16, 32, 64, 128)  # the first in two levels only
# Blocks of 8 in two levels take the bytes of blocks of 32 with a float scale, and lose less.
TWO_LEVEL_BLOCK, INT4_BLOCK = 8, 32
# Largest |x| over the rms of the whole input: above it, one scale a token leaves the other channels no levels.
MASSIVE_RATIO = 200.0


@dataclass(frozen=True, eq=False)
class Plan:
    """How the matrices of one package are stored.

    `block` of 4-bit weights, None for the precision's own. `massive`: matrices whose input has massive activations;
    `folds` and `importance` (mean square of each input) by name, empty without calibration. `to_uint8`: for processors
    that saturate int8 products.
    """

    precision: str
    block: int | None = None
    kernels: Kernels = CPU
    massive: frozenset[str] = frozenset()
    folds: Mapping[str, Fold] = field(default_factory=dict)
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    to_uint8: bool = False

    def __post_init__(self) -> None:
        if self.precision not in self.kernels.precisions:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(self.kernels.precisions)}")
        blocks = INT4_BLOCKS if self.two_level else INT4_BLOCKS[1:]
        if self.block is not None and self.block not in blocks:
            raise ValueError(f"{self.precision} block {self.block} is not one of {blocks}")

    @property
    def per_token(self) -> bool:
        """Whether there are products that some processors saturate."""
        return self.precision in ("int8", "int4") and self.kernels.per_token

    @property
    def two_level(self) -> bool:
        """Whether there are matrices that the decoder unpacks."""
        return self.precision == "int4" and self.kernels.per_token

    def scheme_for(self, name: str) -> Scheme:
        """The scheme of the matrix called `name` (its checkpoint name, with a suffix for a part of a tensor)."""
        if name == TOKEN_TABLE:
            return self._table()
        if self.precision in UNQUANTISED or name.startswith(KEPT_IN_FLOAT):
            return Float(self.kernels)
        is_int4 = self.precision.startswith("int4") and name.startswith(DECODER) and not is_kept(name, self.two_level)
        if is_int4 and not self.two_level:
            return Blockwise(4, self.block or INT4_BLOCK, symmetric=False, kernels=self.kernels)
        portable = self.precision.endswith("-portable")
        if portable or not self.kernels.per_token or name in self.massive:
            block = PORTABLE_BLOCK if portable else INT8_BLOCK
            return Blockwise(8, block, symmetric=True, kernels=self.kernels)
        return TwoLevel(self.block or TWO_LEVEL_BLOCK, self.to_uint8) if is_int4 else PerToken()

    def in_float32(self) -> "Plan":
        """The same stored bytes multiplied in float32, which the CPU can do for every target."""
        return replace(self, kernels=self.kernels.in_float32())

    def _table(self) -> Scheme:
        """The scheme of the token table: short floats need none of their own."""
        if self.kernels.weights != "float32":
            return Float(self.kernels)
        return AsStored() if self.precision in UNQUANTISED else Int8Rows()


FLOAT32 = Plan("fp32")


def is_kept(name: str, two_level: bool) -> bool:
    """Whether int4 keeps the decoder's matrix `name` in 8 bits.

    Keys and values are a twelfth of the weights and a sixth of the loss; in two levels all of attention, a quarter and
    a third: a short text pays for unpacking each matrix.
    """
    return name.endswith(tuple(f"self_attn.{each}_proj.weight" for each in ("qkvo" if two_level else "kv")))


def is_massive(statistics: InputStatistics) -> bool:
    """Whether one scale a token would be spent on few channels."""
    rms = float(np.sqrt(statistics.mean_square.mean()))
    return bool(statistics.largest.max() > MASSIVE_RATIO * max(rms, 1e-12))
