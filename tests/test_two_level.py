"""4-bit weights in two levels: the codes, the search, and the graph that unpacks and multiplies them, against numpy."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scheme_graphs import (
    MemoryMatrix,
    distance,
    layer,
    needs_exact_int8,
    operators,
    run_linear,
    run_rows,
    write_linear,
)

from quant.blockwise import Blockwise
from quant.schemes import Linear
from quant.two_level import HIGHEST, HIGHEST_CODE, LOWEST, LOWEST_CODE, Levels, TwoLevel
from runtime.errors import CheckpointError

# Both sides sum the same integers; only the float32 factors after the sum are rounded.
TOLERANCE = 1e-6
FORMS = pytest.mark.parametrize(
    "to_uint8", [pytest.param(False, id="int8", marks=needs_exact_int8), pytest.param(True, id="uint8")]
)


def weights(size: int, width: int) -> np.ndarray:
    """Normal float32 [size, width] with rows and blocks of zeros, of one sign, very small and with a large one."""
    values = np.random.default_rng(size * width).standard_normal((size, width), np.float32) * np.float32(0.02)
    values[1 % size] = 0
    values[2 % size, :16] = 0
    values[3 % size] = np.abs(values[3 % size])
    values[4 % size] = -np.abs(values[4 % size])
    values[5 % size] *= np.float32(1e-30)
    values[6 % size, 3] = 5
    return values


def simulated(x: np.ndarray, levels: Levels) -> np.ndarray:
    """The product as the graph should calculate it, float64 [..., N]."""
    step, largest = np.float32(1 / 127), np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-8))
    activations = np.clip(np.rint(x / largest / step) + 128, 0, 255).astype(np.uint8)
    sums = (activations.astype(np.int64) - 128) @ levels.weights().T.astype(np.int64)
    product: np.ndarray = sums * np.float64(step) * levels.scales * largest
    return product


def test_names() -> None:
    assert TwoLevel(8).name == TwoLevel(8, to_uint8=True).name == "int4-two-level-signed-block8"


def test_codes_by_hand() -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[0, :4], rows[0, 16:20] = [120, 105, 0, -127], [4, -5, 6, 8]
    levels = TwoLevel(16).quantize(rows)
    assert levels.scales.tolist() == [1, 1]
    assert levels.multipliers[0].tolist() == [18, -1]  # 127 / 8 would leave 120 no code, and 8 / -8
    assert levels.codes[0, 0, :4].tolist() == [7, 6, 0, -7] and levels.codes[0, 1, :4].tolist() == [-4, 5, -6, -8]
    assert levels.weights()[0, :4].tolist() == [126, 108, 0, -126]
    assert levels.weights()[0, 16:20].tolist() == [4, -5, 6, 8]  # a block of its own keeps small weights apart
    assert not levels.weights()[1].any()


@pytest.mark.parametrize("block", [8, 16, 32, 128])
@pytest.mark.parametrize(("size", "width"), [(7, 256), (33, 576), (9, 96), (1, 32)])
def test_weights_are_int8_and_near(block: int, size: int, width: int) -> None:
    scheme, rows = TwoLevel(block), weights(size, width)
    for importance in (None, np.random.default_rng(1).random(width).astype(np.float32) + 0.1):
        levels = scheme.quantize(rows, importance)
        own = width // levels.multipliers.shape[1]
        assert own <= block and width % own == 0
        assert levels.codes.min() >= LOWEST_CODE and levels.codes.max() <= HIGHEST_CODE and levels.multipliers.all()
        exact = levels.codes.astype(int) * levels.multipliers[..., None].astype(int)
        assert exact.min() >= LOWEST and exact.max() <= HIGHEST
        assert (levels.weights() == exact.reshape(size, -1)).all()
        if importance is None:  # a search may cut the ends of a block
            blocks = (rows / levels.scales[:, None]).astype(np.float64).reshape(size, -1, own)
            error = np.square(levels.weights().reshape(blocks.shape) - blocks).mean(axis=2) ** 0.5
            low, high = blocks.min(axis=2), blocks.max(axis=2)
            # Half a step, where a step is the whole number of units that covers the block in one of two directions.
            covering = np.maximum(np.maximum(high, -low) / 8, np.minimum(high, -low) / 7)
            assert (error <= 0.51 * np.maximum(np.ceil(covering - 1e-3), 1)).all()


def test_the_search_lowers_the_weighted_error() -> None:
    rows = weights(64, 512)
    importance = np.random.default_rng(2).exponential(size=512).astype(np.float32) ** 2
    scheme = TwoLevel(32)
    errors = [
        float((np.square(scheme.dequantize(scheme.quantize(rows, each)) - rows) * importance).sum())
        for each in (None, importance)
    ]
    assert errors[1] < 0.85 * errors[0]


def test_blocks_of_8_lose_less_than_blocks_of_32_with_a_float_scale() -> None:
    """They take the same bytes: 8 bits for each 8 weights against 36 for each 32."""
    rows = np.random.default_rng(3).standard_normal((128, 1024)).astype(np.float32)
    importance = np.ones(1024, np.float32)
    two_level, blockwise = TwoLevel(8), Blockwise(4, 32, symmetric=False)
    ours = two_level.dequantize(two_level.quantize(rows, importance))
    theirs = blockwise.dequantize(blockwise.quantize(rows, importance), 1024)
    assert np.square(ours - rows).sum() < 0.85 * np.square(theirs - rows).sum()


@FORMS
@pytest.mark.parametrize(
    ("size", "width", "block"), [(2, 32, 16), (14, 96, 8), (34, 256, 16), (16, 4304, 128), (512, 64, 32)]
)
def test_kernel_equals_the_simulation(size: int, width: int, block: int, to_uint8: bool) -> None:
    random, weight = np.random.default_rng(size), weights(size, width)
    bias = random.standard_normal(size).astype(np.float32)
    x = random.standard_normal((2, 5, width), np.float32) * np.geomspace(1e-6, 1e4, 5, dtype=np.float32)[:, None]
    x[1, 2] = 0
    scheme = TwoLevel(block, to_uint8)
    importance = random.random(width).astype(np.float32)
    plain, biased = run_linear(scheme, [layer(weight, "a"), layer(weight, "b", bias=bias)], [x])[0]
    expected = simulated(x, scheme.quantize(weight))
    for token in np.ndindex(2, 5):  # tokens differ by ten orders of magnitude: each on its own
        if token == (1, 2):
            assert not plain[token].any() and (biased[token] == bias).all()
            continue
        assert distance(plain[token], expected[token]) < TOLERANCE
        assert distance(biased[token], expected[token] + bias) < TOLERANCE
    searched = MemoryMatrix("w", weight, importance)
    [weighted] = run_linear(scheme, [Linear(searched)], [x])[0]
    assert distance(weighted[0, 2], simulated(x, scheme.quantize(weight, importance))[0, 2]) < TOLERANCE


@needs_exact_int8
def test_both_forms_give_the_same_bits() -> None:
    weight, x = weights(24, 256), np.random.default_rng(0).standard_normal((1, 6, 256)).astype(np.float32)
    one, other = (run_linear(TwoLevel(16, to_uint8), [layer(weight)], [x])[0][0] for to_uint8 in (False, True))
    assert np.array_equal(one, other)


@FORMS
def test_codes_at_all_ends_are_unpacked(to_uint8: bool) -> None:
    """Every code beside every other in a byte, with multipliers of both signs as far as all codes allow."""
    random, one = np.random.default_rng(0), np.eye(2 * 16 * 16, dtype=np.float32)[None]
    codes = np.stack([np.repeat(np.arange(-8, 8), 16), np.tile(np.arange(-8, 8), 16)])[[0, 0, 0, 1, 1, 1]]
    codes = np.repeat(codes, 2, axis=1).reshape(6, -1, 8)
    multipliers = np.array([16, -1, 1, -15, 1, 15])[:, None].repeat(codes.shape[1], axis=1)
    levels = Levels(codes.astype(np.int8), multipliers.astype(np.int8), random.random(6).astype(np.float32))
    parts = [
        Levels(levels.codes[rows], levels.multipliers[rows], levels.scales[rows]) for rows in np.split(np.arange(6), 2)
    ]
    scheme = TwoLevel(8, to_uint8)
    with mock.patch.object(TwoLevel, "quantize", side_effect=parts):
        [found] = run_linear(scheme, [layer(np.ones((6, 512), np.float32))], [one])[0]
    assert np.allclose(found[0].T, levels.weights() * levels.scales[:, None], atol=1e-6)


def test_the_graph_reads_each_matrix_once() -> None:
    matrix = MemoryMatrix("w", weights(8, 64))
    run_linear(TwoLevel(16), [Linear(matrix)], [np.ones((1, 2, 64), np.float32)])
    assert matrix.reads == ["w"]


def test_an_odd_number_of_outputs_has_no_halves(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="w has 7 outputs, and int4-two-level-signed-block16 stores two in a byte; add"
    ):
        write_linear(tmp_path, TwoLevel(16), [layer(weights(7, 64))])


def test_not_for_tables() -> None:
    with pytest.raises(NotImplementedError, match="is a scheme for products, not for tables"):
        run_rows(TwoLevel(16), MemoryMatrix("table", weights(4, 32)), np.zeros((1, 1), np.int64))


def test_operators(tmp_path: Path) -> None:
    layers = [layer(weights(8, 64), name) for name in "ab"]
    found = operators(write_linear(tmp_path, TwoLevel(16), layers))
    assert found["QuantizeLinear"] == 2, "layers that share an input quantise it once; the other one makes zeros"
    assert found["MatMulIntegerToFloat"] == 4 and found["QLinearAdd"] == 2 and found["Cast"] == 0
