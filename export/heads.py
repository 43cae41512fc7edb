"""What the pooled hidden state becomes: the embedding itself, or the yes/no logit of the reranker."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from export.blocks import Parts
from export.checkpoint import Checkpoint
from export.graph import CONTRIB, Value
from quant.selection import TOKEN_TABLE
from runtime.manifest import TextConfig

LM_HEAD = "lm_head.weight"


class Head(Protocol):
    """Turns the pooled state [B,D] into a graph output."""

    def emit(self, parts: Parts, pooled: Value) -> None:
        """Add nodes and declare the output."""

    def apply(self, checkpoint: Checkpoint, states: np.ndarray) -> np.ndarray:
        """The same in numpy, for float32 states [N, D]."""


@dataclass(frozen=True)
class EmbeddingHead:
    """`embedding` [B,D]: the final-norm state of the last token, not yet normalised."""

    hidden_size: int

    def emit(self, parts: Parts, pooled: Value) -> None:
        """Declare the output."""
        parts.checkpoint.ignore(LM_HEAD, "an embedding does not predict tokens")
        parts.graph.output("embedding", parts.graph.op("Identity", pooled), "float32", ["B", self.hidden_size])

    def apply(self, checkpoint: Checkpoint, states: np.ndarray) -> np.ndarray:
        """The states themselves, [N, D]."""
        return states


@dataclass(frozen=True)
class YesNoHead:
    """`logit` [B] = (W_yes − W_no) · h, one vector; mirrors the reference's get_binary_linear in float32."""

    config: TextConfig
    yes: int
    no: int
    tied: bool

    def emit(self, parts: Parts, pooled: Value) -> None:
        """One product with the score row."""
        if self.tied:
            parts.checkpoint.ignore(LM_HEAD, "config.json ties the head to the token table")
        row = self._score_row(parts.checkpoint)
        weight = parts.graph.weight("score.weight", "float32", row.shape, lambda: iter([row]))
        logit = parts.graph.op("FusedMatMul", pooled, weight, domain=CONTRIB, transB=1)  # [B,1]
        squeezed = parts.graph.op("Squeeze", logit, parts.graph.constant(np.array([1], np.int64)))
        parts.graph.output("logit", squeezed, "float32", ["B"])

    def apply(self, checkpoint: Checkpoint, states: np.ndarray) -> np.ndarray:
        """Logits [N]."""
        logits: np.ndarray = states @ self._score_row(checkpoint)[0]
        return logits

    def _score_row(self, checkpoint: Checkpoint) -> np.ndarray:
        """W_yes − W_no, float32 [1, D]: raised to float32 first, as the reference's float32 load does."""
        name = TOKEN_TABLE if self.tied else LM_HEAD
        table = checkpoint.tensor(name, (self.config.vocab_size, self.config.hidden_size))
        row: np.ndarray = table.rows(self.yes, self.yes + 1) - table.rows(self.no, self.no + 1)
        return row
