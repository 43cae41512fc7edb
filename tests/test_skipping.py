"""`on_error="skip"`: one bad item does not lose the others, and what was lost is said."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from refusals import refusal
from video_files import write_video

from runtime import MissingExtraError, Qwen3VLEmbedder, Qwen3VLReranker, Skipped

Packages = Callable[[Shape, Task], Path]
A = {"text": "a"}
PICTURE = Image.new("RGB", (64, 64), "teal")


@pytest.fixture(scope="module")
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


def test_without_a_list_skipping_warns_once(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    with pytest.warns(UserWarning) as caught:
        rows = embedder.process([None, A, 3], on_error="skip")
    assert [str(each.message)[:86] for each in caught] == [
        "2 of 3 inputs were left out (NaN in the result; pass skipped=[] to collect why), the f"
    ]
    assert caught[0].filename == __file__
    assert np.isnan(rows).all(axis=1).tolist() == [True, False, True]
    with pytest.warns(UserWarning, match=r"1 of 1 documents were left out .* the first: documents\[0\] is None"):
        reranker.process({"query": A, "documents": [None]}, on_error="skip")


def test_a_batch_without_one_good_input(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    skipped: list[Skipped] = []
    assert np.isnan(embedder.process([None] * 9, on_error="skip", skipped=skipped)).all()
    assert [each.index for each in skipped] == list(range(9))
    assert np.isnan(reranker.process({"query": A, "documents": [1, 2]}, on_error="skip", skipped=skipped)).all()
    assert len(skipped) == 11


def test_on_error_is_checked(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    message = "on_error is 'ignore', expected 'raise' or 'skip'."
    assert refusal(lambda: embedder.process([A], on_error="ignore")) == message  # type: ignore[arg-type]
    request = {"query": A, "documents": [A]}
    assert refusal(lambda: reranker.process(request, on_error="ignore")) == message  # type: ignore[arg-type]


def test_a_text_that_looks_like_a_picture_warns_once(package: Packages) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"))
    with pytest.warns(UserWarning) as caught:
        row = embedder.process([A, {"text": "https://example.com/car.png?size=9"}])[1]
    assert [str(each.message) for each in caught] == [
        "inputs[1]: text 'https://example.com/car.png?size=9' looks like a picture's path or address and is embedded "
        "as text; pass it as 'image' to embed the picture."
    ]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = embedder.process([{"text": "https://example.com/car.png?size=9"}, {"text": "cat.jpg"}])
    assert np.abs(again[0] - row).max() <= 1e-6


def test_without_pyav_only_videos_are_lost(
    tmp_path: Path, embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_video(tmp_path / "clip.mp4", (64, 64), 4)
    monkeypatch.setitem(sys.modules, "av", None)  # what Python itself does for a blocked import
    items = [
        A,
        {"video": clip},
        {"video": [PICTURE, PICTURE]},
        {"image": PICTURE},
    ]
    skipped: list[Skipped] = []
    rows = embedder.process(items, on_error="skip", skipped=skipped)
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False, False]
    with pytest.raises(MissingExtraError) as caught:
        embedder.process(items)
    assert (
        str(caught.value)
        == str(skipped[0].error)
        == ('inputs[1]: video: video files need PyAV, which is not installed; run pip install "qwen3vl-edge[video]".')
    )
