"""W8A8 with one scale a token: the stored codes, and onnxruntime's product against numpy."""

from pathlib import Path

import numpy as np
import pytest
from scheme_graphs import (
    MemoryMatrix,
    distance,
    layer,
    operators,
    run_linear,
    run_rows,
    write_linear,
)

from quant.per_token import SMALLEST_TOKEN, PerToken

SCHEME = PerToken()
# Both sides sum the same integers; only the float32 factors after the sum are rounded (measured: 8e-8).
TOLERANCE = 1e-6


def scales_of(x: np.ndarray) -> np.ndarray:
    """What a token is divided by, float32 [..., 1]."""
    largest: np.ndarray = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(SMALLEST_TOKEN))
    scales: np.ndarray = largest * np.float32(1 / 127)
    return scales


def simulated(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The product as the graph should calculate it, float64 [..., N]."""
    activations = np.clip(np.rint(x / scales_of(x)) + 128, 0, 255).astype(np.uint8)  # as QuantizeLinear does
    codes, scales = SCHEME.quantize(weight)
    sums = (activations.astype(np.int64) - 128) @ codes.T.astype(np.int64)
    product: np.ndarray = sums * np.float64(scales) * scales_of(x)
    return product


def test_name() -> None:
    assert SCHEME.name == "int8-per-token"


def test_codes_by_hand() -> None:
    codes, scales = SCHEME.quantize(np.array([[127, -127, 0.4, 0.6], [0, 0, 0, 0], [0, 0, -2, 1]], np.float32))
    assert codes.dtype == np.int8 and scales.dtype == np.float32
    assert codes.tolist() == [[127, -127, 0, 1], [0, 0, 0, 0], [0, 0, -127, 64]]
    assert scales.tolist() == [1, 1, np.float32(2) / np.float32(127)]


@pytest.mark.parametrize("size", [1e-44, 2.5e-43, 1e-38, 1e-4, 1, 1e30])
def test_round_trip_is_within_half_a_step(size: float) -> None:
    rows = np.random.default_rng(0).standard_normal((33, 257)) * size
    rows = rows.astype(np.float32)
    rows[5] = 0
    codes, scales = SCHEME.quantize(rows)
    assert np.abs(codes.astype(int)).max() <= 127
    error = np.abs(SCHEME.dequantize(codes, scales).astype(np.float64) - rows)
    assert (error <= 0.5001 * scales[:, None]).all()
    assert not codes[5].any()
    if size > 1e-38:
        assert (np.abs(codes.astype(int)).max(axis=1) == np.where(np.arange(33) == 5, 0, 127)).all()


@pytest.mark.parametrize(("size", "width"), [(1, 16), (7, 100), (33, 256), (17, 4304)])
def test_kernel_equals_the_simulation(size: int, width: int) -> None:
    random = np.random.default_rng(size)
    weight = random.standard_normal((size, width), np.float32) * np.geomspace(1e-3, 10, size, dtype=np.float32)[:, None]
    weight[size // 2 :: 11] = 0
    weight[0, 0] = 3
    bias = random.standard_normal(size).astype(np.float32)
    x = random.standard_normal((2, 5, width), np.float32) * np.geomspace(1e-6, 1e4, 5, dtype=np.float32)[:, None]
    x[1, 2] = 0
    plain, biased, free = run_linear(
        SCHEME,
        [layer(weight, "a"), layer(weight, "b", bias=bias), layer(weight, "c", scale_free=True)],
        [x],
    )[0]
    expected = simulated(x, weight)
    for token in np.ndindex(2, 5):  # tokens differ by ten orders of magnitude: each on its own
        if token == (1, 2):
            continue
        assert distance(plain[token], expected[token]) < TOLERANCE
        assert distance(biased[token], expected[token] + bias) < TOLERANCE
        assert distance(free[token] * scales_of(x)[token], expected[token]) < TOLERANCE
    assert not plain[1, 2].any() and not free[1, 2].any()
    assert (biased[1, 2] == bias).all()


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)


def test_after_a_gelu_the_codes_are_where_the_numbers_are() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 1024), np.float32)
    x = gelu(random.standard_normal((1, 20, 1024), np.float32) * np.geomspace(0.5, 20, 20, dtype=np.float32)[:, None])
    bias = random.standard_normal(64).astype(np.float32)
    found = run_linear(SCHEME, [layer(weight, bias=bias, after_gelu=True)], [x])[0][0]
    symmetric = run_linear(SCHEME, [layer(weight, bias=bias)], [x])[0][0]
    expected = x @ weight.T + bias
    errors, before = (
        np.array([distance(product[0, token], expected[0, token]) for token in range(20)])
        for product in (found, symmetric)
    )
    # Of the two rounding errors, activations' and weights', the first falls to 127 / 223.
    assert errors.mean() < 0.85 * before.mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_gelu_would_not_give_is_still_right(sign: int) -> None:
    """Numbers below zero are read coarsely then, and never cut off."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 512), np.float32)
    x = sign * np.abs(random.standard_normal((1, 20, 512), np.float32))
    x[0, 3] = 0
    found = run_linear(SCHEME, [layer(weight, after_gelu=True)], [x])[0][0]
    assert not found[0, 3].any()
    for token in (0, 7, 19):
        assert distance(found[0, token], x[0, token] @ weight.T) < (0.02 if sign > 0 else 0.06)


def test_kernel_is_near_the_float_product() -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((64, 512), np.float32), random.standard_normal((1, 20, 512), np.float32)
    x *= np.geomspace(1e-3, 1e3, 20, dtype=np.float32)[:, None]
    found = run_linear(SCHEME, [layer(weight)], [x])[0][0]
    errors = [distance(found[0, token], x[0, token] @ weight.T) for token in range(20)]
    # Steps of about 3.2 σ / 127 on both sides: √2 · 3.2 / 127 / √12 = 1.0 %.
    assert max(errors) < 0.02


def test_a_bias_keeps_the_token_scale() -> None:
    """x Wᵀ + b cannot lose the factor of x Wᵀ alone."""
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((4, 32), np.float32), random.standard_normal(4).astype(np.float32)
    x = 50 * random.standard_normal((1, 3, 32), np.float32)
    kept, free = run_linear(
        SCHEME, [layer(weight, "a", bias=bias), layer(weight, "b", bias=bias, scale_free=True)], [x]
    )[0]
    assert (kept == free).all()


def test_layers_share_one_quantised_input(tmp_path: Path) -> None:
    weight = np.ones((4, 32), np.float32)
    layers = [layer(weight, "q", scale_free=True), layer(weight, "k"), layer(weight, "v", bias=weight[:, 0])]
    found = operators(write_linear(tmp_path, SCHEME, layers))
    assert found["ReduceMax"] == found["ReduceMin"] == 1
    assert found["QuantizeLinear"] == 2  # the numbers, and a zero for each token
    assert found["MatMulIntegerToFloat"] == 3
    assert found["ReduceSum"] == 1
    assert found["Mul"] == 5  # both ends, what keeps NaN, and none for the layer that a norm follows
    assert found["Add"] == 2


@pytest.mark.parametrize("width", [100, 1024])
def test_a_row_does_not_depend_on_the_others(width: int) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((33, width), np.float32)
    x = random.standard_normal((3, 20, width), np.float32)
    louder = x * 1000
    louder[0, 0], louder[2] = x[0, 0], 0
    whole, changed, alone, first, reversed_ = run_linear(
        SCHEME, [layer(weight)], [x, louder, x[:1, :1], x[:1, :7], x[:, ::-1]]
    )
    expected = whole[0][0, 0]
    for found in (changed[0][0, 0], alone[0][0, 0], first[0][0, 0], reversed_[0][0, -1]):
        assert (found == expected).all()
    assert not (changed[0][0, 1] == whole[0][0, 1]).all()


def test_not_for_tables() -> None:
    table = MemoryMatrix("table", np.ones((4, 32), np.float32))
    with pytest.raises(NotImplementedError) as caught:
        run_rows(SCHEME, table, np.zeros((1, 1), np.int64))
    assert str(caught.value) == "table: int8-per-token is a scheme for products, not for tables."
