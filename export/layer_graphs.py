"""One layer at a time as a graph of its own: in float32 out of a checkpoint, or as a written package stores it.

Shapes as in export/decoder.py and export/vision.py.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.blocks import Parts, Tap, reshape, table_rows
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.decoder import DecoderLayer, LastToken, Lengths
from export.graph import Graph, Value
from export.vision import block, deepstack_merger, merger, patch_embedding, position_embedding
from quant.selection import FLOAT32, TOKEN_TABLE, Plan
from quant.statistics import Accumulator
from runtime.graphs.probe import products_saturate
from runtime.graphs.session import default_threads, open_session
from runtime.manifest import DECODER, VISION

GRAPH = "layer.onnx"
PROVIDERS = ("CPUExecutionProvider",)

Feeds = dict[str, np.ndarray]
Build = Callable[[Parts], None]


class Step:
    """An open layer and the matrices whose inputs it measures, none of a package."""

    def __init__(self, session: ort.InferenceSession, taps: list[Tap]):
        self.taps = taps
        self._session: ort.InferenceSession | None = session

    def run(self, feeds: Feeds, statistics: Accumulator | None = None, weight: float = 0) -> Feeds:
        """Run once → outputs by name; `statistics` are added to, `weight` is the sum of the tokens' weights."""
        assert self._session is not None, "the layer is closed"
        names = [each.name for each in self._session.get_outputs() if not each.name.startswith("present_")]
        outputs = dict(zip(names, self._session.run(names, feeds), strict=True))
        if statistics is not None:
            for number, tap in enumerate(self.taps):
                for name in tap.names:
                    statistics.add(name, outputs[f"squares:{number}"], outputs[f"largest:{number}"], weight)
        return outputs

    def close(self) -> None:
        """Let go of the session, whoever still holds the step: Windows deletes no mapped file."""
        self._session = None


