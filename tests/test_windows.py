"""Streams and repeated pictures: a bounded number of inputs in memory, each picture's pixels encoded once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import InputError, Qwen3VLEmbedder, Qwen3VLReranker, Skipped
from runtime.graphs.vision import SeenVisuals, VisionEncoder, VisualFeatures
from runtime.graphs.windows import WINDOW_CALLS, WINDOW_INPUTS, Entry, windows
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence

Packages = Callable[[Shape, Task], Path]
CLOSE = 1e-6
TEXTS: list[dict[str, Any]] = [{"text": f"{number} " + "stone " * (number % 17)} for number in range(60)]


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(package: Packages) -> Path:
    return package(TINY_2B, "embedding")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(folder, batch_tokens=128)


def entry(index: int, length: int) -> Entry:
    ids = np.zeros(length, np.int64)
    return Entry(index, f"inputs[{index}]", TokenSequence(ids, ids > 0, ()), ())


def test_windows_are_bounded_in_tokens_and_inputs() -> None:
    lengths = [3000, 5000, 1, 9000, 2, 8190, 8191]
    found = windows((entry(*each) for each in enumerate(lengths)), 8192)
    assert [[each.index for each in window] for window in found] == [[0, 1, 2], [3], [4, 5], [6]]
    many = windows((entry(index, 1) for index in range(WINDOW_INPUTS * 2 + 1)), 8192)
    assert [len(window) for window in many] == [WINDOW_INPUTS, WINDOW_INPUTS, 1]
    assert list(windows(iter(()), 8192)) == []


def test_inputs_that_failed_count_in_a_window() -> None:
    entries = (None if index % 100 else entry(index, 1) for index in range(WINDOW_INPUTS * 2 + 1))
    found = [[each.index for each in window] for window in windows(entries, 8192)]
    assert found == [[0, 100, 200], [300, 400, 500], []]


def test_a_stream_gives_the_rows_in_order(embedder: Qwen3VLEmbedder) -> None:
    items = [*TEXTS, {"image": picture(1)}, {}, *TEXTS[:5]]
    expected = embedder.process(items)
    rows = list(embedder.stream(iter(items)))
    assert np.abs(np.stack(rows) - expected).max() <= CLOSE
    cut = list(embedder.stream(iter(items), False, dimensions=16))
    assert np.abs(np.stack(cut) - embedder.process(items, False, dimensions=16)).max() <= CLOSE * 10
    assert list(embedder.stream([])) == []


def test_a_stream_reads_no_further_ahead_than_a_window(embedder: Qwen3VLEmbedder) -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield {"text": "water " * 100}

    stream = embedder.stream(endless())
    for number in range(40):
        next(stream)
        assert read <= number + 2 + 2 * WINDOW_CALLS * 128 // 100


class Bad:
    """An input, then `bad` ones, more than a window may hold."""

    def __init__(self, bad: dict[str, Any]):
        self.bad, self.read = bad, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for self.read in range(1, 4 * WINDOW_INPUTS):
            yield {"text": "ok"} if self.read == 1 else self.bad


def test_the_first_bad_input_ends_the_reading(embedder: Qwen3VLEmbedder) -> None:
    inputs = Bad({"image": "missing.png"})
    stream = embedder.stream(inputs)
    assert np.abs(next(stream) - embedder.process([{"text": "ok"}])[0]).max() <= CLOSE
    with pytest.raises(InputError, match=r"^inputs\[1\]: image: missing.png does not exist"):
        next(stream)
    assert inputs.read == 2


def test_bad_inputs_without_end_are_skipped_one_after_the_other(embedder: Qwen3VLEmbedder) -> None:
    inputs = Bad({"image": "missing.png"})
    skipped: list[Skipped] = []
    stream = embedder.stream(inputs, on_error="skip", skipped=skipped)
    for number in range(2 * WINDOW_INPUTS + 10):
        assert np.isnan(next(stream)).all() == (number > 0)
        assert len(skipped) == number
        assert inputs.read <= number + WINDOW_INPUTS


def test_inputs_that_cannot_be_computed_are_let_go(embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(visuals: Sequence[Visual]) -> list[VisualFeatures]:
        if visuals:
            raise MemoryError
        return []

    monkeypatch.setattr(embedder.package.model.vision, "features", refused)
    inputs = Bad({"image": picture(1)})
    stream = embedder.stream(inputs, on_error="skip", skipped=[])
    with pytest.warns(UserWarning, match="not enough memory for"):
        rows = [next(stream) for _ in range(99)]
    assert [bool(np.isnan(row).any()) for row in rows] == [False] + [True] * 98
    assert inputs.read <= WINDOW_INPUTS


def test_every_skipped_row_is_its_own(embedder: Qwen3VLEmbedder) -> None:
    first, second = embedder.stream([3, 3], on_error="skip", skipped=[])
    first[:] = 0
    assert np.isnan(second).all()


def test_an_error_in_a_stream_waits_for_its_turn(embedder: Qwen3VLEmbedder) -> None:
    items = [{"text": "a"}, {"text": "b" * 50}, {"image": b"no picture"}, {"text": "c"}]
    rows = []
    with pytest.raises(InputError, match=r"^inputs\[2\]: image: "):
        for row in embedder.stream(items):
            rows.append(row)
    assert np.abs(np.stack(rows) - embedder.process(items[:2])).max() <= CLOSE
    skipped: list[Skipped] = []
    rows = list(embedder.stream([*items, 3], on_error="skip", skipped=skipped))
    assert [each.index for each in skipped] == [2, 4]
    assert np.isnan(rows).all(axis=1).tolist() == [False, False, True, False, True]
    with pytest.warns(UserWarning, match="2 of 5 inputs were left out") as caught:
        list(embedder.stream([*items, 3], on_error="skip"))
    assert caught[0].filename == __file__


def test_a_source_that_breaks_gives_the_rows_of_what_it_gave(embedder: Qwen3VLEmbedder) -> None:
    def source() -> Iterator[Any]:
        yield from TEXTS[:3]
        yield 3
        yield from TEXTS[3:5]
        raise OSError("the network is gone")

    rows = []
    skipped: list[Skipped] = []
    with pytest.raises(OSError, match="the network is gone"):
        for row in embedder.stream(source(), on_error="skip", skipped=skipped):
            rows.append(row)
    assert [each.index for each in skipped] == [3]
    assert np.abs(np.delete(np.stack(rows), 3, 0) - embedder.process(TEXTS[:5])).max() <= CLOSE
    with pytest.raises(InputError, match=r"inputs\[3\]"):  # its turn comes first
        list(embedder.stream(source()))


def test_a_list_is_refused_before_anything_is_computed(
    embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder.package.model.decoder, "pooled", lambda *given: pytest.fail("the decoder ran"))
    with pytest.raises(InputError, match=r"inputs\[2\]"):
        embedder.process([{"text": "a"}, {"text": "b"}, 3])


class Counting:
    """Notes what reaches the vision encoder."""

    def __init__(self, encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch):
        self.seen: list[Visual] = []
        run = encoder.features

        def counted(visuals: Sequence[Visual]) -> list[VisualFeatures]:
            self.seen += visuals
            return run(visuals)

        monkeypatch.setattr(encoder, "features", counted)


def test_equal_pictures_are_encoded_once(
    embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same path, the same bytes under another name, the same pixels; not other pixels or another grid."""
    one, other, wide = picture(1), picture(2), picture(1, (32, 128))
    paths = [tmp_path / name for name in ("one.png", "copy.png")]
    for path in paths:
        one.save(path)
    items: list[dict[str, Any]] = [
        {"image": str(paths[0])},
        {"image": other},
        {"text": "again", "image": [str(paths[0]), wide]},
        *TEXTS,  # so that the next ones are in another window
        {"image": paths[1].read_bytes()},
        {"image": np.asarray(one)},
        {"image": [other, one]},
    ]
    expected = np.concatenate([embedder.process([item]) for item in items])
    counting = Counting(embedder.package.model.vision, monkeypatch)
    assert np.abs(embedder.process(items) - expected).max() <= CLOSE
    assert len(counting.seen) == 3
    embedder.process(items[:1])
    assert len(counting.seen) == 4  # nothing is kept between calls


