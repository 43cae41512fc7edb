"""The small trained embedder on drawings that it was not trained on: it finds them, and quantisation leaves the order.

bench/evidence.py prints the whole table; here every fourth picture is enough to see a gate fail.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import evidence_reranking
from bench.evidence import (
    Corpus,
    Embedded,
    best,
    embed,
    overlap,
    read_corpus,
    recall,
    stored_similarity,
)
from bench.evidence_packages import FORMS, RERANKER_FORMS, export_form
from runtime import Qwen3VLReranker

COUNT = 413
FORM = {form.name: form for form in FORMS}
Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("evidence")
    return lambda name: export_form(FORM[name], folder)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(COUNT)


@pytest.fixture(scope="module")
def exact(exported: Exported, corpus: Corpus) -> Embedded:
    return embed(exported("`--fp32`"), corpus)


def test_it_finds_drawings_of_an_unseen_style(exact: Embedded) -> None:
    first, ten, _ = recall(exact.similarity)
    assert first > 0.3 and ten > 0.6  # chance: 0.002 and 0.024


@pytest.mark.parametrize(
    ("name", "gate"),
    [("`--int8`", 0.98), ("`--int8 --portable`", 0.985), ("`--int4 --block 32`", 0.94), ("`--int4`, block 8", 0.95)],
)
def test_quantisation_keeps_the_ten_best(
    exported: Exported, corpus: Corpus, exact: Embedded, name: str, gate: float
) -> None:
    found = embed(exported(name), corpus)
    assert overlap(found.similarity, exact.similarity) >= gate


def test_int8_vectors_keep_the_ten_best(exact: Embedded) -> None:
    assert overlap(stored_similarity(exact, "int8", 256), exact.similarity) >= 0.99


def test_int8_keeps_the_reranked_order(tmp_path: Path, exact: Embedded) -> None:
    corpus = read_corpus(COUNT, evidence_reranking.SIDE)
    chosen = np.arange(0, COUNT, 8)
    candidates = best(exact.similarity, evidence_reranking.RECALLED)[chosen]
    rerankers = [Qwen3VLReranker(export_form(form, tmp_path)) for form in RERANKER_FORMS[:2]]
    one, other = (evidence_reranking.reranked(each, corpus, chosen, candidates) for each in rerankers)
    assert evidence_reranking.same_order(one, other) >= 0.95
    assert evidence_reranking.hits(one, chosen, candidates) > (candidates[:, 0] == chosen).mean()
