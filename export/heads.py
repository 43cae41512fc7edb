"""What the pooled hidden state becomes: the embedding itself, or the yes/no logit of the reranker."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from export.blocks import Parts
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.graph import CONTRIB, Value
from quant.selection import TOKEN_TABLE
from runtime.errors import CheckpointError

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

    config: ModelConfig
    yes: int
    no: int

    def emit(self, parts: Parts, pooled: Value) -> None:
        """One product with the score row."""
        name = self._matrix_name(parts.checkpoint)
        if name == TOKEN_TABLE:
            parts.checkpoint.ignore(LM_HEAD, "its rows for yes and no are those of the token table")
        row = self._score_row(parts.checkpoint, name)
        weight = parts.graph.weight("score.weight", "float32", row.shape, lambda: iter([row]))
        logit = parts.graph.op("FusedMatMul", pooled, weight, domain=CONTRIB, transB=1)  # [B,1]
        squeezed = parts.graph.op("Squeeze", logit, parts.graph.constant(np.array([1], np.int64)))
        parts.graph.output("logit", squeezed, "float32", ["B"])

    def apply(self, checkpoint: Checkpoint, states: np.ndarray) -> np.ndarray:
        """Logits [N]."""
        logits: np.ndarray = states @ self._score_row(checkpoint, self._matrix_name(checkpoint))[0]
        return logits

    def _matrix_name(self, checkpoint: Checkpoint) -> str:
        """The matrix that predicts tokens; CheckpointError where versions of transformers would take different ones.

        4.57 takes the token table where text_config ties the head to it, 5 only where lm_head.weight is not there
        or the same.
        """
        if LM_HEAD not in checkpoint.names:
            return TOKEN_TABLE if self.config.tie_word_embeddings else LM_HEAD
        if not self.config.text_tie_word_embeddings:
            return LM_HEAD
        for token in (self.yes, self.no):
            if not np.array_equal(self._row(checkpoint, LM_HEAD, token), self._row(checkpoint, TOKEN_TABLE, token)):
                raise CheckpointError(
                    f"{checkpoint.folder} has rows for yes and no in {LM_HEAD} that differ from the token table's, "
                    "to which text_config ties them, so that transformers 4.57 scores with the table and "
                    f"transformers 5 with {LM_HEAD}: in config.json set tie_word_embeddings to false, inside and "
                    f"outside of text_config, to score with {LM_HEAD}, or remove that tensor."
                )
        return TOKEN_TABLE

    def _score_row(self, checkpoint: Checkpoint, name: str) -> np.ndarray:
        """W_yes − W_no, float32 [1, D]: raised to float32 first, as the reference's float32 load does."""
        row: np.ndarray = self._row(checkpoint, name, self.yes) - self._row(checkpoint, name, self.no)
        return row

    def _row(self, checkpoint: Checkpoint, name: str, token: int) -> np.ndarray:
        """One token's row of a matrix, float32 [1, D]."""
        table = checkpoint.tensor(name, (self.config.text.vocab_size, self.config.text.hidden_size))
        return table.rows(token, token + 1)
