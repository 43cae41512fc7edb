"""What calibration keeps of a matrix's input."""

import numpy as np

from quant.statistics import Accumulator, InputStatistics


def test_by_hand() -> None:
    accumulator = Accumulator()
    accumulator.add("a", np.array([4, 0], np.float32), np.array([2, 0], np.float32), 1)
    accumulator.add("b", np.array([9], np.float32), np.array([3], np.float32), 2)
    accumulator.add("a", np.array([8, 6], np.float32), np.array([1, 5], np.float32), 3)
    found = accumulator.statistics()
    assert list(found) == ["a", "b"]
    assert found["a"].mean_square.tolist() == [3, 1.5]
    assert found["a"].largest.tolist() == [2, 5]
    assert found["b"].mean_square.tolist() == [4.5]
    assert found["a"].mean_square.dtype == found["a"].largest.dtype == np.float32


def test_runs_add_up_to_one() -> None:
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((50, 16), np.float32), random.random(50, np.float32)
    accumulator = Accumulator()
    for part in (slice(0, 7), slice(7, 8), slice(8, 50)):
        squares = (np.square(x[part]) * weights[part, None]).sum(axis=0)
        accumulator.add("w", squares, np.abs(x[part]).max(axis=0), float(weights[part].sum()))
    found = accumulator.statistics()["w"]
    expected = np.average(np.square(x.astype(np.float64)), axis=0, weights=weights)
    assert np.allclose(found.mean_square, expected, rtol=1e-6, atol=0)
    assert (found.largest == np.abs(x).max(axis=0)).all()


def test_weights_make_texts_and_pictures_count_alike() -> None:
    accumulator = Accumulator()
    accumulator.add("w", np.array([1 * 1.0]), np.array([1], np.float32), 1)  # one text token of 1
    accumulator.add("w", np.array([500 * 3.0**2 / 500]), np.array([3], np.float32), 1)  # 500 picture tokens of 3
    assert accumulator.statistics()["w"].mean_square.tolist() == [5]


def test_a_large_run_does_not_drown_small_ones() -> None:
    accumulator = Accumulator()
    for square in (2.0**24, *[1.0] * 8):  # float32 would lose every 1
        accumulator.add("w", np.array([square], np.float32), np.array([1], np.float32), 2 if square > 1 else 0)
    assert accumulator.statistics()["w"].mean_square.tolist() == [2.0**23 + 4]


def test_the_callers_arrays_are_its_own() -> None:
    accumulator, squares, largest = Accumulator(), np.ones(3, np.float32), np.ones(3, np.float32)
    accumulator.add("w", squares, largest, 1)
    accumulator.add("w", 9 * squares, 3 * largest, 1)
    assert squares.tolist() == largest.tolist() == [1, 1, 1]
    squares[:], largest[:] = 100, 100
    assert accumulator.statistics()["w"].mean_square.tolist() == [5, 5, 5]
    assert accumulator.statistics()["w"].largest.tolist() == [3, 3, 3]


def test_statistics_are_a_snapshot() -> None:
    accumulator = Accumulator()
    accumulator.add("w", np.ones(2, np.float32), np.ones(2, np.float32), 1)
    before = accumulator.statistics()["w"]
    accumulator.add("w", np.full(2, 9, np.float32), np.full(2, 3, np.float32), 1)
    assert before.mean_square.tolist() == before.largest.tolist() == [1, 1]


def test_divided_is_what_a_fold_leaves() -> None:
    random = np.random.default_rng(0)
    x, scales = random.standard_normal((50, 16), np.float32), np.geomspace(0.01, 100, 16, dtype=np.float32)
    found = InputStatistics(np.square(x).mean(axis=0), np.abs(x).max(axis=0)).divided(scales)
    assert np.allclose(found.mean_square, np.square(x / scales).mean(axis=0), rtol=1e-5, atol=0)
    assert np.allclose(found.largest, np.abs(x / scales).max(axis=0), rtol=1e-6, atol=0)
    assert found.mean_square.dtype == found.largest.dtype == np.float32
