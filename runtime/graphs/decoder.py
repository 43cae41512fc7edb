"""The language backbone, run: prompts, or parts of prompts after a past, to pooled outputs.

Shapes: B rows, S new tokens, P tokens of the past, C its capacity, D hidden, h head_dim, V visual tokens, L DeepStack.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.graphs.graph import Graph
from runtime.graphs.past import KINDS, Past, empty_past
from runtime.graphs.target import TARGETS
from runtime.graphs.vision import VisualFeatures, joined
from runtime.manifest import Manifest
from runtime.prompts.encode import TokenSequence
from runtime.prompts.positions import Rotary, text_rotary, token_positions

OUTPUTS = {"embedding": "embedding", "reranker": "logit"}


@dataclass(frozen=True, eq=False)
class Prompt:
    """A token sequence and the features of its visuals, in their order."""

    sequence: TokenSequence
    features: tuple[VisualFeatures, ...] = ()

    def __len__(self) -> int:
        return len(self.sequence.input_ids)

    @property
    def positions(self) -> np.ndarray:
        """(T, H, W) of every token, int64 [3, S]."""
        # Not a cached_property, whose lock is one for all prompts in Python 3.11, and may be held when a process forks.
        return token_positions(self.sequence.is_visual, self.sequence.blocks)

    @property
    def visual_starts(self) -> list[int]:
        """The first token of each visual."""
        places = np.flatnonzero(self.sequence.is_visual)
        stops = np.cumsum([len(each.tokens) for each in self.features], dtype=np.int64)
        return [int(places[stop - len(each.tokens)]) for stop, each in zip(stops, self.features, strict=True)]


@dataclass(frozen=True, eq=False)
class Span:
    """Tokens `start` … `stop` - 1 of a prompt."""

    prompt: Prompt
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def input_ids(self) -> np.ndarray:
        """int64 [S]."""
        return self.prompt.sequence.input_ids[self.start : self.stop]

    @property
    def is_visual(self) -> np.ndarray:
        """bool [S]."""
        return self.prompt.sequence.is_visual[self.start : self.stop]

    @property
    def positions(self) -> np.ndarray:
        """int64 [3, S]."""
        return self.prompt.positions[:, self.start : self.stop]

    @property
    def features(self) -> list[VisualFeatures]:
        """Those of the span's own visual tokens, the first and the last perhaps in part."""
        before = int(self.prompt.sequence.is_visual[: self.start].sum())
        stop = before + int(self.is_visual.sum())
        parts, seen = [], 0
        for each in self.prompt.features:
            first, last = max(before - seen, 0), min(stop - seen, len(each.tokens))
            if first < last:
                parts.append(VisualFeatures(each.tokens[first:last], each.deepstack[:, first:last]))
            seen += len(each.tokens)
        return parts


class Decoder:
    """decoder.onnx of one package (export/decoder.py says what each input is). Runs may overlap in several threads."""

    def __init__(self, graph: Graph, manifest: Manifest):
        self._graph, self._manifest = graph, manifest
        self._output = OUTPUTS[manifest.task]
        self.target = TARGETS[manifest.target]

    def pooled(self, batch: Sequence[Span], past: Past | None = None) -> np.ndarray:
        """`embedding` float32 [B, D] or `logit` float32 [B] of spans that end their prompts.

        With a past of P tokens each span starts at P. The past's own tokens stay, so it can be used again.
        """
        feeds = self._feeds(batch, past)
        if past is None:
            return self._graph.run([self._output], feeds)[0]
        return self._graph.run([self._output], feeds, _presents(past))[0]

    def empty_past(self, capacity: int) -> Past:
        """A past of one row to extend."""
        return empty_past(self._manifest.text, 1, capacity)

    def extend(self, span: Span, past: Past) -> Past:
        """The past of one row with `span` behind it; the buffers of `past` are written to and shared."""
        last = self._manifest.text.num_hidden_layers - 1
        names = [f"present_{kind}.{last}" for kind in KINDS]
        # Padding, and on CUDA the rest of the capacity, is left at the end of the last layer's present.
        present = [
            np.ascontiguousarray(each[:, :, : span.stop])
            for each in self._graph.run(names, self._feeds([span], past), _presents(past))
        ]
        return Past(span.stop, past.buffers, dict(zip(KINDS, present, strict=True)))

    def _feeds(self, batch: Sequence[Span], past: Past | None) -> dict[str, np.ndarray]:
        text = self._manifest.text
        lengths = np.array([len(span) for span in batch], np.int32)
        computed = np.array([self.target.padded(len(span)) for span in batch], np.int32)
        longest = int(computed.max())
        before = 0 if past is None else past.length
        rotary = _rotary([span.positions for span in batch], longest, text.rope_theta, text.mrope_section)
        is_visual = _padded([span.is_visual for span in batch], longest, False)
        levels = len(self._manifest.vision.deepstack_visual_indexes)
        features = joined([each for span in batch for each in span.features], levels, text.hidden_size)
        valid = np.arange(longest) < lengths[:, None]
        seen = np.ones((len(batch), before), np.bool_)
        feeds = {
            "input_ids": _padded([span.input_ids for span in batch], longest, self._manifest.tokens.pad),
            "visual_tokens": features.tokens,
            "visual_index": np.argwhere(is_visual),
            "deepstack": features.deepstack,
            "rotary_cos": rotary.cos,
            "rotary_sin": rotary.sin,
            # With the padding that makes a row even: attention, too, calculates a row left over in another order.
            "query_lengths": computed,
            "last_position": before + computed - 1,
            "capacity": np.array(longest if past is None else past.capacity, np.int32),
            "last_index": (lengths - 1).astype(np.int64).reshape(-1, 1, 1),
            "token_mask": valid[:, :, None],
            "last_mask": np.concatenate([seen, valid], axis=1)[:, None, None, :],
        }
        return feeds | self._past_feeds(len(batch), past)

    def _past_feeds(self, rows: int, past: Past | None) -> dict[str, np.ndarray]:
        text = self._manifest.text
        last = text.num_hidden_layers - 1
        if past is None:
            empty = np.zeros((rows, text.num_key_value_heads, 0, text.head_dim), np.float32)
            return {f"past_{kind}.{layer}": empty for kind in KINDS for layer in range(last + 1)}
        feeds = {f"past_{kind}.{layer}": past.buffers[kind][layer] for kind in KINDS for layer in range(last)}
        room = self.target.spare_last
        return feeds | {f"past_{kind}.{last}": past.last_with_room(kind) if room else past.last[kind] for kind in KINDS}


def _presents(past: Past) -> dict[str, np.ndarray]:
    """Where the presents go: onto the past itself."""
    return {f"present_{kind}.{layer}": array for kind in KINDS for layer, array in enumerate(past.buffers[kind])}


def _rotary(positions: Sequence[np.ndarray], longest: int, theta: float, section: Sequence[int]) -> Rotary:
    """Angles [B, longest, h/2] of positions [3, S] each; those of padding are of position 0."""
    padded = np.stack([np.pad(each, [(0, 0), (0, longest - each.shape[1])]) for each in positions], axis=1)
    return text_rotary(padded, theta, section)


def _padded(rows: Sequence[np.ndarray], longest: int, fill: float) -> np.ndarray:
    """Arrays [S] of different lengths as one [B, longest], padded on the right with `fill`."""
    out = np.full((len(rows), longest), fill, rows[0].dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
