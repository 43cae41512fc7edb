"""How well two sets of vectors or scores agree: what quantisation cost, in numbers that mean something."""

from dataclasses import dataclass

import numpy as np

TOP = 10


@dataclass(frozen=True)
class Agreement:
    """Of float32 and quantised results for the same inputs.

    Embeddings [N, D]: `cosine` and `centred` (the mean vector taken off first) as mean and minimum over inputs,
    `overlap` of each input's nearest TOP. Scores [N] have cosine 1 by definition of their sign, so `centred` is their
    correlation and `overlap` that of the best TOP. `kendall` compares the order of all pairs, `spread` the ratio of
    the standard deviations of similarities or scores, `largest` is the greatest difference.
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
    centred = (_unit(one - one.mean(axis=0)) * _unit(other - other.mean(axis=0))).sum(axis=1)
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
        spread=_ratio(similar_found[upper].std(), similar[upper].std()),
        largest=float(np.abs(one - other).max()),
    )


def score_agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Two float arrays [N] of logits; `largest` and `spread` are of the probabilities they stand for."""
    one, other = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    centred = float(_unit((one - one.mean())[None])[0] @ _unit((other - other.mean())[None])[0])
    scores, scores_found = 1 / (1 + np.exp(-one)), 1 / (1 + np.exp(-other))
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
        spread=_ratio(scores_found.std(), scores.std()),
        largest=float(np.abs(scores - scores_found).max()),
    )


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's τ of two arrays [N]: pairs in the same order less pairs in the other, over all pairs that differ."""
    if len(one) < 2:
        return 1.0
    first, second = np.triu_indices(len(one), 1)
    signs = np.sign(one[first] - one[second]) * np.sign(other[first] - other[second])
    return _ratio(signs.sum(), np.abs(signs).sum())


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


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 1.0
