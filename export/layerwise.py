"""The float model run layer by layer on onnxruntime with streamed weights: never more than one layer in memory.

What goes into every matrix is measured on the way (calibration), and the pooled output is what float32 gives.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.blocks import Parts, Tap, reshape
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from export.decoder import PREFIX, DecoderLayer, Lengths
from export.graph import Graph
from export.vision import block, deepstack_merger, merger, patch_embedding, position_embedding
from quant.selection import TOKEN_TABLE, Plan
from quant.statistics import Accumulator
from runtime.encode import TokenSequence
from runtime.image import Visual
from runtime.model import VisualFeatures
from runtime.positions import PatchPositions, Rotary, patch_positions, text_rotary, token_positions
from runtime.session import default_threads, open_session

GRAPH = "layer.onnx"
PROVIDERS = ("CPUExecutionProvider",)

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt: token sequence, its visuals, and how much each token counts in the statistics, float32 [S]."""

    sequence: TokenSequence
    visuals: tuple[Visual, ...]
    token_weight: np.ndarray


def num_steps(config: ModelConfig) -> int:
    """How many steps a run reports: each layer, the patches and the merger."""
    return config.vision.depth + 2 + config.text.num_hidden_layers


@dataclass(frozen=True, eq=False)
class Layerwise:
    """A checkpoint to run in `scratch`, a folder for one layer's float32 weights; `advance(1)` is called a step.

    `hidden` collects what the package calls `layers.3:hidden`, `blocks.3:hidden` of the last token of every sample
    and the last patch of every visual, float32 [1, D] each.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    scratch: Path
    advance: Callable[[int], object]
    hidden: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def run(self, samples: Sequence[Sample], statistics: Accumulator) -> np.ndarray:
        """Every sample through the whole model → final-norm state of its last token, float32 [N, D]."""
        text = self.config.text
        features = self._vision([visual for sample in samples for visual in sample.visuals], statistics)
        states: list[np.ndarray] = []
        levels: list[np.ndarray] = []
        rotaries: list[Rotary] = []
        done = 0
        for sample in samples:
            mine = features[done : done + len(sample.visuals)]
            done += len(mine)
            states.append(self._token_states(sample.sequence, mine))
            levels.append(np.concatenate([each.deepstack for each in mine], axis=1) if mine else np.empty((0, 0, 0)))
            positions = token_positions(sample.sequence.is_visual, sample.sequence.blocks)
            rotaries.append(text_rotary(positions, text.rope_theta, text.mrope_section))
        for index in range(text.num_hidden_layers):
            with self._step(self._decoder_layer(index)) as step:
                for position, sample in enumerate(samples):
                    feeds = self._decoder_feeds(index, states[position], rotaries[position], sample.token_weight)
                    state = step.run(feeds, statistics, float(sample.token_weight.sum()))["next"]
                    if index < len(levels[position]):
                        state[0, sample.sequence.is_visual] += levels[position][index]
                    states[position] = state
                    self._keep_last(f"layers.{index}:hidden", state)
        return self._final_norm(np.concatenate([state[:, -1] for state in states]))

    def _vision(self, visuals: Sequence[Visual], statistics: Accumulator) -> list[VisualFeatures]:
        """The features of every visual; mirrors vision.onnx one block at a time."""
        config = self.config.vision
        if not visuals:
            self.advance(config.depth + 2)
            return []
        side, head_dim = int(config.num_position_embeddings**0.5), config.hidden_size // config.num_heads
        places = [patch_positions(each.grid[1:], config.spatial_merge_size, head_dim, side) for each in visuals]
        states: list[np.ndarray] = []
        levels: list[list[np.ndarray]] = [[] for _ in visuals]
        with self._step(self._patch_embedding) as step:
            for visual, place in zip(visuals, places, strict=True):
                feeds = {"patches": visual.patches, "position_index": place.index, "position_weight": place.weight}
                states.append(step.run(feeds, statistics, visual.patches.shape[0] * visual.patches.shape[1])["next"])
        for index in range(config.depth):
            with self._step(self._vision_block(index)) as step:
                for position, place in enumerate(places):
                    outputs = step.run(_vision_feeds(states[position], place), statistics, _tokens(states[position]))
                    states[position] = outputs["next"]
                    self._keep_last(f"blocks.{index}:hidden", outputs["next"])
                    levels[position] += [outputs["deepstack"]] if "deepstack" in outputs else []
        with self._step(self._merger) as step:
            tokens = [step.run({"hidden": state}, statistics, _tokens(state))["next"] for state in states]
        return [VisualFeatures(each, np.stack(level)) for each, level in zip(tokens, levels, strict=True)]

    def _keep_last(self, name: str, state: np.ndarray) -> None:
        self.hidden.setdefault(name, []).append(state[-1, -1:].copy())

    def _patch_embedding(self, parts: Parts) -> None:
        config = self.config.vision
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        patches = parts.graph.input("patches", "float32", ["F", "P", width])
        hidden = parts.graph.op("Add", patch_embedding(parts, config, patches), position_embedding(parts, config))
        parts.graph.output("next", hidden, "float32", ["F", "P", config.hidden_size])

    def _vision_block(self, index: int) -> Callable[[Parts], None]:
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

        return build

    def _merger(self, parts: Parts) -> None:
        config = self.config.vision
        hidden = parts.graph.input("hidden", "float32", ["F", "P", config.hidden_size])
        parts.graph.output("next", merger(parts, config, hidden), "float32", ["F*P/M", config.out_hidden_size])

    def _decoder_layer(self, index: int) -> Callable[[Parts], None]:
        text = self.config.text

        def build(parts: Parts) -> None:
            graph, half = parts.graph, text.head_dim // 2
            hidden = graph.input("hidden", "float32", ["B", "S", text.hidden_size])
            rotary = tuple(graph.input(f"rotary_{name}", "float32", ["B", "S", half]) for name in ("cos", "sin"))
            parts.token_weight.append(graph.input("token_weight", "float32", ["S", 1]))
            layer = DecoderLayer(parts, text, index)
            hidden = layer.every_token(hidden, (rotary[0], rotary[1]), Lengths(graph))
            graph.output("next", hidden, "float32", ["B", "S", text.hidden_size])

        return build

    def _decoder_feeds(self, index: int, state: np.ndarray, rotary: Rotary, token_weight: np.ndarray) -> Feeds:
        text, length = self.config.text, state.shape[1]
        past = np.zeros((1, text.num_key_value_heads, 0, text.head_dim), np.float32)
        return {
            "hidden": state,
            "rotary_cos": rotary.cos[None],
            "rotary_sin": rotary.sin[None],
            "token_weight": token_weight[:, None],
            "query_lengths": np.array([length], np.int32),
            "last_position": np.array([length - 1], np.int32),
            "capacity": np.array(length, np.int32),
            f"past_key.{index}": past,
            f"past_value.{index}": past,
        }

    def _token_states(self, sequence: TokenSequence, features: Sequence[VisualFeatures]) -> np.ndarray:
        """Rows of the token table with the visual tokens in their places, float32 [1, S, D]."""
        text = self.config.text
        table = self.checkpoint.tensor(TOKEN_TABLE, (text.vocab_size, text.hidden_size))
        ids, inverse = np.unique(sequence.input_ids, return_inverse=True)
        states = np.concatenate([table.rows(int(row), int(row) + 1) for row in ids])[inverse]
        if features:
            states[sequence.is_visual] = np.concatenate([each.tokens for each in features])
        return states[None]

    def _final_norm(self, states: np.ndarray) -> np.ndarray:
        """RMSNorm of [N, D] with the model's last weight; mirrors Qwen3VLTextRMSNorm."""
        text = self.config.text
        weight = self.checkpoint.tensor(f"{PREFIX}.norm.weight", (text.hidden_size,)).read()
        mean_square = np.mean(np.square(states), axis=-1, keepdims=True, dtype=np.float32)
        normed: np.ndarray = states / np.sqrt(mean_square + np.float32(text.rms_norm_eps)) * weight
        return normed

    @contextmanager
    def _step(self, build: Callable[[Parts], None]) -> Iterator["Step"]:
        """One layer's graph, written, opened, and removed again."""
        parts = Parts(Graph(GRAPH), self.checkpoint, Plan("fp32"), taps=[])
        build(parts)
        assert parts.taps is not None
        for number, tap in enumerate(parts.taps):
            _add_statistics(parts, number, tap)
        parts.graph.write(self.scratch, lambda count: None)
        try:
            yield Step(open_session(self.scratch / GRAPH, PROVIDERS, default_threads()), parts.taps)
        finally:
            for path in (GRAPH, parts.graph.data_name):
                (self.scratch / path).unlink(missing_ok=True)
        self.advance(1)


@dataclass(frozen=True, eq=False)
class Step:
    """An open layer and the matrices whose inputs it measures."""

    session: ort.InferenceSession
    taps: Sequence[Tap]

    def run(self, feeds: Feeds, statistics: Accumulator, weight: float) -> Feeds:
        """Run once; `weight` is the sum of the tokens' weights. Outputs by name, statistics added."""
        names = [each.name for each in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        for number, tap in enumerate(self.taps):
            for name in tap.names:
                statistics.add(name, outputs[f"squares:{number}"], outputs[f"largest:{number}"], weight)
        return outputs


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


def _vision_feeds(state: np.ndarray, place: PatchPositions) -> Feeds:
    frames = (len(state), *place.rotary.cos.shape)
    return {
        "hidden": state,
        "rotary_cos": np.ascontiguousarray(np.broadcast_to(place.rotary.cos, frames)),
        "rotary_sin": np.ascontiguousarray(np.broadcast_to(place.rotary.sin, frames)),
    }


def _tokens(state: np.ndarray) -> int:
    return int(state.shape[0] * state.shape[1])
