"""The figures of agreement, against examples worked out by hand and against counting every pair."""

import numpy as np
import pytest

from quant.agreement import embedding_agreement, kendall, score_agreement

TOLERANCE = 1e-12
OF_SEVERAL = ("centred_mean", "centred_minimum", "overlap", "kendall", "spread")


def counted(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau pair by pair."""
    signs = [
        np.sign(one[i] - one[j]) * np.sign(other[i] - other[j]) for i in range(len(one)) for j in range(i + 1, len(one))
    ]
    return sum(signs) / sum(map(abs, signs))


def test_equal_results_agree_wholly() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8))
    found = embedding_agreement(rows, 3 * rows)  # lengths do not matter
    assert (found.count, found.overlap, found.kendall, found.largest) == (30, 1, 1, pytest.approx(0, abs=TOLERANCE))
    for name in ("cosine_mean", "cosine_minimum", "centred_mean", "centred_minimum", "spread"):
        assert getattr(found, name) == pytest.approx(1, abs=TOLERANCE)
    scores = score_agreement(rows[:, 0], rows[:, 0])
    assert (scores.overlap, scores.kendall, scores.spread, scores.largest) == (1, 1, 1, 0)
    assert scores.cosine_mean == scores.centred_minimum == pytest.approx(1, abs=TOLERANCE)


def test_cosines_are_those_of_each_input() -> None:
    found = embedding_agreement(np.array([[1.0, 0], [0, 1]]), np.array([[2.0, 0], [3, 0]]))
    assert (found.cosine_mean, found.cosine_minimum, found.largest) == (0.5, 0, 1)


def test_centring_shows_what_a_shared_direction_hides() -> None:
    expected = np.array([[100.0, 1], [100, -1]])
    found = embedding_agreement(expected, expected[::-1])
    assert found.cosine_minimum > 0.999
    assert found.centred_mean == pytest.approx(-1)


def test_spread_is_that_of_the_similarities() -> None:
    angles = np.array([0, 0.3, 0.6])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    closer = np.stack([np.cos(angles / 2), np.sin(angles / 2)], axis=1)
    similar = np.cos([0.3, 0.6, 0.3]).std(), np.cos([0.15, 0.3, 0.15]).std()
    assert embedding_agreement(rows, closer).spread == pytest.approx(similar[1] / similar[0])


def test_overlap_is_that_of_the_nearest() -> None:
    def at(*degrees: float) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)

    # Of four inputs one neighbour counts: only that of the third changes.
    assert embedding_agreement(at(0, 10, 80, 100), at(0, 10, 40, 100)).overlap == 0.75
    scores = np.arange(40.0)
    swapped = scores.copy()
    swapped[[0, 35]] = swapped[[35, 0]]  # one of the best ten goes
    assert score_agreement(scores, swapped).overlap == 0.9


def test_equal_inputs_have_no_order_to_lose() -> None:
    embedding = embedding_agreement(*np.eye(2)[:, None].repeat(26, axis=1))
    for found in (embedding, score_agreement(np.full(10, 3.3), np.full(10, 3.1))):
        assert [getattr(found, name) for name in OF_SEVERAL] == [1] * len(OF_SEVERAL)


def test_order_of_pairs() -> None:
    assert kendall(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(1 / 3)
    assert kendall(np.array([1, 1, 2]), np.array([5, 6, 7])) == 1  # the tied pair has no order to keep
    assert kendall(np.array([1, 1]), np.array([1, 2])) == 1
    for size in (2, 3, 7, 8, 33):
        for seed in range(5):
            random = np.random.default_rng([size, seed])
            one, other = random.integers(0, size // 2 + 2, (2, size)) / 4
            if len({*one}) > 1 and len({*other}) > 1 and counted_pairs(one, other):
                assert kendall(one, other) == pytest.approx(counted(one, other))


def counted_pairs(one: np.ndarray, other: np.ndarray) -> int:
    return sum(one[i] != one[j] and other[i] != other[j] for i in range(len(one)) for j in range(i))


def test_half_a_million_similarities_are_no_problem() -> None:
    one = np.random.default_rng(0).standard_normal(500_000)
    assert kendall(one, np.exp(one)) == 1
    assert kendall(one, -one) == -1


def test_scores_are_compared_as_probabilities() -> None:
    one, other = np.array([-1.0, 0, 2]), np.array([-1.0, 1, 2])
    found = score_agreement(one, other)
    assert found.largest == pytest.approx(1 / (1 + np.exp(-1)) - 0.5)
    assert found.cosine_mean == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert found.kendall == 1
    assert score_agreement(one, -one).cosine_mean == pytest.approx(-1)


def test_large_logits_do_not_overflow() -> None:
    assert score_agreement(np.array([-2e3, 2e3]), np.array([-3e3, 1e3])).largest == 0


def test_one_input_has_nothing_to_be_compared_with() -> None:
    embedding = embedding_agreement(np.array([[1.0, 0]]), np.array([[1.0, 1]]))
    assert embedding.cosine_mean == embedding.cosine_minimum == pytest.approx(0.5**0.5)
    score = score_agreement(np.array([1.0]), np.array([2.0]))
    assert score.largest > 0.1
    for found in (embedding, score):
        assert [getattr(found, name) for name in OF_SEVERAL] == [1] * len(OF_SEVERAL)
