"""One embedder or reranker shared by several threads gives what it gives one thread."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from tqdm import tqdm

from runtime import InputError, Qwen3VLEmbedder, Qwen3VLReranker
from runtime.graphs.decoder import Prompt
from runtime.prompts.encode import TokenSequence

Packages = Callable[[Shape, Task], Path]
CLOSE = 1e-6
THREADS, CALLS = 4, 8


def content(seed: int) -> dict[str, Any]:
    """A text, a picture, both or (seldom, they are slow) frames, of a size that depends on `seed`."""
    generator = np.random.default_rng(seed)
    size = tuple(int(side) for side in generator.integers(40, 100, 2))
    pictures = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(2)]
    kinds: list[dict[str, Any]] = [
        {"text": f"text {seed} " * (1 + seed)},
        {"image": pictures[0]},
        {"image": pictures, "text": f"{seed}"},
        {"video": pictures},
    ]
    return kinds[3 if seed % 16 == 15 else seed % 3]


def test_threads_share_an_embedder(package: Packages) -> None:
    folder = package(TINY_2B, "embedding")
    calls = [[content(2 * call + index) for index in range(2)] for call in range(THREADS * CALLS)]
    alone = Qwen3VLEmbedder(folder)
    serial = [alone.process(items) for items in calls]
    shared = Qwen3VLEmbedder(folder)  # its vision encoder is first opened by whichever thread comes first
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(shared.process, calls))
    for expected, rows in zip(serial, together, strict=True):
        assert np.abs(rows - expected).max() <= CLOSE


def test_threads_share_a_reranker(package: Packages) -> None:
    reranker = Qwen3VLReranker(package(TINY_2B, "reranker"))
    requests = [
        {"query": content(call), "documents": [content(call + 1), content(call + 2)]} for call in range(THREADS * CALLS)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(reranker.process, requests))
    for request, scores in zip(requests, together, strict=True):
        assert scores == pytest.approx(reranker.process(request), abs=CLOSE)


def test_an_error_stays_in_its_own_call(package: Packages) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"))
    good: list[dict[str, Any]] = [{"text": "a"}, content(1)]
    bad: list[dict[str, Any]] = [{"text": "a"}, {"image": b"no picture"}]
    expected = embedder.process(good)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [(items, pool.submit(embedder.process, items)) for items in [good, bad] * CALLS]
        for items, future in futures:
            if items is bad:
                assert isinstance(future.exception(), InputError)
            else:
                assert np.abs(future.result() - expected).max() <= CLOSE


def test_without_a_bar_nobody_waits_for_tqdm(package: Packages) -> None:
    """Its lock is one for all threads; where another one holds it while the process forks, it is never free again."""
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"))
    reranker = Qwen3VLReranker(package(TINY_2B, "reranker"))
    request = {"query": {"text": "a"}, "documents": [{"text": "b"}]}
    with ThreadPoolExecutor(1) as pool, tqdm.get_lock():
        assert len(pool.submit(embedder.process, [{"text": "a"}]).result(timeout=30)) == 1
        assert len(pool.submit(reranker.process, request).result(timeout=30)) == 1


def test_the_positions_of_two_prompts_are_computed_at_once() -> None:
    """As above."""
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(TokenSequence):
        def __getattribute__(self, name: str) -> Any:
            if name == "blocks":
                begun.set()
                goes_on.wait(timeout=60)
            return super().__getattribute__(name)

    ids, is_visual = np.arange(3), np.zeros(3, np.bool_)
    slow, quick = Prompt(Slow(ids, is_visual, ())), Prompt(TokenSequence(ids, is_visual, ()))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: slow.positions)
        begun.wait()
        try:
            assert pool.submit(lambda: quick.positions).result(timeout=10).shape == (3, 3)
            assert not first.done()
        finally:
            goes_on.set()
