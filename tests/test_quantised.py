"""Quantised packages as a user meets them: order and spread of scores, and results that do not depend on company."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement_inputs import items, picture, results
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from qwen_tokenizer import Task

from quant.agreement import kendall

CLOSE = 1e-5
# The kernel of block products takes rows in pairs and adds up a row left over in another order: the last digit can
# move an activation of the next product to a neighbouring code. Measured: 0 to 3 of 19 inputs differ at all, by at
# most a third of what quantising costs.
MOSTLY = 0.75
# Scores that are nearer to each other than this in float32 (probabilities) may change places.
NOISE = {"int8": 0.01, "int8-portable": 0.01, "int4": 0.05}
SPREAD = {"int8": 0.1, "int8-portable": 0.1, "int4": 0.35}
SHAPES = pytest.mark.parametrize(
    "shape", [pytest.param(TINY_8B, id="8B"), pytest.param(TINY_2B, id="2B", marks=pytest.mark.full)]
)
PRECISIONS = pytest.mark.parametrize("precision", ["int8", "int8-portable", "int4"])


def scores(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = 1 / (1 + np.exp(-logits))
    return probabilities


@SHAPES
@PRECISIONS
def test_scores_keep_their_order_and_spread(package: Callable[..., Path], shape: Shape, precision: str) -> None:
    documents = [*items(), *({"image": picture(seed, (64, 96))} for seed in range(20, 28))]
    expected = scores(results(package(shape, "reranker", weights="outliers"), documents))
    found = scores(results(package(shape, "reranker", precision, weights="outliers"), documents))
    one, other = np.triu_indices(len(documents), 1)
    apart = np.abs(expected[one] - expected[other]) > NOISE[precision]
    same = np.sign(expected[one] - expected[other]) == np.sign(found[one] - found[other])
    assert apart.mean() > 0.4
    assert 2 * same[apart].mean() - 1 >= 0.9  # Kendall's τ of the pairs that differ
    assert kendall(expected, found) >= (0.6 if precision == "int4" else 0.9)
    assert abs(found.std() / expected.std() - 1) <= SPREAD[precision]


@PRECISIONS
@pytest.mark.parametrize(
    ("shape", "task"),
    [
        pytest.param(TINY_2B, "embedding", id="2B embedding"),
        pytest.param(TINY_8B, "reranker", id="8B reranker"),
        pytest.param(TINY_8B, "embedding", id="8B embedding", marks=pytest.mark.full),
        pytest.param(TINY_2B, "reranker", id="2B reranker", marks=pytest.mark.full),
    ],
)
def test_results_do_not_depend_on_the_batch(
    package: Callable[..., Path], shape: Shape, task: Task, precision: str
) -> None:
    """Alone, among all at once, and in other company: texts, pictures, both, short and long."""
    inputs = [*items(), {}, {"text": "stone " * 300}]
    folder = package(shape, task, precision, weights="outliers")
    alone = np.concatenate([results(folder, [each]) for each in inputs])
    cost = np.abs(alone - results(package(shape, task, weights="outliers"), inputs)).max()
    for found in (results(folder, inputs), results(folder, inputs[:5]), results(folder, inputs[::-1])[::-1]):
        difference = np.abs(found - alone[: len(found)]).reshape(len(found), -1).max(axis=1)
        if precision == "int8":
            assert difference.max() <= CLOSE
        else:
            assert (difference <= CLOSE).mean() >= MOSTLY and difference.max() <= cost
