"""Copies of an open embedder or reranker, and why there are no pickles of one."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import Qwen3VLEmbedder, Qwen3VLReranker

Packages = Callable[[Shape, Task], Path]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_package_and_nothing_else(
    copied: Callable[[Qwen3VLEmbedder], Qwen3VLEmbedder], package: Packages
) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"))
    twin = copied(embedder)
    assert twin is not embedder
    assert twin.package is embedder.package
    assert np.array_equal(twin.process([{"text": "a"}]), embedder.process([{"text": "a"}]))
    twin.dimensions = 8
    assert embedder.process([{"text": "a"}]).shape == (1, 64)


def test_a_pickle_is_refused_with_a_sentence(package: Packages) -> None:
    for model in (Qwen3VLEmbedder(package(TINY_2B, "embedding")), Qwen3VLReranker(package(TINY_2B, "reranker"))):
        with pytest.raises(TypeError, match=f"a {type(model).__name__} .* cannot be pickled; send the package's path"):
            pickle.dumps(model)
