"""Weights in blocks: codes against onnxruntime's own quantiser, the weighted search, and MatMulNBits against numpy."""

import platform
from collections.abc import Callable

import numpy as np
import pytest
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits
from scheme_graphs import MemoryMatrix, distance, layer, run_linear, run_rows

from quant.blockwise import Blocks, Blockwise, pack
from quant.schemes import Linear

QUANTISERS: dict[int, Callable[..., bool]] = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}
KINDS = [(bits, symmetric) for bits in (4, 8) for symmetric in (True, False)]
# Sums of float32 partial products, one a block, in an order of the kernel's own (measured: 1.5e-6 at K = 4304). A
# single activation code rounded the other way would already be 1e-4.
TOLERANCE = 1e-5
# Activations in steps of about 2.5 σ / 127: 2.5 / 127 / √12 = 0.6 % (measured: 1.2 % where a few small outputs meet).
ACTIVATIONS = 0.02


def weights(size: int, width: int, block: int) -> np.ndarray:
    """Normal float32 [size, width] with rows and blocks of zeros, of one sign, and of very small numbers."""
    values = np.random.default_rng(size * width).standard_normal((size, width), np.float32) * np.float32(0.02)
    values[1 % size] = 0
    values[2 % size, :block] = 0
    values[3 % size] = np.abs(values[3 % size])
    values[4 % size] = -np.abs(values[4 % size])
    values[5 % size] *= np.float32(1e-30)
    values[0, :block] = 0.01
    return values


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: bytes [..., n] → codes [..., count]."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed[..., :count]


def weighted_errors(scheme: Blockwise, rows: np.ndarray, blocks: Blocks, importance: np.ndarray) -> np.ndarray:
    """Weighted square error of every row."""
    error: np.ndarray = (np.square(scheme.dequantize(blocks, rows.shape[1]) - rows) * importance).sum(axis=1)
    return error


