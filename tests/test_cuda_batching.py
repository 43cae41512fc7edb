"""Batches as GroupQueryAttention takes them without query_seqlens: many rows without a past, or one row after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import TINY_2B, TINY_8B

from runtime.graphs.batching import Batches, packs
from runtime.graphs.decoder import Prompt, Span
from runtime.graphs.graph import NOWHERE, Arrays, Graph
from runtime.graphs.model import Model
from runtime.graphs.past import KeptPasts
from runtime.graphs.target import TARGETS
from runtime.graphs.vision import VisualFeatures
from runtime.manifest import Manifest
from runtime.prompts.encode import TokenSequence

Packages = Callable[..., Path]
IMAGE_PAD = 151655
CLOSE = 1e-5
CUDA = TARGETS["cuda"]
LONG = CUDA.call_cost + 300  # a beginning that is worth a call for every prompt


class Watched:
    """A graph that notes rows, columns and past of every call, and that it holds what GroupQueryAttention asks for."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.calls: list[tuple[int, int, int]] = []

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        (rows, columns), capacity = feeds["input_ids"].shape, int(feeds["capacity"])
        past = int(feeds["last_mask"].shape[-1] - columns)
        self.calls.append((rows, columns, past))
        if columns != capacity:  # a past, even an empty one with room in it
            assert rows == 1, "several rows after a past"
            assert feeds["last_position"].tolist() == [past + columns - 1], "padding after a past"
            assert {each.shape[2] for name, each in feeds.items() if name.startswith("past_")} == {capacity}
        return self.graph.run(names, feeds, into)


