"""Scales that move between matrices: bounded, and without effect on the float model."""

import numpy as np
import pytest

from quant.blockwise import Blockwise
from quant.fold import (
    LARGEST,
    SMALLEST,
    SMOOTHING,
    Fold,
    awq_scales,
    bounded,
    largest_by_column,
    shared_scales,
    smoothing_scales,
)
from quant.statistics import InputStatistics

TOLERANCE = 1e-5  # one more rounding on each side, summed over K


def statistics_of(x: np.ndarray) -> InputStatistics:
    """Of x [tokens, K]."""
    return InputStatistics(np.square(x).mean(axis=0), np.abs(x).max(axis=0))


def streamed(values: np.ndarray, fold: Fold) -> np.ndarray:
    """All of `values`, folded in blocks of three rows."""
    starts = range(0, len(values), 3)
    return np.concatenate([fold.apply(values[start : start + 3].copy(), start) for start in starts])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture
def random() -> np.random.Generator:
    """The same numbers in every test."""
    return np.random.default_rng(0)


def test_fold_by_hand() -> None:
    block = np.array([[1, 2], [3, 4]], np.float32)
    fold = Fold(rows=np.array([9, 10, 100], np.float32), columns=np.array([1, -1], np.float32))
    assert fold.apply(block, 1).tolist() == [[10, -20], [300, -400]]
    assert Fold(rows=fold.rows).apply(block, 0).tolist() == [[9, 18], [30, 40]]
    assert Fold(columns=fold.columns).apply(block, 1).tolist() == [[1, -2], [3, -4]]
    assert Fold().apply(block, 1).tolist() == block.tolist()
    assert block.tolist() == [[1, 2], [3, 4]]


def test_bounded_has_geometric_mean_one() -> None:
    assert np.allclose(bounded(np.array([1, 4, 16.0])), [0.25, 1, 4], rtol=1e-6)
    assert bounded(np.full(3, 7.0)).tolist() == [1, 1, 1]
    extreme = bounded(np.array([1e-30, 1, 1, 1e30]))
    assert extreme.dtype == np.float32
    assert extreme.tolist() == [np.float32(0.01), 1, 1, 100]


def test_smoothing_by_hand() -> None:
    """Typical inputs 4 and 1 (√(8 · 2), √(1 · 1)), weights 1 and 4."""
    statistics = InputStatistics(np.array([4, 1], np.float32), np.array([8, 1], np.float32))
    assert np.allclose(smoothing_scales(statistics, np.array([1, 4], np.float32)), [2, 0.5], rtol=1e-6)


def test_smoothing_makes_activations_and_weights_alike(random: np.random.Generator) -> None:
    x = random.standard_normal((50, 64), np.float32) * np.geomspace(0.1, 10, 64, dtype=np.float32)
    weight = random.standard_normal((33, 64), np.float32)
    statistics, largest = statistics_of(x), largest_by_column([weight[:20], weight[20:]])
    assert (largest == np.abs(weight).max(axis=0)).all()
    scales = smoothing_scales(statistics, largest)
    left = statistics.divided(scales)
    typical = np.sqrt(left.largest * np.sqrt(left.mean_square))
    ratio = typical**SMOOTHING / (largest * scales) ** (1 - SMOOTHING)
    assert np.allclose(ratio, ratio[0], rtol=1e-5)


@pytest.mark.parametrize("activation", [0, 1e-30, 1e-3, 1e4, 1e30])
@pytest.mark.parametrize("weight", [0, 1e-30, 1, 1e30])
def test_dead_and_massive_channels_stay_bounded(activation: float, weight: float) -> None:
    largest, weights = np.ones(32, np.float32), np.ones(32, np.float32)
    largest[:3], weights[2:5] = activation, weight
    statistics = InputStatistics(np.square(np.minimum(largest, 1e15)), largest)
    for scales in (
        smoothing_scales(statistics, weights),
        awq_scales(statistics, lambda scales: -float(np.ptp(scales))),
        awq_scales(statistics, lambda scales: float(np.ptp(scales))),
    ):
        assert scales.shape == (32,) and scales.dtype == np.float32
        assert np.isfinite(scales).all()
        assert scales.min() >= np.float32(SMALLEST) and scales.max() <= LARGEST


def test_a_matrix_gives_what_the_next_takes_back(random: np.random.Generator) -> None:
    """up → down: rows of one, columns of the other."""
    x, up, down = (random.standard_normal(shape, np.float32) for shape in ((20, 32), (64, 32), (16, 64)))
    middle = (x @ up.T) * np.geomspace(1e-4, 1e4, 64, dtype=np.float32)
    scales = smoothing_scales(statistics_of(middle), largest_by_column([down]))
    assert scales.max() / scales.min() > 1000
    folded = (x @ streamed(up, Fold(rows=1 / scales)).T) @ streamed(down, Fold(columns=scales)).T
    assert folded.dtype == np.float32
    assert relative(folded, (x @ up.T) @ down.T) < TOLERANCE


