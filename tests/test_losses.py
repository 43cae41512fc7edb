"""Losses of layers and matrices, on values small enough to work out."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import config_json
from random_checkpoint import TINY_2B

from export.config import read_config
from export.folds import places
from quant.losses import FOLDED, LayerLoss, Units, costliest, layer_losses, layer_of, matrix_losses, row_losses
from runtime.manifest import VisionConfig

LAYER = "model.language_model.layers.1"
VISION = VisionConfig(6, 48, 96, 3, 3, 16, 2, 2, 2304, 64, (1, 3, 4))
SCALED = Units(frozenset(), folded=False)


def losses_of(name: str, expected: np.ndarray, found: np.ndarray, units: Units = SCALED) -> tuple[float, float]:
    (matrix,) = matrix_losses({name: [expected]}, {name: [found]}, {name: "int8"}, VISION, units)
    return matrix.loss, matrix.relative


def test_layers_of_matrices() -> None:
    assert layer_of(f"{LAYER}.mlp.up_proj.weight") == "layers.1"
    assert layer_of("model.visual.blocks.12.attn.qkv.weight[q]") == "blocks.12"
    assert layer_of("model.visual.deepstack_merger_list.0.linear_fc1.weight") == "deepstack_merger_list.0"
    assert layer_of("model.visual.merger.linear_fc1.weight") == "merger"
    assert layer_of("model.visual.patch_embed.proj.weight") == "patch_embed"


def test_losses_of_rows() -> None:
    expected = np.array([[1, 0], [1, 0], [1, 0], [0, 0], [0, 0]], np.float32)
    found = np.array([[5, 0], [0, 2], [-1, 0], [0, 0], [1, 0]], np.float32)
    assert row_losses(expected, found).tolist() == [0, 1, 2, 0, 1]


def test_relative_error_sees_the_length_and_the_cosine_does_not() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    name = f"{LAYER}.self_attn.q_proj.weight"
    loss, relative = losses_of(name, rows, rows * np.float32(1.5))
    assert (loss, relative) == (pytest.approx(0, abs=1e-12), pytest.approx(0.5))
    loss, relative = losses_of(name, rows, rows * np.float32(1.5), Units(frozenset([name]), folded=False))
    assert loss == pytest.approx(0, abs=1e-12) and np.isnan(relative)


def test_factors_that_calibration_folded_are_no_error() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((100, 64))
    noisy = rows + 0.1 * random.standard_normal(rows.shape)
    scales = np.exp(random.standard_normal(64))
    name, folded = f"{LAYER}.mlp.up_proj.weight", Units(frozenset(), folded=True)
    true, plain = losses_of(name, rows, noisy), losses_of(name, rows, noisy / scales)
    assert plain[0] > 10 * true[0]
    assert losses_of(name, rows, rows / scales, folded) == pytest.approx((0, 0), abs=1e-7)
    assert losses_of(name, rows, noisy / scales, folded) == pytest.approx(true, rel=0.05)
    # Other matrices give nothing away.
    other = f"{LAYER}.mlp.gate_proj.weight"
    assert losses_of(other, rows, noisy / scales, folded) == losses_of(other, rows, noisy / scales)


def test_a_sign_or_a_single_row_is_not_fitted_away() -> None:
    rows = np.random.default_rng(0).standard_normal((10, 8))
    name, folded = f"{LAYER}.self_attn.v_proj.weight", Units(frozenset(), folded=True)
    assert losses_of(name, rows, -rows, folded)[0] >= 1
    assert np.isnan(losses_of(name, rows[:1], 2 * rows[:1], folded)).all()


def test_folded_matrices_are_those_of_the_exporter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(TINY_2B, "bfloat16")), encoding="utf-8")
    found = list(places(read_config(tmp_path)))
    products = {name for place in found for name in place.consumers}
    producers = {name for place in found for name in place.producers}
    # Those that are products themselves, and those with a bias and so no norm: v of the vision encoder.
    folded = {name for name in producers if name in products or name.endswith("weight[v]")}
    assert folded and all(name.endswith(FOLDED) for name in folded)
    assert {suffix for suffix in FOLDED if any(name.endswith(suffix) for name in folded)} == set(FOLDED)
    assert not {name for name in producers - folded if "norm" not in name and not name.endswith("bias[v]")}


def test_increases_are_over_the_rows_that_both_layers_have() -> None:
    forward, aside = np.array([[1.0, 0]]), np.array([[0.0, 1]])
    both = np.concatenate([forward, forward])
    expected = {"layers.0:hidden": [both, both], "layers.1:hidden": [forward, forward]}
    found = {
        # The first prompt's last token (row 0) is wrong already; of the second another token is.
        "layers.0:hidden": [np.concatenate([aside, forward]), np.concatenate([forward, aside])],
        "layers.1:hidden": [aside, aside],
    }
    assert layer_losses(expected, found) == [LayerLoss("layers.0", 0.5, 0.5), LayerLoss("layers.1", 1.0, 0.5)]


def test_a_matrix_starts_from_the_hidden_state_before_its_layer() -> None:
    rows, wrong = np.array([[1.0, 0]]), np.array([[0.0, 1]])
    names = {
        "model.language_model.layers.1.mlp.down_proj.weight": "layers.0",
        "model.visual.blocks.2.mlp.linear_fc1.weight": "blocks.1",
        "model.visual.deepstack_merger_list.1.linear_fc1.weight": "blocks.3",
        "model.visual.merger.linear_fc1.weight": "blocks.5",
    }
    for name, before in names.items():
        expected = {f"{before}:hidden": [rows], name: [rows]}
        found = {f"{before}:hidden": [wrong], name: [-rows]}
        (matrix,) = matrix_losses(expected, found, {name: "int8"}, VISION, SCALED)
        assert (matrix.loss, matrix.increase) == (2, 1)


def test_the_costliest_layers_as_words() -> None:
    layers = [LayerLoss("layers.0", 0.1, 0.1), LayerLoss("layers.1", 0.3, 0.2), LayerLoss("layers.2", 0.2, -0.1)]
    assert costliest(layers) == "layers.1 (+0.2), layers.0 (+0.1)"
    assert costliest(layers[2:]) == "none"