@dataclass(frozen=True, eq=False)
class LayerGraphs:
    """The layers of a checkpoint, each open inside its `with` block only, with a file in `folder` meanwhile.

    Without `written` they are float32, their weights are copied to `folder` and their inputs measured. With it, the
    graphs of a package that stand in `folder` by name and the `plan` they were built with, they are what it holds;
    activations are float32 whatever the target.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    folder: Path
    plan: Plan = FLOAT32
    written: Mapping[str, Graph] = field(default_factory=dict)

    def token_rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the token table at int64 ids [n] → float32 [n, D]."""
        text = self.config.text
        shape = (text.vocab_size, text.hidden_size)
        if not self.written:
            table = self.checkpoint.tensor(TOKEN_TABLE, shape)
            return np.concatenate([table.rows(int(row), int(row) + 1) for row in ids])

        def build(parts: Parts) -> None:
            found = table_rows(parts, TOKEN_TABLE, shape, parts.graph.input("ids", "int64", ["N"]))
            parts.graph.output("next", found, "float32", ["N", text.hidden_size])

        with self._open(DECODER, build) as step:
            return step.run({"ids": ids})["next"]

    @contextmanager
    def patch_embedding(self) -> Iterator[Step]:
        """Patches and positions → hidden states."""
        config = self.config.vision
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2

        def build(parts: Parts) -> None:
            patches = parts.graph.input("patches", "float32", ["F", "P", width])
            hidden = parts.graph.op("Add", patch_embedding(parts, config, patches), position_embedding(parts, config))
            parts.graph.output("next", hidden, "float32", ["F", "P", config.hidden_size])

        with self._open(VISION, build) as step:
            yield step

    @contextmanager
    def vision_block(self, index: int) -> Iterator[Step]:
        """Hidden states → hidden states, and what goes to DeepStack after some blocks."""
        config = self.config.vision
        half = config.hidden_size // config.num_heads // 2

        def build(parts: Parts) -> None:
            hidden = parts.graph.input("hidden", "float32", ["F", "P", config.hidden_size])
            rotary = [parts.graph.input(f"rotary_{name}", "float32", ["F", "P", half]) for name in ("cos", "sin")]
            hidden = block(parts, config, index, hidden, rotary)
            if index in config.deepstack_visual_indexes:
                features = deepstack_merger(parts, config, config.deepstack_visual_indexes.index(index), hidden)
                parts.graph.output("deepstack", features, "float32", ["F*P/M", config.out_hidden_size])
            parts.graph.output("next", hidden, "float32", ["F", "P", config.hidden_size])

        with self._open(VISION, build) as step:
            yield step

    @contextmanager
    def merger(self) -> Iterator[Step]:
        """Hidden states → visual tokens."""
        config = self.config.vision

        def build(parts: Parts) -> None:
            hidden = parts.graph.input("hidden", "float32", ["F", "P", config.hidden_size])
            parts.graph.output("next", merger(parts, config, hidden), "float32", ["F*P/M", config.out_hidden_size])

        with self._open(VISION, build) as step:
            yield step

    @contextmanager
    def decoder_layer(self, index: int) -> Iterator[Step]:
        """Hidden states → hidden states; of a package's last layer the last token's alone, as the package has it."""

        def build(parts: Parts) -> None:
            hidden = self._decoder_layer(parts, index)
            parts.graph.output("next", hidden, "float32", ["B", "S", self.config.text.hidden_size])

        with self._open(DECODER, build) as step:
            yield step

    def pools(self, index: int) -> bool:
        """Whether decoder layer `index` gives the last token's state alone."""
        return bool(self.written) and index == self.config.text.num_hidden_layers - 1

    def _decoder_layer(self, parts: Parts, index: int) -> Value:
        text, graph, half = self.config.text, parts.graph, self.config.text.head_dim // 2
        hidden = graph.input("hidden", "float32", ["B", "S", text.hidden_size])
        rotary = (
            graph.input("rotary_cos", "float32", ["B", "S", half]),
            graph.input("rotary_sin", "float32", ["B", "S", half]),
        )
        if self.pools(index):
            lengths, last = Lengths(graph), LastToken(parts)
            return DecoderLayer(parts, text, index).last_token(hidden, rotary, lengths, last)
        if parts.taps is not None:
            parts.token_weight.append(graph.input("token_weight", "float32", ["S", 1]))
        return DecoderLayer(parts, text, index).every_token(hidden, rotary, Lengths(graph))

    @contextmanager
    def _open(self, home: str, build: Build) -> Iterator[Step]:
        """One layer's graph, written, opened, closed and removed again; `home` is the package's graph it is of."""
        lender = self.written.get(home)
        taps: list[Tap] = []
        graph = Graph(GRAPH, lender)
        plan = replace(self.plan, to_uint8=products_saturate())
        parts = Parts(graph, self.checkpoint, plan, taps=None if lender else taps)
        build(parts)
        for number, tap in enumerate(taps):
            _add_statistics(parts, number, tap)
        own = [GRAPH] if lender else [GRAPH, graph.data_name]
        try:
            if lender:
                graph.write_model(self.folder)
            else:
                graph.write(self.folder, lambda count: None)
            step = Step(open_session(self.folder / GRAPH, PROVIDERS, default_threads()), taps)
            try:
                yield step
            finally:
                step.close()
        finally:
            for name in own:
                (self.folder / name).unlink(missing_ok=True)


def _add_statistics(parts: Parts, number: int, tap: Tap) -> None:
    """Outputs squares:n and largest:n [K] of a matrix's input x [..., K]."""
    graph = parts.graph
    flat = reshape(graph, tap.value, (-1, tap.width))  # [tokens, K]
    first = graph.constant(np.array([0], np.int64))
    squares = graph.op("Mul", flat, flat)
    for weight in parts.token_weight:
        squares = graph.op("Mul", squares, weight)
    largest = graph.op("ReduceMax", graph.op("Abs", flat), first, keepdims=0)
    graph.output(f"squares:{number}", graph.op("ReduceSum", squares, first, keepdims=0), "float32", [tap.width])
    graph.output(f"largest:{number}", largest, "float32", [tap.width])
