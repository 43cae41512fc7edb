"""Blocks whose scales are stored in bfloat16: the codes are chosen for the scale that the kernel will read."""

import ml_dtypes
import numpy as np
import pytest
from scheme_graphs import layer, run_linear

from quant.blockwise import Blockwise
from quant.kernels import CUDA

KINDS = pytest.mark.parametrize(("bits", "block", "symmetric"), [(8, 128, True), (4, 32, False), (4, 32, True)])


def weights(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((rows, width), np.float32)


def short(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("importance", [False, True], ids=["plain", "searched"])
@KINDS
def test_scales_are_bfloat16_and_the_codes_fit_them(bits: int, block: int, symmetric: bool, importance: bool) -> None:
    """Better than rounding the scales afterwards, and hardly worse than float32 ones."""
    rows, mean_square = weights(48, 512), np.full(512, 1, np.float32) if importance else None
    exact, scheme = Blockwise(bits, block, symmetric), Blockwise(bits, block, symmetric, CUDA)
    found, best = scheme.quantize(rows, mean_square), exact.quantize(rows, mean_square)
    assert found.scales.dtype == np.float32 and np.array_equal(found.scales, short(found.scales))
    error = np.square(scheme.dequantize(found, 512) - rows).mean()
    least = np.square(exact.dequantize(best, 512) - rows).mean()
    best.scales[:] = short(best.scales)
    rounded = np.square(exact.dequantize(best, 512) - rows).mean()
    assert least <= error * 1.05 and error < rounded
    assert error <= least * 1.1


@KINDS
def test_products_are_those_of_the_stored_weights(bits: int, block: int, symmetric: bool) -> None:
    """On the CPU with float32 activations, a last block that is not full and a bias that is added afterwards."""
    weight, bias, x = weights(24, 200), weights(1, 24)[0], weights(6, 200).reshape(2, 3, 200)
    scheme = Blockwise(bits, block, symmetric, CUDA.in_float32())
    expected = x @ scheme.dequantize(scheme.quantize(weight), 200).T + short(bias)
    [[found]] = run_linear(scheme, [layer(weight, bias=bias)], [x])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_block_too_small_for_a_scale_is_zero() -> None:
    scheme = Blockwise(8, 32, True, CUDA)
    rows = np.concatenate([np.full((1, 32), 1e-40, np.float32), weights(1, 32)], axis=1)
    assert not scheme.dequantize(scheme.quantize(rows), 64)[:, :32].any()