def activation_error(found: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    """Distance from x Wᵀ, relative to the norm such products have on average (a few of them may nearly cancel)."""
    usual = np.linalg.norm(x) * np.linalg.norm(weight) / np.sqrt(x.shape[-1])
    return float(np.linalg.norm(found - x.astype(np.float64) @ weight.T) / usual)


def simulated(scheme: Blockwise, blocks: Blocks, x: np.ndarray) -> np.ndarray:
    """The product as the kernel calculates it: activations int8 in the weight's own blocks, 127 for the largest."""
    padding = -x.shape[-1] % scheme.block
    parts = np.pad(x, [(0, 0), (0, 0), (0, padding)]).reshape(*x.shape[:2], -1, scheme.block)
    largest = np.abs(parts).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    activations = np.rint(parts * inverse).astype(np.float64) * (largest / np.float32(127))
    product: np.ndarray = activations.reshape(*x.shape[:2], -1) @ scheme.dequantize(blocks, x.shape[-1] + padding).T
    return product


def test_names() -> None:
    assert Blockwise(4, 32, False).name == "int4-block32-asymmetric"
    assert Blockwise(8, 128, True).name == "int8-block128-symmetric"


def test_codes_by_hand() -> None:
    rows = np.zeros((2, 18), np.float32)
    rows[0, :4], rows[1, 16:] = [-8, 7, 3.4, 0.5], [15, -15]
    symmetric = Blockwise(4, 16, True).quantize(rows)
    assert symmetric.zeros is None
    assert symmetric.scales.tolist() == [[1, 0], [0, -1.875]]  # the extreme is always code 0
    assert symmetric.codes[0, 0, :5].tolist() == [0, 15, 11, 9, 8]
    assert symmetric.codes[1, 1, :3].tolist() == [0, 15, 8]
    asymmetric = Blockwise(4, 16, False).quantize(rows)
    assert asymmetric.zeros is not None
    assert asymmetric.scales.tolist() == [[1, 0], [0, 2]]
    assert asymmetric.zeros.tolist() == [[8, 0], [0, 8]]
    assert asymmetric.codes[0, 0, :5].tolist() == [0, 15, 11, 9, 8]
    assert asymmetric.codes[1, 1, :3].tolist() == [15, 1, 8]


def test_pack() -> None:
    codes = np.array([[1, 2, 3], [15, 0, 8]], np.uint8)
    assert pack(codes, 8) is codes
    assert pack(codes, 4).tolist() == [[0x21, 0x03], [0x0F, 0x08]]
    assert pack(codes[:, :2], 4).tolist() == [[0x21], [0x0F]]


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("size", "width"), [(7, 256), (5, 100), (7, 4304), (256, 1024), (1, 16)])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_equals_onnxruntimes_quantiser(bits: int, symmetric: bool, block: int, size: int, width: int) -> None:
    rows, count = weights(size, width, block), -(-width // block)
    codes = np.zeros((size, count, block * bits // 8), np.uint8)
    scales = np.zeros(size * count, np.float32)
    zeros = np.zeros(size * -(-count * bits // 8), np.uint8)
    QUANTISERS[bits](codes, np.ascontiguousarray(rows.T), scales, zeros, block, size, width, symmetric)

    found = Blockwise(bits, block, symmetric).quantize(rows)
    packed = pack(found.codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == codes.shape
    # Past the last column onnxruntime leaves its buffer untouched; ours stand for zeros.
    known = unpacked(codes, bits, block).reshape(size, -1)[:, :width]
    assert (unpacked(packed, bits, block).reshape(size, -1)[:, :width] == known).all()
    assert found.scales.dtype == np.float32
    assert (found.scales == scales.reshape(size, count)).all()
    if found.zeros is None:
        assert symmetric
    else:
        packed_zeros = pack(found.zeros, bits)
        assert packed_zeros.shape == (size, zeros.size // size)
        assert (unpacked(packed_zeros, bits, count) == unpacked(zeros.reshape(size, -1), bits, count)).all()
    padding = found.codes.reshape(size, -1)[:, width:]
    zero_codes = 2 ** (bits - 1) if found.zeros is None else found.zeros[:, -1:]
    assert (padding == zero_codes).all()


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("width", [256, 100])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_round_trip_is_within_half_a_step(bits: int, symmetric: bool, block: int, width: int) -> None:
    scheme, rows = Blockwise(bits, block, symmetric), weights(33, width, block)
    found = scheme.quantize(rows)
    back = scheme.dequantize(found, width)
    assert back.dtype == np.float32 and back.shape == rows.shape
    steps = np.abs(np.repeat(found.scales, block, axis=1)[:, :width])
    error = np.abs(back.astype(np.float64) - rows)
    if symmetric:  # codes end one step short of the extreme's opposite
        clipped = found.codes.reshape(33, -1)[:, :width] == 2**bits - 1
        assert (error[clipped] <= 1.0001 * steps[clipped]).all()
        error = np.where(clipped, 0, error)
    assert (error <= 0.5001 * steps).all()
    assert not back[1].any() and not back[2, :block].any()


def test_numbers_too_small_for_a_scale_become_zeros() -> None:
    rows = np.full((2, 32), 1e-42, np.float32)
    for bits, symmetric in KINDS:
        scheme = Blockwise(bits, 32, symmetric)
        assert np.abs(scheme.dequantize(scheme.quantize(rows), 32)).max() <= 1e-42
        assert np.abs(scheme.dequantize(scheme.quantize(rows, np.ones(32, np.float32)), 32)).max() <= 1e-42


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize("skew", [0, 1, 3])
def test_search_is_never_worse(bits: int, symmetric: bool, skew: int) -> None:
    random = np.random.default_rng(skew)
    scheme, rows = Blockwise(bits, 32, symmetric), weights(64, 300, 32)
    importance = np.exp(skew * random.standard_normal(300)).astype(np.float32)
    importance[40:60] = 0
    plain, searched = scheme.quantize(rows), scheme.quantize(rows, importance)
    before = weighted_errors(scheme, rows, plain, importance)
    after = weighted_errors(scheme, rows, searched, importance)
    assert (after <= before).all()
    assert not scheme.dequantize(searched, 300)[1].any()


@pytest.mark.parametrize(("symmetric", "bound"), [(True, 0.6), (False, 0.65)])
def test_search_pays_where_few_inputs_matter(symmetric: bool, bound: float) -> None:
    random = np.random.default_rng(0)
    scheme, rows = Blockwise(4, 32, symmetric), random.standard_normal((128, 512), np.float32)
    importance = np.where(random.random(512) < 0.1, 100, 0.1).astype(np.float32)
    before = weighted_errors(scheme, rows, scheme.quantize(rows), importance).sum()
    after = weighted_errors(scheme, rows, scheme.quantize(rows, importance), importance).sum()
    assert after < bound * before
    even = np.ones(512, np.float32)
    gain = weighted_errors(scheme, rows, scheme.quantize(rows, even), even).sum()
    assert gain > bound * weighted_errors(scheme, rows, scheme.quantize(rows), even).sum()  # the skew is what pays


def test_rows_are_quantised_alone() -> None:
    """Row blocks may be of any size: a checkpoint streams."""
    rows, importance = weights(9, 100, 32), np.linspace(0, 5, 100, dtype=np.float32)
    for bits, symmetric in KINDS:
        scheme = Blockwise(bits, 32, symmetric)
        whole, part = scheme.quantize(rows, importance), scheme.quantize(rows[4:6], importance)
        assert (whole.codes[4:6] == part.codes).all() and (whole.scales[4:6] == part.scales).all()
        if whole.zeros is not None and part.zeros is not None:
            assert (whole.zeros[4:6] == part.zeros).all()


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("size", "width"), [(33, 256), (7, 100), (17, 4304), (5, 24)])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_kernel_equals_the_simulation(bits: int, symmetric: bool, block: int, size: int, width: int) -> None:
    scheme, weight = Blockwise(bits, block, symmetric), weights(size, width, block)
    random = np.random.default_rng(block)
    bias = random.standard_normal(size).astype(np.float32)
    importance = random.random(width, np.float32)
    x = random.standard_normal((2, 5, width), np.float32)
    x[1, 2], x[0, 3] = 0, x[0, 3] * 1000
    inputs = [x, x[:1, :2], x[:1, 3:]]
    searched = Linear(MemoryMatrix("c", weight, importance))
    found = run_linear(scheme, [layer(weight, "a"), layer(weight, "b", bias=bias), searched], inputs)
    # A product searches its scales for 4 bits only.
    plain, best = scheme.quantize(weight), scheme.quantize(weight, importance if bits == 4 else None)
    for sent, (product, biased, weighted) in zip(inputs, found, strict=True):
        assert activation_error(product, sent, scheme.dequantize(plain, width)) < ACTIVATIONS
        assert activation_error(weighted, sent, scheme.dequantize(best, width)) < ACTIVATIONS
        assert distance(biased - bias, product) < TOLERANCE
    assert not found[0][0][1, 2].any() and (found[0][1][1, 2] == bias).all()

    if platform.machine() not in ("x86_64", "AMD64"):
        return  # other processors' kernels round activations in their own ways: the bounds above are what holds
    for sent, (product, _, weighted) in zip(inputs, found, strict=True):
        for kernel, blocks in ((product, plain), (weighted, best)):
            expected = simulated(scheme, blocks, sent)
            for index in np.ndindex(*sent.shape[:2]):
                if expected[index].any():
                    assert distance(kernel[index], expected[index]) < TOLERANCE


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_a_row_among_an_even_number_does_not_depend_on_the_others(
    bits: int, symmetric: bool, block: int, threads: int
) -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((133, 300), np.float32), random.standard_normal((2, 129, 300), np.float32)
    louder = x * 1000
    louder[0, 0], louder[1] = x[0, 0], 0
    even = [x[:, :count] for count in (1, 3, 64, 65, 128)]
    inputs = [x, louder, x[::-1, ::-1], *even]
    whole, changed, reversed_, *parts = run_linear(Blockwise(bits, block, symmetric), [layer(weight)], inputs, threads)
    assert (changed[0][0, 0] == whole[0][0, 0]).all()
    assert not (changed[0][0, 1] == whole[0][0, 1]).all()
    assert (reversed_[0][::-1, ::-1] == whole[0]).all()
    for part in parts:
        assert (part[0] == whole[0][:, : part[0].shape[1]]).all()


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_a_matrix_is_read_and_searched_once(bits: int, symmetric: bool) -> None:
    matrix = MemoryMatrix("w", np.ones((7, 64), np.float32), np.ones(64, np.float32))
    run_linear(Blockwise(bits, 32, symmetric), [Linear(matrix)], [np.ones((1, 2, 64), np.float32)])
    assert matrix.reads == ["w"]


def test_not_for_tables() -> None:
    table = MemoryMatrix("table", np.ones((4, 32), np.float32))
    with pytest.raises(NotImplementedError) as caught:
        run_rows(Blockwise(4, 32, False), table, np.zeros((1, 1), np.int64))
    assert str(caught.value) == "table: int4-block32-asymmetric is a scheme for products, not for tables."