def test_a_norm_gives_to_all_its_consumers(random: np.random.Generator) -> None:
    """norm → q, k, v: the norm's weight is a row of its own."""
    x, norm = random.standard_normal((20, 64), np.float32), random.standard_normal((64, 1), np.float32)
    weights = [random.standard_normal((size, 64), np.float32) for size in (32, 8, 8)]
    scales = smoothing_scales(statistics_of(x * norm[:, 0]), largest_by_column(weights))
    gave = streamed(norm, Fold(rows=1 / scales))[:, 0]
    for weight in weights:
        folded = (x * gave) @ streamed(weight, Fold(columns=scales)).T
        assert relative(folded, (x * norm[:, 0]) @ weight.T) < TOLERANCE


def test_folds_follow_each_other() -> None:
    block, rows, columns = np.ones((3, 2), np.float32), np.array([1, 2, 3]), np.array([5, 7])
    for fold in (Fold(rows).then(columns=columns), Fold(columns=columns).then(rows), Fold(rows, columns).then()):
        assert fold.apply(block, 0).tolist() == [[5, 7], [10, 14], [15, 21]]
    assert Fold(rows, columns).then(rows, columns).apply(block[:2], 1).tolist() == [[100, 196], [225, 441]]
    assert Fold().then().apply(block, 0) is block


def test_a_producer_gets_the_largest_it_is_asked_for() -> None:
    scales = np.array([1, 2, 30, 4, 5, 6], np.float32)
    found = shared_scales(scales, np.array([0, 1, 0, 1, 2, 2]))
    assert found.dtype == np.float32
    assert found.tolist() == [30, 4, 6]
    assert shared_scales(scales, np.arange(6)).tolist() == scales.tolist()


def test_value_heads_share_scales_with_their_query_heads(random: np.random.Generator) -> None:
    """v → o: two value heads of four channels feed six query heads, three each, head after head."""
    heads, groups, size = 2, 3, 4
    x, v = random.standard_normal((20, 32), np.float32), random.standard_normal((heads * size, 32), np.float32)
    o = random.standard_normal((16, heads * groups * size), np.float32)
    attention = random.random((heads * groups, 20, 20), np.float32)

    def output(v: np.ndarray, o: np.ndarray) -> np.ndarray:
        values = (x @ v.T).reshape(20, heads, size)
        seen = [attention[head] @ values[:, head // groups] for head in range(heads * groups)]
        result: np.ndarray = np.concatenate(seen, axis=1) @ o.T
        return result

    producer_of = np.arange(heads * size).reshape(heads, 1, size).repeat(groups, axis=1).reshape(-1)
    wanted = bounded(np.exp(random.standard_normal(len(producer_of))))
    gave = shared_scales(wanted, producer_of)
    took = gave[producer_of]
    assert (took >= wanted).all() and gave.max() <= wanted.max() and gave.min() >= wanted.min()
    assert relative(output(streamed(v, Fold(1 / gave)), streamed(o, Fold(columns=took))), output(v, o)) < TOLERANCE


def test_awq_takes_the_best_exponent() -> None:
    statistics = InputStatistics(np.array([16, 1], np.float32), np.array([4, 1], np.float32))
    assert awq_scales(statistics, lambda scales: 0.0).tolist() == [1, 1]  # nothing to gain: nothing moved
    assert np.allclose(awq_scales(statistics, lambda scales: -float(scales[0])), [2, 0.5], rtol=1e-6)
    found = awq_scales(statistics, lambda scales: abs(float(scales[0]) - 2**0.5))
    assert np.allclose(found, [2**0.5, 2**-0.5], rtol=1e-6)


@pytest.mark.parametrize(("skew", "bound"), [(0, 0.95), (1.5, 0.6)])
def test_awq_is_never_worse_than_ones(random: np.random.Generator, skew: float, bound: float) -> None:
    """The error of a 4-bit product on the calibration's own inputs."""
    x = random.standard_normal((40, 128), np.float32)
    x *= np.exp(skew * random.standard_normal(128)).astype(np.float32)
    weight, scheme = random.standard_normal((32, 128), np.float32), Blockwise(4, 32, False)

    def error(scales: np.ndarray) -> float:
        folded = weight * scales
        back = scheme.dequantize(scheme.quantize(folded), 128) / scales
        return float(np.square(x @ (back - weight).T).sum())

    chosen, ones = error(awq_scales(statistics_of(x), error)), error(np.ones(128, np.float32))
    assert chosen <= bound * ones
