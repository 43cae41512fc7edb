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

UNQUANTISED = ("fp32", "bf16")
TOKEN_TABLE = "model.language_model.embed_tokens.weight"
DECODER, VISION = "model.language_model.", "model.visual."
KEPT_IN_FLOAT = ("model.visual.patch_embed.",)
INT8_BLOCK = 128
INT4_BLOCKS = (32, 64, 128)
# Largest |x| over the rms of the whole input: above it, one scale a token leaves the other channels no levels.
MASSIVE_RATIO = 200.0


@dataclass(frozen=True, eq=False)
class Plan:
    """How the matrices of one package are stored.

    `massive`: matrices whose input has massive activations; `folds` and `importance` (mean square of each input) by
    name, empty without calibration.
    """

    precision: str
    int4_block: int = INT4_BLOCKS[0]
    kernels: Kernels = CPU
    massive: frozenset[str] = frozenset()
    folds: Mapping[str, Fold] = field(default_factory=dict)
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in self.kernels.precisions:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(self.kernels.precisions)}")
        if self.int4_block not in INT4_BLOCKS:
            raise ValueError(f"int4 block {self.int4_block} is not one of {INT4_BLOCKS}")

    def scheme_for(self, name: str) -> Scheme:
        """The scheme of the matrix called `name` (its checkpoint name, with a suffix for a part of a tensor)."""
        if name == TOKEN_TABLE:
            return self._table()
        if self.precision in UNQUANTISED or name.startswith(KEPT_IN_FLOAT):
            return Float(self.kernels)
        if self.precision == "int4" and name.startswith(DECODER):
            return Blockwise(4, self.int4_block, symmetric=False, kernels=self.kernels)
        if self.kernels.per_token and self.precision != "int8-portable" and name not in self.massive:
            return PerToken()
        return Blockwise(8, INT8_BLOCK, symmetric=True, kernels=self.kernels)

    def in_float32(self) -> "Plan":
        """The same stored bytes multiplied in float32, which the CPU can do for every target."""
        return replace(self, kernels=self.kernels.in_float32())

    def _table(self) -> Scheme:
        """The scheme of the token table: short floats need none of their own."""
        if self.kernels.weights != "float32":
            return Float(self.kernels)
        return AsStored() if self.precision in UNQUANTISED else Int8Rows()


FLOAT32 = Plan("fp32")


def is_massive(statistics: InputStatistics) -> bool:
    """Whether one scale a token would be spent on few channels."""
    rms = float(np.sqrt(statistics.mean_square.mean()))
    return bool(statistics.largest.max() > MASSIVE_RATIO * max(rms, 1e-12))