class Opened:
    """A tiny package for CUDA in float32 on the CPU, its decoder watched."""

    def __init__(self, folder: Path):
        self.manifest = Manifest.read(folder)
        self.model = Model(folder, self.manifest, ["CPUExecutionProvider"], threads=2)
        self.watched = Watched(self.model.decoder._graph)
        self.model.decoder._graph = self.watched

    def prompt(self, length: int, seed: int = 0, visual: Mapping[int, VisualFeatures] | None = None) -> Prompt:
        """Random ids, the same for a seed however long; features of 1 × n pictures from the given tokens on."""
        ids, visual = np.random.default_rng(seed).integers(0, 1000, 4000)[:length], visual or {}
        for start, features in visual.items():
            ids[start : start + len(features.tokens)] = IMAGE_PAD
        blocks = tuple((1, len(each.tokens)) for each in visual.values())
        return Prompt(TokenSequence(ids, ids == IMAGE_PAD, blocks), tuple(visual.values()))

    def features(self, count: int) -> VisualFeatures:
        levels, size = len(self.manifest.vision.deepstack_visual_indexes), self.manifest.text.hidden_size
        random = np.random.default_rng(count).standard_normal((1 + levels, count, size)).astype(np.float32)
        return VisualFeatures(random[0], random[1:])

    def alone(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Each prompt by itself in one piece."""
        return np.concatenate([self.model.decoder.pooled([Span(each, 0, len(each))]) for each in prompts])

    def together(self, prompts: Sequence[Prompt], batch_tokens: int | None = None) -> np.ndarray:
        self.watched.calls.clear()
        return self.model.pooled(prompts, batch_tokens)


@pytest.fixture(scope="module", params=[(TINY_2B, "embedding"), (TINY_8B, "reranker")], ids=["2B", "8B"])
def opened(request: pytest.FixtureRequest, cuda_package: Packages) -> Opened:
    return Opened(cuda_package(*request.param, float32=True))


def require_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE * np.abs(expected).max())


def endings(opened: Opened, shared: int, lengths: Sequence[int]) -> list[Prompt]:
    """Prompts with a beginning of `shared` tokens in common, a picture in it."""
    picture = opened.features(20)
    start = opened.prompt(shared, visual={10: picture}).sequence
    prompts = []
    for number, length in enumerate(lengths):
        ids = np.concatenate([start.input_ids, opened.prompt(length, seed=number + 1).sequence.input_ids])
        prompts.append(Prompt(TokenSequence(ids, ids == IMAGE_PAD, start.blocks), (picture,)))
    return prompts


def test_right_padded_batches_need_no_past(opened: Opened) -> None:
    """Odd lengths, one token among them; pictures in some rows and not in others."""
    prompts = [opened.prompt(length, seed=length) for length in (33, 1, 17, 8)]
    prompts.append(opened.prompt(25, seed=3, visual={2: opened.features(5), 20: opened.features(3)}))
    found = opened.together(prompts)
    assert opened.watched.calls == [(5, 33, 0)]
    require_close(found, opened.alone(prompts))


def test_a_worthwhile_beginning_is_computed_once_and_continued_a_row_at_a_time(opened: Opened) -> None:
    prompts = endings(opened, LONG, [1, 2, 9, 31, 64])
    found = opened.together(prompts)
    first, *rest = opened.watched.calls
    assert first == (1, LONG, 0)
    assert sorted(rest) == [(1, length, LONG) for length in (1, 2, 9, 31, 64)]
    require_close(found, opened.alone(prompts))


def test_a_preamble_is_not_worth_a_call(opened: Opened) -> None:
    """Its tokens cost less than starting the operators once more."""
    sequence = opened.prompt(24).sequence
    prompt, preambles = Prompt(replace(sequence, preamble=13)), KeptPasts()
    for _ in range(3):
        opened.watched.calls.clear()
        list(Batches(opened.model.decoder, 4096, preambles).pooled([prompt]))
        assert opened.watched.calls == [(1, 24, 0)]


def test_a_short_beginning_is_not_worth_a_call_for_every_row(opened: Opened) -> None:
    prompts = endings(opened, 200, [1, 2, 9, 31, 64])
    found = opened.together(prompts)
    assert opened.watched.calls == [(5, 264, 0)]
    require_close(found, opened.alone(prompts))


def test_what_is_left_of_a_beginning_has_to_be_worth_it_too(opened: Opened) -> None:
    """A later part of a request that shares less goes in batches again."""
    batches = Batches(opened.model.decoder, 4096)
    first, later = endings(opened, LONG, [3, 4, 5, 6, 7]), [opened.prompt(50, seed=seed) for seed in (7, 8)]
    shorter = endings(opened, LONG, [3, 4])
    for prompt in shorter:
        prompt.sequence.input_ids[100:] += 1
    for part in (first, later, shorter):
        expected = opened.alone(part)
        opened.watched.calls.clear()
        found = {index: row for indexes, rows in batches.pooled(part) for index, row in zip(indexes, rows, strict=True)}
        require_close(np.stack([found[index] for index in range(len(part))]), expected)
        assert [rows for rows, _, _ in opened.watched.calls] == ([1] * 6 if part is first else [2])


@pytest.mark.parametrize("length", [64, 65, 128, 129, 301])
def test_long_prompts_go_in_pieces(opened: Opened, length: int) -> None:
    prompts = [opened.prompt(length, seed=length, visual={60: opened.features(4)}), opened.prompt(20)]
    found = opened.together(prompts, batch_tokens=64)
    assert len(opened.watched.calls) == 1 + -(-length // 64)
    require_close(found, opened.alone(prompts))


def test_pieces_continue_a_shared_beginning(opened: Opened) -> None:
    lengths = [70, 150, 200, 129, 300]
    prompts = endings(opened, LONG, lengths)
    found = opened.together(prompts, batch_tokens=128)
    assert {rows for rows, _, _ in opened.watched.calls} == {1}
    assert sum(columns for _, columns, _ in opened.watched.calls) == LONG + sum(lengths)
    require_close(found, opened.alone(prompts))


def test_rows_after_a_past_go_alone_and_others_together() -> None:
    assert sorted(packs([30] * 8, 1024, 5, CUDA)) == [[index] for index in range(8)]
    assert packs([30] * 8, 1024, 0, CUDA) == [list(range(8))]
    assert packs([31] * 8, 31 * 8, 0, CUDA) == [list(range(8))]  # nothing is padded


def test_two_rows_after_a_past_are_what_onnxruntime_refuses(opened: Opened) -> None:
    """The rule all this is for; a version that takes them can do with a simpler runtime."""
    decoder = opened.model.decoder
    one, two = opened.prompt(20), opened.prompt(20, seed=1)
    past = decoder.extend(Span(one, 0, 8), decoder.empty_past(32)).repeated(2, 32)
    decoder._graph = opened.watched.graph
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
        decoder.pooled([Span(one, 8, 20), Span(two, 8, 20)], past)
    decoder._graph = opened.watched
