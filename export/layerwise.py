"""The model run layer by layer on onnxruntime: never more than one layer in memory, of a checkpoint or a package.

What goes into every float matrix is measured on the way (calibration); the pooled output is what the model gives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.config import ModelConfig
from export.decoder import PREFIX
from export.layer_graphs import Feeds, LayerGraphs, Step
from quant.statistics import Accumulator
from runtime.graphs.vision import VisualFeatures
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence
from runtime.prompts.positions import PatchPositions, Rotary, patch_positions, text_rotary, token_positions


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt: token sequence, its visuals, and how much each token counts in the statistics, float32 [S].

    One that is not `measured` gives its result and nothing else.
    """

    sequence: TokenSequence
    visuals: tuple[Visual, ...]
    token_weight: np.ndarray
    measured: bool = True


def num_steps(config: ModelConfig) -> int:
    """How many steps a run reports: each layer, the patches and the merger."""
    return config.vision.depth + 2 + config.text.num_hidden_layers


@dataclass(frozen=True, eq=False)
class Layerwise:
    """A model to run once; `advance(1)` is called a step.

    `statistics` are those of what goes into the float matrices. `hidden` collects what the package calls
    `layers.3:hidden`, `blocks.3:hidden` of the last token of every measured sample and the last patch of each of its
    visuals, float32 [1, D] each.
    """

    graphs: LayerGraphs
    advance: Callable[[int], object]
    statistics: Accumulator = field(default_factory=Accumulator)
    hidden: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def run(self, samples: Sequence[Sample]) -> np.ndarray:
        """Every sample through the whole model → final-norm state of its last token, float32 [N, D]."""
        text = self.graphs.config.text
        features = self._vision([(visual, sample.measured) for sample in samples for visual in sample.visuals])
        states = self._token_states(samples, features)
        levels: list[np.ndarray] = []
        rotaries: list[Rotary] = []
        for sample in samples:
            mine, features = features[: len(sample.visuals)], features[len(sample.visuals) :]
            levels.append(np.concatenate([each.deepstack for each in mine], axis=1) if mine else np.empty((0, 0, 0)))
            positions = token_positions(sample.sequence.is_visual, sample.sequence.blocks)
            rotaries.append(text_rotary(positions, text.rope_theta, text.mrope_section))
        for index in range(text.num_hidden_layers):
            with self.graphs.decoder_layer(index) as step:
                for position, sample in enumerate(samples):
                    feeds = self._decoder_feeds(index, states[position], rotaries[position], sample.token_weight)
                    statistics = self.statistics if sample.measured else None
                    state = step.run(feeds, statistics, float(sample.token_weight.sum()))["next"]
                    state = state[:, : len(sample.token_weight)]
                    if index < len(levels[position]):
                        state[0, sample.sequence.is_visual] += levels[position][index]
                    states[position] = state
                    if sample.measured:
                        self._keep_last(f"layers.{index}:hidden", state)
            self.advance(1)
        return self._final_norm(np.concatenate([state[:, -1] for state in states]))

    def _vision(self, seen: Sequence[tuple[Visual, bool]]) -> list[VisualFeatures]:
        """The features of every visual, which may be measured; mirrors vision.onnx one block at a time."""
        config = self.graphs.config.vision
        if not seen:
            self.advance(config.depth + 2)
            return []
        visuals, measured = zip(*seen, strict=True)
        side, head_dim = int(config.num_position_embeddings**0.5), config.hidden_size // config.num_heads
        places = [patch_positions(each.grid[1:], config.spatial_merge_size, head_dim, side) for each in visuals]
        states: list[np.ndarray] = []
        levels: list[list[np.ndarray]] = [[] for _ in visuals]
        with self.graphs.patch_embedding() as step:
            for visual, place, counts in zip(visuals, places, measured, strict=True):
                feeds = {"patches": visual.patches, "position_index": place.index, "position_weight": place.weight}
                states.append(self._run(step, feeds, visual.patches, counts)["next"])
        self.advance(1)
        for index in range(config.depth):
            with self.graphs.vision_block(index) as step:
                for position, (place, counts) in enumerate(zip(places, measured, strict=True)):
                    outputs = self._run(step, _vision_feeds(states[position], place), states[position], counts)
                    states[position] = outputs["next"]
                    if counts:
                        self._keep_last(f"blocks.{index}:hidden", outputs["next"])
                    levels[position] += [outputs["deepstack"]] if "deepstack" in outputs else []
            self.advance(1)
        with self.graphs.merger() as step:
            tokens = [
                self._run(step, {"hidden": state}, state, counts)["next"]
                for state, counts in zip(states, measured, strict=True)
            ]
        self.advance(1)
        return [VisualFeatures(each, np.stack(level)) for each, level in zip(tokens, levels, strict=True)]

    def _run(self, step: Step, feeds: Feeds, patches: np.ndarray, measured: bool) -> Feeds:
        """One visual; where it is measured each of its patches [F, P, ...] has a weight of 1."""
        return step.run(feeds, self.statistics if measured else None, patches.shape[0] * patches.shape[1])

    def _keep_last(self, name: str, state: np.ndarray) -> None:
        self.hidden.setdefault(name, []).append(state[-1, -1:].copy())

    def _decoder_feeds(self, index: int, state: np.ndarray, rotary: Rotary, token_weight: np.ndarray) -> Feeds:
        text, length = self.graphs.config.text, state.shape[1]
        past = np.zeros((1, text.num_key_value_heads, 0, text.head_dim), np.float32)
        # A package takes an even number of tokens; what is measured must not see padding.
        padding = length % 2 if self.graphs.written else 0
        valid = np.arange(length + padding) < length
        hidden, cos, sin = (
            np.pad(each, [(0, 0), (0, padding), (0, 0)]) for each in (state, rotary.cos[None], rotary.sin[None])
        )
        feeds = {
            "hidden": hidden,
            "rotary_cos": cos,
            "rotary_sin": sin,
            f"past_key.{index}": past,
            f"past_value.{index}": past,
        }
        if self.graphs.pools(index):
            feeds["last_index"] = np.array([[[length - 1]]], np.int64)
            feeds["token_mask"] = valid.reshape(1, -1, 1)
            feeds["last_mask"] = valid.reshape(1, 1, 1, -1)
        feeds["query_lengths"] = np.array([len(valid)], np.int32)  # as runtime.graphs.decoder has it
        feeds["last_position"] = np.array([len(valid) - 1], np.int32)
        feeds["capacity"] = np.array(len(valid), np.int32)
        return feeds | ({} if self.graphs.written else {"token_weight": token_weight[:, None]})

    def _token_states(self, samples: Sequence[Sample], features: Sequence[VisualFeatures]) -> list[np.ndarray]:
        """Rows of the token table with the visual tokens in their places, float32 [1, S, D] a sample."""
        ids, inverse = np.unique(np.concatenate([sample.sequence.input_ids for sample in samples]), return_inverse=True)
        states = self.graphs.token_rows(ids)[inverse]
        if features:
            is_visual = np.concatenate([sample.sequence.is_visual for sample in samples])
            states[is_visual] = np.concatenate([each.tokens for each in features])
        ends = np.cumsum([len(sample.sequence.input_ids) for sample in samples])
        return [part[None] for part in np.split(states, ends[:-1])]

    def _final_norm(self, states: np.ndarray) -> np.ndarray:
        """RMSNorm of [N, D] with the model's last weight; mirrors Qwen3VLTextRMSNorm."""
        text = self.graphs.config.text
        weight = self.graphs.checkpoint.tensor(f"{PREFIX}.norm.weight", (text.hidden_size,)).read()
        mean_square = np.mean(np.square(states), axis=-1, keepdims=True, dtype=np.float32)
        normed: np.ndarray = states / np.sqrt(mean_square + np.float32(text.rms_norm_eps)) * weight
        return normed


def _vision_feeds(state: np.ndarray, place: PatchPositions) -> Feeds:
    frames = (len(state), *place.rotary.cos.shape)
    return {
        "hidden": state,
        "rotary_cos": np.ascontiguousarray(np.broadcast_to(place.rotary.cos, frames)),
        "rotary_sin": np.ascontiguousarray(np.broadcast_to(place.rotary.sin, frames)),
    }
