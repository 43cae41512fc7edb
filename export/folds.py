"""Where the model allows scales to be folded, and the plan that calibration leads to.

Each place has producers whose rows give a factor away and consumers whose columns take it back, with nothing between
them that would notice: a norm before products, up before down (the gate multiplies), v before o (attention averages).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from export.blocks import RowRange
from export.checkpoint import Checkpoint
from export.config import ModelConfig
from quant.fold import (
    Fold,
    awq_scales,
    is_four_bit,
    largest_by_column,
    rounding_error,
    shared_scales,
    smoothing_scales,
)
from quant.selection import Plan, is_massive
from quant.statistics import InputStatistics

TEXT, VISION = "model.language_model.layers", "model.visual"
SAMPLED_ROWS = 256


@dataclass(frozen=True, eq=False)
class Place:
    """One fold. `producer_of[k]` is the producer's row that feeds the consumers' column k."""

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    producer_of: np.ndarray


def places(config: ModelConfig) -> Iterator[Place]:
    """All places, those inside a block before the norm in front of it."""
    for index in range(config.text.num_hidden_layers):
        yield from _decoder_places(config, index)
    for index in range(config.vision.depth):
        yield from _vision_places(config, index)
    size, group = config.vision.hidden_size, config.vision.spatial_merge_size**2
    # The merger's norm comes before the shuffle: one weight feeds the same channel of every patch of a token.
    yield Place(
        _norm(f"{VISION}.merger.norm"), (f"{VISION}.merger.linear_fc1.weight",), np.tile(np.arange(size), group)
    )
    for position in range(len(config.vision.deepstack_visual_indexes)):
        prefix = f"{VISION}.deepstack_merger_list.{position}"
        yield Place(_norm(f"{prefix}.norm"), (f"{prefix}.linear_fc1.weight",), np.arange(size * group))


def make_plan(
    plan: Plan, checkpoint: Checkpoint, config: ModelConfig, statistics: Mapping[str, InputStatistics]
) -> Plan:
    """`plan` with folds, importance and massive inputs out of `statistics`; float32 plans stay as they are."""
    folds: dict[str, Fold] = {}
    seen = dict(statistics)
    for place in places(config):
        if not all(name in seen for name in place.consumers):
            continue  # no picture among the samples: the vision encoder was not measured
        matrices = [_matrix(checkpoint, name, folds) for name in place.consumers]
        measured = seen[place.consumers[0]]
        scheme = plan.scheme_for(place.consumers[0])
        if is_four_bit(scheme):
            rows = np.concatenate([_sampled_rows(matrix) for matrix in matrices])
            wanted = awq_scales(measured, partial(rounding_error, scheme, rows, measured.mean_square))
        else:
            blocks = (block for matrix in matrices for block in matrix.blocks())
            wanted = smoothing_scales(measured, largest_by_column(blocks))
        scales = shared_scales(wanted, place.producer_of)
        for name in place.producers:
            folds[name] = folds.get(name, Fold()).then(rows=1 / scales)
        for name in place.consumers:
            folds[name] = folds.get(name, Fold()).then(columns=scales[place.producer_of])
            seen[name] = seen[name].divided(scales[place.producer_of])
    massive = frozenset(name for name, each in seen.items() if name.endswith("down_proj.weight") and is_massive(each))
    importance = {name: each.mean_square for name, each in seen.items()}
    return replace(plan, massive=massive, folds=folds, importance=importance)


def _decoder_places(config: ModelConfig, index: int) -> Iterator[Place]:
    text, prefix = config.text, f"{TEXT}.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, inner = np.arange(text.hidden_size), np.arange(text.intermediate_size)
    # Head h of o's input is an average of the values of key/value head h // group.
    head, channel = np.divmod(np.arange(text.num_attention_heads * text.head_dim), text.head_dim)
    value_row = head // (text.num_attention_heads // text.num_key_value_heads) * text.head_dim + channel
    yield Place((f"{mlp}.up_proj.weight",), (f"{mlp}.down_proj.weight",), inner)
    yield Place((f"{attention}.v_proj.weight",), (f"{attention}.o_proj.weight",), value_row)
    products = tuple(f"{attention}.{name}_proj.weight" for name in "qkv")
    yield Place((f"{prefix}.input_layernorm.weight",), products, hidden)
    products = tuple(f"{mlp}.{name}_proj.weight" for name in ("gate", "up"))
    yield Place((f"{prefix}.post_attention_layernorm.weight",), products, hidden)


def _vision_places(config: ModelConfig, index: int) -> Iterator[Place]:
    prefix, hidden = f"{VISION}.blocks.{index}", np.arange(config.vision.hidden_size)
    value = (f"{prefix}.attn.qkv.weight[v]", f"{prefix}.attn.qkv.bias[v]")
    yield Place(value, (f"{prefix}.attn.proj.weight",), hidden)
    yield Place(_norm(f"{prefix}.norm1"), tuple(f"{prefix}.attn.qkv.weight[{part}]" for part in "qkv"), hidden)
    yield Place(_norm(f"{prefix}.norm2"), (f"{prefix}.mlp.linear_fc1.weight",), hidden)


def _norm(prefix: str) -> tuple[str, str]:
    return f"{prefix}.weight", f"{prefix}.bias"


def _matrix(checkpoint: Checkpoint, name: str, folds: Mapping[str, Fold]) -> RowRange:
    """A weight as folded so far; `name[q]`, `[k]`, `[v]` are thirds of a packed one."""
    base, _, part = name.partition("[")
    shape = checkpoint.shape(base)
    size = shape[0] // 3 if part else shape[0]
    start = "qkv".index(part[0]) * size if part else 0
    return RowRange(name, checkpoint.tensor(base, shape), start, start + size, folds.get(name))


def _sampled_rows(matrix: RowRange) -> np.ndarray:
    """Up to SAMPLED_ROWS rows spread over a matrix, float32 [n, K]: enough to compare exponents."""
    spread = np.linspace(matrix.start, matrix.stop - 1, min(SAMPLED_ROWS, matrix.stop - matrix.start), dtype=int)
    rows = np.concatenate([matrix.tensor.rows(int(row), int(row) + 1) for row in spread])
    fold = matrix.fold
    if fold is not None and fold.rows is not None:
        rows = rows * fold.rows[spread - matrix.start, None]
    return rows if fold is None or fold.columns is None else rows * fold.columns
