"""Outliers as trained models have them, put into a checkpoint without changing what it computes.

The inverse of what calibration folds: a few channels are made much larger by the weights in front of them, and the
products behind take the factor back. The float model stays the same; whatever rounds activations does not.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from checkpoint_shapes import Shape
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[np.float32]
Tensors = dict[str, Array]

WEIGHTS = "model.safetensors"
CALM = 0.04  # `gain` of a random checkpoint whose layers add as little to the hidden state as trained ones
ONE_IN = 24  # channels
SMALLEST, LARGEST = 20.0, 60.0


def write_outliers(folder: Path, copy: Path, shape: Shape, seed: int = 0) -> None:
    """A copy of a float32 checkpoint folder with outlier channels in every input that a norm, v or up leads to."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    tensors = {name: values.copy() for name, values in load_file(folder / WEIGHTS).items()}
    generator = np.random.default_rng(seed)
    _text(tensors, shape, generator)
    _vision(tensors, shape, generator)
    save_file(tensors, copy / WEIGHTS)


def _text(tensors: Tensors, shape: Shape, generator: np.random.Generator) -> None:
    text = shape.text
    values, group = text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads
    for index in range(text.num_hidden_layers):
        prefix = f"model.language_model.layers.{index}"
        norms = [tensors[f"{prefix}.{name}_layernorm.weight"] for name in ("input", "post_attention")]
        query, key, value, out = (tensors[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkvo")
        gate, up, down = (tensors[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        _move([norms[0]], [query, key, value], factors(text.hidden_size, generator))
        _move([norms[1]], [gate, up], factors(text.hidden_size, generator))
        _move([up], [down], factors(text.intermediate_size, generator))
        # A value channel comes back in every query head of its group.
        large = factors(values * text.head_dim, generator)
        heads = out.reshape(text.hidden_size, values, group, text.head_dim)
        _move([value], [], large)
        heads /= large.reshape(values, 1, text.head_dim)


def _vision(tensors: Tensors, shape: Shape, generator: np.random.Generator) -> None:
    size, prefix = shape.vision.hidden_size, "model.visual"
    group = shape.vision.spatial_merge_size**2
    for index in range(shape.vision.depth):
        block = f"{prefix}.blocks.{index}"
        qkv, bias = tensors[f"{block}.attn.qkv.weight"], tensors[f"{block}.attn.qkv.bias"]
        _move(_norm(tensors, f"{block}.norm1"), [qkv], factors(size, generator))
        _move(_norm(tensors, f"{block}.norm2"), [tensors[f"{block}.mlp.linear_fc1.weight"]], factors(size, generator))
        large = factors(size, generator)
        _move([qkv[2 * size :], bias[2 * size :]], [tensors[f"{block}.attn.proj.weight"]], large)
    large = factors(size, generator)
    fc1 = tensors[f"{prefix}.merger.linear_fc1.weight"].reshape(-1, group, size)  # one norm weight, four columns
    _move(_norm(tensors, f"{prefix}.merger.norm"), [fc1], large)
    for position in range(len(shape.vision.deepstack_visual_indexes)):
        merger = f"{prefix}.deepstack_merger_list.{position}"
        large = factors(size * group, generator)
        _move(_norm(tensors, f"{merger}.norm"), [tensors[f"{merger}.linear_fc1.weight"]], large)


def factors(size: int, generator: np.random.Generator) -> Array:
    """float32 [size]: ones, and SMALLEST … LARGEST in one channel of ONE_IN."""
    large = np.ones(size, np.float32)
    channels = generator.choice(size, max(2, size // ONE_IN), replace=False)
    large[channels] = np.geomspace(SMALLEST, LARGEST, len(channels))
    return large


def _norm(tensors: Tensors, prefix: str) -> list[Array]:
    return [tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]]


def _move(producers: Sequence[Array], consumers: Sequence[Array], large: Array) -> None:
    """Multiply the rows of `producers` and divide the last axis of `consumers`, in place."""
    for each in producers:
        each *= large.reshape(-1, *[1] * (each.ndim - 1))
    for each in consumers:
        each /= large
