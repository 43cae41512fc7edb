"""Token tables: rows in int8 through GatherBlockQuantized, and in the checkpoint's own type."""

import ml_dtypes
import numpy as np
import pytest
from scheme_graphs import MemoryMatrix, layer, run_linear, run_rows

from quant.schemes import AsStored, Float
from quant.table import Int8Rows

SCHEME = Int8Rows()


def table(size: int, width: int) -> np.ndarray:
    """Normal rows of very different lengths; the third is zero."""
    values = np.random.default_rng(width).standard_normal((size, width), np.float32)
    values *= np.geomspace(1e-4, 10, size, dtype=np.float32)[:, None]
    values[2 % size] = 0
    return values


def test_names() -> None:
    assert (SCHEME.name, Float().name, AsStored().name) == ("int8-rows", "fp32", "as-stored")


def test_codes_by_hand() -> None:
    codes, scales = SCHEME.quantize(np.array([[127, -127, 0.4, 0.6], [0, 0, 0, 0], [0, 0, -2, 1]], np.float32))
    assert codes.dtype == np.uint8 and scales.dtype == np.float32
    assert codes.tolist() == [[255, 1, 128, 129], [128, 128, 128, 128], [128, 128, 1, 192]]
    assert scales.tolist() == [[1], [1], [np.float32(2) / np.float32(127)]]


@pytest.mark.parametrize("size", [1e-44, 2.5e-43, 1e-38, 1e-4, 1, 1e30])
def test_round_trip_is_within_half_a_step(size: float) -> None:
    rows = (table(33, 257) * np.float64(size)).astype(np.float32)
    codes, scales = SCHEME.quantize(rows)
    back = SCHEME.dequantize(codes, scales)
    assert back.dtype == np.float32 and codes.min() >= 1
    assert (np.abs(back.astype(np.float64) - rows) <= 0.5001 * scales).all()
    assert not back[2].any()


@pytest.mark.parametrize("width", [3, 15, 16, 17, 24, 100, 128, 1000, 4304])
@pytest.mark.parametrize("size", [1, 5, 33])
def test_kernel_gives_the_dequantised_rows(size: int, width: int) -> None:
    values = table(size, width)
    ids = np.random.default_rng(0).integers(0, size, (3, 7))
    ids[0, :3] = [size - 1, 0, 2 % size]
    found = run_rows(SCHEME, MemoryMatrix("table", values), ids)
    assert found.dtype == np.float32 and found.shape == (3, 7, width)
    assert (found == SCHEME.dequantize(*SCHEME.quantize(values))[ids]).all()


def test_rows_are_quantised_alone() -> None:
    values = table(9, 100)
    for whole, part in zip(SCHEME.quantize(values), SCHEME.quantize(values[4:6]), strict=True):
        assert (whole[4:6] == part).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_as_stored_is_exact(dtype: str) -> None:
    values = table(7, 24).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float32)
    ids = np.array([[6, 0, 2], [3, 3, 1]])
    for scheme in (AsStored(), Float()):
        found = run_rows(scheme, MemoryMatrix("table", values, stored_dtype=dtype), ids)
        assert found.dtype == np.float32
        assert (found == values[ids]).all()


def test_not_for_products() -> None:
    values, x = table(4, 32), np.ones((1, 1, 32), np.float32)
    for scheme, reason in ((SCHEME, "int8-rows"), (AsStored(), "as-stored")):
        with pytest.raises(NotImplementedError) as caught:
            run_linear(scheme, [layer(values, "head")], [x])
        assert str(caught.value) == f"head: {reason} is a scheme for tables, not for products."
