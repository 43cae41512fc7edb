"""Quantised packages as a user meets them: order and spread of scores, and results that do not depend on company."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement_inputs import items, opened, picture, results, results_of
from checkpoint_shapes import TINY_2B, TINY_8B, Shape
from qwen_tokenizer import Task

from quant.agreement import kendall

CLOSE = 1e-5
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


PRECISIONS = {
    "int8": ("int8", 32),
    "int8-portable": ("int8-portable", 32),
    "int4": ("int4", 32),
    "int4-128": ("int4", 128),
}
MODELS: dict[str, tuple[Shape, Task]] = {
    "2B embedding": (TINY_2B, "embedding"),
    "8B embedding": (TINY_8B, "embedding"),
    "2B reranker": (TINY_2B, "reranker"),
    "8B reranker": (TINY_8B, "reranker"),
}
QUICK = {
    ("2B embedding", "int8"),
    ("2B reranker", "int8-portable"),
    ("8B reranker", "int4"),
}


# Where products saturate they do so for every row alike.
@pytest.mark.filterwarnings("ignore:this processor multiplies int8 inexactly:UserWarning")
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.full), 2])
@pytest.mark.parametrize(
    ("model", "precision", "block"),
    [
        pytest.param(
            model, precision, block, id=f"{name}-{kind}", marks=[] if (name, kind) in QUICK else pytest.mark.full
        )
        for name, model in MODELS.items()
        for kind, (precision, block) in PRECISIONS.items()
    ],
)
def test_results_do_not_depend_on_the_batch(
    package: Callable[..., Path], model: tuple[Shape, Task], precision: str, block: int, threads: int
) -> None:
    """Alone, among all at once, in other company and in pieces: texts, pictures, both, short and long."""
    texts = [{"text": "stone " * count} for count in (100, 101, 300)]
    inputs = [*items(), {}, *texts, {"image": picture(30, (96, 96))}]
    folder = package(*model, precision, weights="outliers", block=block)
    usual, large, small = (opened(folder, threads, batch_tokens) for batch_tokens in (1024, 4096, 130))
    alone = np.concatenate([results_of(usual, [each]) for each in inputs])
    assert np.abs(results_of(usual, inputs) - alone).max() <= CLOSE
    assert np.abs(results_of(usual, inputs[:5]) - alone[:5]).max() <= CLOSE
    assert np.abs(results_of(large, inputs[::-1])[::-1] - alone).max() <= CLOSE
    assert np.abs(results_of(small, inputs) - alone).max() <= CLOSE
