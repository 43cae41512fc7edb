"""Runs a Llama graph and says how far it is from the float one: KL, cosine, centred cosine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from bench.llama import NAME, TABLE, Llama, LlamaConfig, LlamaGraph, SchemeFor, rotary
from quant.schemes import Float
from quant.statistics import Accumulator, InputStatistics
from runtime.graphs.session import create_session

LENGTH = 256  # tokens a sequence


@dataclass(frozen=True)
class Agreement:
    """Means over tokens against float32; `kl` in nats of the next-token distribution, the cosines of `hidden`.

    `median_kl` beside it: single tokens, mostly a text's second, can make up a third of the mean.
    """

    kl: float
    median_kl: float
    cosine: float
    centred_cosine: float


def token_ids(tokenizer: Tokenizer, half: int, num_sequences: int) -> np.ndarray:
    """int64 [num_sequences, LENGTH] from every second topic of Python's own help, starting with `half` (0 or 1)."""
    ids = [index for name in sorted(topics)[half::2] for index in tokenizer.encode(topics[name]).ids]
    # From all over the text, and not where quant's constants were tuned.
    starts = ((np.arange(num_sequences) + 0.25) / num_sequences * (len(ids) - LENGTH)).astype(int)
    return np.array([ids[start : start + LENGTH] for start in starts], np.int64)


class Running:
    """A session on the model file `path` with the inputs of LlamaGraph."""

    def __init__(self, config: LlamaConfig, path: Path):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = create_session(str(path), options)
        self._config = config

    def outputs(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Every output for ids [B, S], by name."""
        names = [output.name for output in self._session.get_outputs()]
        feeds = {"input_ids": ids, **rotary(self._config, *ids.shape)}
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """float32 [B · S, D] after the last norm, all sequences as one batch."""
        hidden = self.outputs(ids)["hidden"]
        return hidden.reshape(-1, hidden.shape[-1])


def hidden_states(
    llama: Llama, scheme_for: SchemeFor, importance: Mapping[str, np.ndarray], ids: np.ndarray
) -> np.ndarray:
    """Build the graph with these schemes, run ids [B, S] → float32 [B · S, D]."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        LlamaGraph(llama, scheme_for, importance, observed=False).graph.write(Path(folder), lambda _: None)
        return Running(llama.config, Path(folder) / NAME).hidden(ids)


def calibrate(llama: Llama, ids: np.ndarray) -> dict[str, InputStatistics]:
    """Statistics of each product's input by the first weight that reads it, sequence by sequence."""
    seen = Accumulator()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        LlamaGraph(llama, lambda _: Float(), {}, observed=True).graph.write(Path(folder), lambda _: None)
        running = Running(llama.config, Path(folder) / NAME)
        for sequence in ids:
            for name, x in running.outputs(sequence[None]).items():
                rows = x.reshape(-1, x.shape[-1])
                if name != "hidden":
                    squares, largest = np.square(rows).sum(axis=0), np.abs(rows).max(axis=0)
                    seen.add(name.removeprefix("input:"), squares, largest, len(rows))
    return seen.statistics()


class Judge:
    """Holds the float answers for ids [B, S]."""

    def __init__(self, llama: Llama, ids: np.ndarray):
        self.ids, self._table = ids, llama.weights[TABLE]
        self._float = hidden_states(llama, lambda _: Float(), {}, ids)

    def agreement(self, hidden: np.ndarray) -> Agreement:
        """How far `hidden` [B · S, D] is from the float32 one."""
        starts = range(0, len(hidden), LENGTH)  # one sequence's logits at a time
        kl = np.concatenate(
            [self._kl(self._float[start : start + LENGTH], hidden[start : start + LENGTH]) for start in starts]
        )
        centre = self._float.mean(axis=0)
        cosine, centred = cosines(self._float, hidden), cosines(self._float - centre, hidden - centre)
        return Agreement(float(kl.mean()), float(np.median(kl)), float(cosine.mean()), float(centred.mean()))

    def _kl(self, expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
        expected_log, actual_log = (log_softmax(hidden @ self._table.T) for hidden in (expected, actual))
        return np.asarray((np.exp(expected_log) * (expected_log - actual_log)).sum(axis=1, dtype=np.float64))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row."""
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
