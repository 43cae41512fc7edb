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
from bench.evidence_packages import FORMS, Form, export_form

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
