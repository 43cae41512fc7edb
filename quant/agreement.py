"""How well two sets of vectors or scores agree: what quantisation cost, in numbers that mean something."""

from dataclasses import dataclass

import numpy as np

from runtime.errors import InputError

TOP = 10
FEWEST_LOGITS = 8  # of one the correlation is 1, of two 1 or -1, whatever they are


@dataclass(frozen=True)
class Agreement:
    """Of float32 and quantised results for the same inputs; what compares inputs with each other is 1 for equal ones.

    Embeddings [N, D]: `cosine` and `centred` (the mean vector taken off first) as mean and minimum over inputs,
    `overlap` of each input's nearest TOP. Scores [N]: all four are the correlation of the logits, `overlap` is that of
    the best TOP. `kendall` compares the order of all pairs, `spread` is the ratio of the standard deviations of
    similarities or scores, `largest` the greatest difference.
    """

    count: int
    cosine_mean: float
    cosine_minimum: float
    centred_mean: float
    centred_minimum: float
    overlap: float
    kendall: float
    spread: float
    largest: float


def embedding_agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Two float arrays [N, D], normalised here."""
    one, other = _unit(expected), _unit(found)
    cosines = (one * other).sum(axis=1)
    centred = _centred_cosines(one, other)
    similar, similar_found = one @ one.T, other @ other.T
    upper = np.triu_indices(len(one), 1)
    return Agreement(
        count=len(one),
        cosine_mean=float(cosines.mean()),
        cosine_minimum=float(cosines.min()),
        centred_mean=float(centred.mean()),
        centred_minimum=float(centred.min()),
        overlap=_overlap(similar, similar_found),
        kendall=kendall(similar[upper], similar_found[upper]),
        spread=_spread(similar_found[upper], similar[upper]),
        largest=float(np.abs(one - other).max()),
    )


def score_agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Two float arrays [N] of logits; `largest` and `spread` are of the probabilities they stand for."""
    one, other = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    centred = float(_centred_cosines(one[:, None], other[:, None], axis=0)[0])
    scores, scores_found = (np.tanh(one / 2) + 1) / 2, (np.tanh(other / 2) + 1) / 2  # sigmoid without an overflow
    best = min(TOP, max(len(one) // 2, 1))
    shared = set(np.argsort(-one)[:best]) & set(np.argsort(-other)[:best])
    return Agreement(
        count=len(one),
        cosine_mean=centred,
        cosine_minimum=centred,
        centred_mean=centred,
        centred_minimum=centred,
        overlap=len(shared) / best,
        kendall=kendall(one, other),
        spread=_spread(scores_found, scores),
        largest=float(np.abs(scores - scores_found).max()),
    )


def require_cosine(least: float) -> None:
    """InputError for what no cosine can be compared with."""
    if not -1 <= least <= 1:  # NaN neither
        raise InputError(f"--min-cosine is {least}, expected a number from -1 to 1, such as 0.995.")


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's τ of two arrays [N]: pairs in the same order less pairs in the other, over all pairs that differ.

    In O(N log² N): the similarities of a thousand inputs are half a million numbers.
    """
    first, second = (np.unique(each, return_inverse=True)[1].astype(np.int64) for each in (one, other))
    both = first * max(len(first), 1) + second
    differing = _num_pairs(len(one)) - _num_tied(first) - _num_tied(second) + _num_tied(both)
    reversed_pairs = _num_inversions(second[np.lexsort((second, first))])
    return _ratio(differing - 2 * reversed_pairs, differing)


def _num_pairs(count: int) -> int:
    return count * (count - 1) // 2


def _num_tied(ranks: np.ndarray) -> int:
    return sum(_num_pairs(int(count)) for count in np.unique(ranks, return_counts=True)[1] if count > 1)


def _num_inversions(ranks: np.ndarray) -> int:
    """Pairs i < j with ranks[i] > ranks[j], of int64 [N] in 0 … N − 1: merge sort's count, a width at a time."""
    count, width, total = len(ranks), 1, 0
    position = np.arange(count)
    while width < count:
        block, right = position // (2 * width), position // width % 2 == 1
        keys = block * count + ranks
        left = np.sort(keys[~right])
        ends = np.searchsorted(left, (block[right] + 1) * count)  # the left half of the same block ends here
        total += int((ends - np.searchsorted(left, keys[right], side="right")).sum())
        width *= 2
    return total


def _overlap(similar: np.ndarray, similar_found: np.ndarray) -> float:
    """Mean share of each row's nearest TOP (half of the others where there are few) that both agree on."""
    count = len(similar)
    nearest = min(TOP, max((count - 1) // 2, 1))
    if count < 2:
        return 1.0
    shares = []
    for row in range(count):
        others = np.delete(np.arange(count), row)
        one = others[np.argsort(-similar[row, others])[:nearest]]
        other = others[np.argsort(-similar_found[row, others])[:nearest]]
        shares.append(len(set(one) & set(other)) / nearest)
    return float(np.mean(shares))


def _centred_cosines(one: np.ndarray, other: np.ndarray, axis: int = 1) -> np.ndarray:
    """Cosines along `axis` of [N, D] after the mean row is taken off; 1 where rows are equal and nothing is left."""
    if (one == one[:1]).all() and (other == other[:1]).all():
        return np.ones(one.shape[1 - axis])
    centred, centred_other = one - one.mean(axis=0), other - other.mean(axis=0)
    cosines: np.ndarray = (_unit(centred, axis) * _unit(centred_other, axis)).sum(axis=axis)
    return cosines


def _unit(rows: np.ndarray, axis: int = 1) -> np.ndarray:
    rows = rows.astype(np.float64)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=axis, keepdims=True), 1e-12)
    return unit


def _spread(found: np.ndarray, expected: np.ndarray) -> float:
    """Ratio of standard deviations; 1 of fewer than two values."""
    return _ratio(found.std(), expected.std()) if len(expected) > 1 else 1.0


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 1.0
