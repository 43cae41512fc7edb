"""The small trained pair on drawings that it was not trained on: it finds them, and quantisation leaves the order.

bench/evidence.py prints the whole table; here every fourth picture is enough to see a gate fail.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.evidence import (
    RERANKED,
    Corpus,
    Embedded,
    best,
    embed,
    overlap,
    read_corpus,
    recall,
    rerank,
    stored_similarity,
)
from bench.evidence_packages import FORMS, export_form
from quant.agreement import kendall
from runtime.manifest import Task

COUNT, EVERY = 413, 10
FORM = {form.name: form for form in FORMS}
Exported = Callable[[str, Task], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("evidence")
    return lambda name, task: export_form(FORM[name], task, folder)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(COUNT)


@pytest.fixture(scope="module")
def exact(exported: Exported, corpus: Corpus) -> Embedded:
    return embed(exported("`--fp32`", "embedding"), corpus)


@pytest.fixture(scope="module")
def candidates(exact: Embedded) -> np.ndarray:
    return best(exact.similarity, RERANKED)


@pytest.fixture(scope="module")
def scores(exported: Exported, corpus: Corpus, candidates: np.ndarray) -> np.ndarray:
    return rerank(exported("`--fp32`", "reranker"), corpus, candidates, EVERY)


def test_it_finds_drawings_of_an_unseen_style(exact: Embedded) -> None:
    first, ten, _ = recall(exact.similarity)
    assert first > 0.3 and ten > 0.7  # chance: 0.002 and 0.024


def test_reranking_finds_more_than_recall_alone(exact: Embedded, candidates: np.ndarray, scores: np.ndarray) -> None:
    right = np.arange(len(candidates))[::EVERY]
    recalled = (candidates[::EVERY, 0] == right).mean()
    reranked = (candidates[::EVERY][np.arange(len(scores)), scores.argmax(axis=1)] == right).mean()
    assert reranked > recalled


@pytest.mark.parametrize(
    ("name", "gate"),
    [("`--int8`", 0.985), ("`--int8 --portable`", 0.985), ("`--int4 --block 32`", 0.93), ("`--int4`, block 16", 0.93)],
)
def test_quantisation_keeps_the_ten_best(
    exported: Exported, corpus: Corpus, exact: Embedded, name: str, gate: float
) -> None:
    found = embed(exported(name, "embedding"), corpus)
    assert overlap(found.similarity, exact.similarity) >= gate


def test_quantisation_keeps_the_order_of_reranking(
    exported: Exported, corpus: Corpus, candidates: np.ndarray, scores: np.ndarray
) -> None:
    found = rerank(exported("`--int8`", "reranker"), corpus, candidates, EVERY)
    assert np.mean([kendall(one, other) for one, other in zip(scores, found, strict=True)]) >= 0.95


def test_int8_vectors_keep_the_ten_best(exact: Embedded) -> None:
    assert overlap(stored_similarity(exact, "int8", 128), exact.similarity) >= 0.985