def test_a_document_that_is_the_query_is_encoded_once(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Qwen3VLReranker(package(TINY_2B, "reranker"))
    request = {"query": {"image": picture(1)}, "documents": [{"image": picture(seed)} for seed in (1, 2, 2, 1)]}
    expected = [reranker.process({**request, "documents": [each]})[0] for each in request["documents"]]
    counting = Counting(reranker.package.model.vision, monkeypatch)
    assert reranker.process(request) == pytest.approx(expected, abs=CLOSE)
    assert len(counting.seen) == 2


def test_only_so_many_visual_tokens_are_remembered(embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = embedder.package.model.vision
    options = embedder.package.encoder.options
    assert options.min_pixels == 4096
    visuals = [next(embedder._entries([{"image": picture(seed)}], None)).visuals[0] for seed in range(3)]
    counting = Counting(encoder, monkeypatch)
    seen = SeenVisuals(encoder, tokens=2 * visuals[0].num_tokens)
    for order in ([0, 1], [0], [1], [2], [2], [1], [0]):
        seen.features([visuals[index] for index in order])
    # 0 was pushed out by 2, as the one seen longest ago.
    assert [next(index for index, each in enumerate(visuals) if each is found) for found in counting.seen] == [
        0,
        1,
        2,
        0,
    ]
