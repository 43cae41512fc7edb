"""Prompts packed by tokens, long ones in chunks, a common beginning computed once: the same numbers in fewer tokens."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import TINY_2B, TINY_8B, Shape

from runtime.graphs.batching import LONGEST_PREAMBLE, Batches, common_length, packs, pieces
from runtime.graphs.decoder import Prompt
from runtime.graphs.graph import NOWHERE, Arrays, Graph
from runtime.graphs.model import Model
from runtime.graphs.past import KEPT, KeptPasts
from runtime.graphs.target import TARGETS
from runtime.graphs.vision import VisionEncoder, VisualFeatures
from runtime.manifest import Manifest
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence

Packages = Callable[..., Path]
IMAGE_PAD = 151655
# Relative to the largest value: float32 sums in another order, and what rounding to int8 makes of them.
CLOSE = {"fp32": 5e-6, "int8": 1e-5}


class Watched:
    """A graph that notes the shape of every batch of ids and whether it came after a past."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        past = int(feeds["last_mask"].shape[-1] - feeds["input_ids"].shape[1])
        self.calls.append((feeds["input_ids"].shape, past))
        return self.graph.run(names, feeds, into)

    @property
    def tokens(self) -> int:
        return sum(rows * columns for (rows, columns), _ in self.calls)


class Opened:
    """A tiny package's model, its decoder watched."""

    def __init__(self, folder: Path, shape: Shape):
        self.shape, self.manifest = shape, Manifest.read(folder)
        self.model = Model(folder, self.manifest, ["CPUExecutionProvider"], threads=2)
        self.watched = Watched(self.model.decoder._graph)
        self.model.decoder._graph = self.watched

    def prompt(self, length: int, seed: int = 0, visual: Mapping[int, VisualFeatures] | None = None) -> Prompt:
        """Random ids, the same for a seed however long; features of 1 × n pictures from the given tokens on."""
        ids = np.random.default_rng(seed).integers(0, 1000, 40_000)[:length]
        blocks = []
        for start, features in sorted((visual or {}).items()):
            ids[start : start + len(features.tokens)] = IMAGE_PAD
            blocks.append((1, len(features.tokens)))
        features = tuple(each for _, each in sorted((visual or {}).items()))
        return Prompt(TokenSequence(ids, ids == IMAGE_PAD, tuple(blocks)), features)

    def features(self, count: int, seed: int) -> VisualFeatures:
        levels, size = len(self.shape.vision.deepstack_visual_indexes), self.shape.text.hidden_size
        random = np.random.default_rng(seed).standard_normal((1 + levels, count, size)).astype(np.float32)
        return VisualFeatures(random[0], random[1:])

    def alone(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Each prompt by itself in one piece."""
        return np.concatenate([self.model.pooled([prompt], batch_tokens=100_000) for prompt in prompts])

    def together(self, prompts: Sequence[Prompt], batch_tokens: int) -> np.ndarray:
        self.watched.calls.clear()
        return self.model.pooled(prompts, batch_tokens)


@pytest.fixture(
    scope="module",
    params=[
        (TINY_2B, "embedding", "fp32"),
        (TINY_8B, "reranker", "fp32"),
        (TINY_2B, "reranker", "int8"),
        (TINY_8B, "embedding", "int8"),
    ],
    ids=lambda each: f"{each[1]}-{each[2]}",
)
def opened(request: pytest.FixtureRequest, package: Packages) -> Opened:
    shape, task, precision = request.param
    return Opened(package(shape, task, precision), shape)


def close(opened: Opened) -> float:
    return CLOSE[opened.manifest.precision]


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 300, 301])
def test_a_long_prompt_in_chunks_equals_one_piece(opened: Opened, length: int) -> None:
    prompts = [opened.prompt(length, seed=length)]
    expected = opened.alone(prompts)
    found = opened.together(prompts, batch_tokens=64)
    assert len(opened.watched.calls) == -(-length // 64) or length == 63
    assert max(columns for (_, columns), _ in opened.watched.calls) <= 64
    np.testing.assert_allclose(found, expected, rtol=0, atol=close(opened) * np.abs(expected).max())


@pytest.mark.parametrize("most", [33, 64, 512])
@pytest.mark.parametrize("length", [1, 64, 65, 130, 1066, 1067])
def test_pieces_are_few_and_about_equal(length: int, most: int) -> None:
    found = pieces(7, 7 + length, most)
    assert [start for start, _ in found] == [7, *(stop for _, stop in found[:-1])] and found[-1][1] == 7 + length
    sizes = [stop - start for start, stop in found]
    assert len(sizes) == -(-length // most) and max(sizes) <= most and min(sizes) > 0
    assert len(set(sizes[:-1])) <= 1 and max(sizes) - min(sizes) <= 2 * len(sizes)


def test_pictures_may_lie_across_chunks(opened: Opened) -> None:
    pictures = {40: opened.features(60, 1), 110: opened.features(5, 2), 127: opened.features(30, 3)}
    prompts = [opened.prompt(200, visual=pictures)]
    expected = opened.alone(prompts)
    found = opened.together(prompts, batch_tokens=64)
    assert len(opened.watched.calls) == 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=close(opened) * np.abs(expected).max())


def test_pictures_of_one_size_go_together_a_bounded_number_a_call(opened: Opened) -> None:
    frames: list[int] = []

    class Counting:
        def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
            frames.append(len(feeds["patches"]))
            return graph.run(names, feeds, into)

    graph, config = opened.model.vision._opened(), opened.manifest.vision
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    pixels = np.random.default_rng(0).standard_normal((12, 1, 64, patch), np.float32)
    visuals = [Visual(each, (1, 8, 8), None, config.spatial_merge_size) for each in pixels]
    found = VisionEncoder(config, Counting, batch_patches=5 * 64 + 63).features(visuals)
    assert frames == [5, 5, 2]
    for visual, each in zip(visuals, found, strict=True):
        (alone,) = VisionEncoder(config, Counting, batch_patches=1).features([visual])
        largest = np.abs(alone.tokens).max()
        np.testing.assert_allclose(each.tokens, alone.tokens, rtol=0, atol=close(opened) * largest)


@pytest.mark.parametrize("batch_tokens", [64, 256, 4096])
@pytest.mark.parametrize("shared", [50, 131])
def test_a_common_beginning_is_computed_once(opened: Opened, shared: int, batch_tokens: int) -> None:
    """Ragged endings, one of a single token, one longer than a chunk; a picture in the beginning and in one ending."""
    picture = opened.features(20, 1)
    start = opened.prompt(shared, visual={10: picture})
    prompts = []
    for number, length in enumerate([1, 2, 9, 30, 31, 90, 200]):
        end = opened.prompt(length, seed=number + 1)
        ids = np.concatenate([start.sequence.input_ids, end.sequence.input_ids])
        features: tuple[VisualFeatures, ...] = (picture,)
        blocks = start.sequence.blocks
        if length == 90:
            ids[shared + 3 : shared + 11] = IMAGE_PAD
            features, blocks = (*features, opened.features(8, 4)), (*blocks, (2, 4))
        prompts.append(Prompt(TokenSequence(ids, ids == IMAGE_PAD, blocks), features))
    expected = opened.alone(prompts)
    found = opened.together(prompts, batch_tokens)
    # Every token of the beginning once: the other calls come after a past of all of it.
    firsts = [columns for (_, columns), past in opened.watched.calls if past < shared]
    assert shared <= sum(firsts) <= shared + len(firsts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=close(opened) * np.abs(expected).max())


def test_the_beginning_is_kept_and_cut_for_later_parts(opened: Opened) -> None:
    """The prompts of a request may come in parts; a later part may begin with less of it, or be shorter."""
    every = [opened.prompt(60 + number) for number in range(4)]  # each begins with the one before

    def other(length: int) -> Prompt:
        ids = opened.prompt(length).sequence.input_ids.copy()
        ids[30:] += 1
        return Prompt(TokenSequence(ids, ids < 0, ()))

    # What is few tokens behind the cut beginning would fit into the rest of it.
    parts = [every, [other(80)], every[:2], [other(45)], every[:2], [opened.prompt(45)], every[:2], [opened.prompt(20)]]
    alone = [opened.alone(part) for part in parts]
    bound = close(opened) * max(np.abs(each).max() for each in alone)
    batches = Batches(opened.model.decoder, 256)
    for part, expected in zip(parts, alone, strict=True):
        opened.watched.calls.clear()
        np.testing.assert_allclose(numbers(batches, part), expected, rtol=0, atol=bound)
        if part[0] is every[0]:
            assert {past for _, past in opened.watched.calls} == ({0, 59} if part is every else {59})
        else:  # as far as the beginning goes, but never all of a prompt
            shared = len(part[0]) - 1 if part in (parts[5], parts[7]) else 30
            assert [past for _, past in opened.watched.calls] == [shared]


def test_what_is_no_common_beginning(opened: Opened) -> None:
    """Equal ids stop being common where the pictures behind them differ, and a prompt never is all beginning."""
    one, other = opened.features(8, 1), opened.features(8, 2)
    first, second = opened.prompt(50, visual={20: one}), opened.prompt(50, visual={20: other})
    assert common_length([first, second], 49) == 20
    assert common_length([first, opened.prompt(50, visual={20: one})], 49) == 49
    assert common_length([first], 49) == 49
    assert common_length([opened.prompt(50, seed=1), opened.prompt(50, seed=2)], 49) == 0


def test_a_past_may_be_used_again(opened: Opened) -> None:
    """What one document leaves behind the past is never seen by the next."""
    prompts = [opened.prompt(200) for _ in range(9)]
    for number, prompt in enumerate(prompts):
        prompt.sequence.input_ids[150 - number :] = number
    expected = opened.alone(prompts)
    for order in (range(9), reversed(range(9))):
        chosen = list(order)
        found = opened.together([prompts[index] for index in chosen], batch_tokens=256)
        np.testing.assert_allclose(found, expected[chosen], rtol=0, atol=close(opened) * np.abs(expected).max())


def with_preamble(prompt: Prompt, length: int) -> Prompt:
    return replace(prompt, sequence=replace(prompt.sequence, preamble=length))


def numbers(batches: Batches, prompts: Sequence[Prompt]) -> np.ndarray:
    found = {index: row for indexes, rows in batches.pooled(prompts) for index, row in zip(indexes, rows, strict=True)}
    return np.stack([found[index] for index in range(len(prompts))])


def test_a_preamble_is_computed_for_the_second_request_and_kept(opened: Opened) -> None:
    """An odd number of tokens; one prompt, several, one of a single token behind it, one as long as may be."""
    long = opened.prompt(13).sequence.input_ids
    prompts = []
    for number, length in enumerate([1, 8, 11, 39]):
        ids = np.concatenate([long, opened.prompt(length, seed=number + 1).sequence.input_ids])
        prompts.append(with_preamble(Prompt(TokenSequence(ids, ids < 0, ())), 13))
    expected = opened.alone(prompts)
    preambles = KeptPasts()
    opened.watched.calls.clear()
    calls = []
    for chosen in ([1], [2], [0], [3], [0, 1, 2], [1]):
        batches = Batches(opened.model.decoder, 256, preambles)
        found = numbers(batches, [prompts[index] for index in chosen])
        np.testing.assert_allclose(found, expected[chosen], rtol=0, atol=close(opened) * np.abs(expected).max())
        calls.append(list(opened.watched.calls))
        opened.watched.calls.clear()
    assert calls[0] == [((1, 22), 0)]
    assert calls[1] == [((1, 14), 0), ((1, 12), 13)]
    assert calls[2:4] == [[((1, 2), 13)], [((1, 40), 13)]]
    assert [past for _, past in calls[4]] == [13] * len(calls[4])
    assert calls[5] == [((1, 8), 13)]


def test_a_kept_preamble_or_a_longer_beginning(opened: Opened) -> None:
    """Many prompts that only the preamble is common to need no call for it; what is much longer gets its own."""
    preambles = KeptPasts()
    prompts = [with_preamble(opened.prompt(40), 13) for _ in range(16)]
    for number, prompt in enumerate(prompts):
        prompt.sequence.input_ids[14:] = number
    alike = [with_preamble(opened.prompt(40), 13) for _ in range(16)]
    for number, prompt in enumerate(alike):
        prompt.sequence.input_ids[30:] = number
    pasts = []
    for chosen in (prompts, prompts, prompts, alike):
        expected = opened.alone(chosen)
        opened.watched.calls.clear()
        found = numbers(Batches(opened.model.decoder, 1024, preambles), chosen)
        np.testing.assert_allclose(found, expected, rtol=0, atol=close(opened) * np.abs(expected).max())
        pasts.append([past for _, past in opened.watched.calls])
    assert pasts == [[0, 14], [0, 13], [13], [0, 30]]


def test_where_a_preamble_is_not_used(opened: Opened) -> None:
    """A prompt that is much longer, one with none, two with different ones, one that is nothing but its preamble."""
    preambles = KeptPasts()
    other = opened.prompt(30, seed=1)
    longest = with_preamble(opened.prompt(200), LONGEST_PREAMBLE + 1)
    for prompts in (
        [with_preamble(opened.prompt(53), 13)],
        [opened.prompt(30)],
        [with_preamble(opened.prompt(30), 13), with_preamble(other, 13)],
        [with_preamble(opened.prompt(13), 13)],
        [longest],
    ):
        for _ in range(3):
            opened.watched.calls.clear()
            numbers(Batches(opened.model.decoder, 256, preambles), prompts)
            assert [past for _, past in opened.watched.calls] == [0], len(prompts[0])


def test_few_preambles_are_kept(opened: Opened) -> None:
    """What was used last stays; an instruction that comes but once costs nothing."""
    preambles = KeptPasts()

    def pasts(seed: int) -> list[int]:
        opened.watched.calls.clear()
        numbers(Batches(opened.model.decoder, 256, preambles), [with_preamble(opened.prompt(20, seed=seed), 13)])
        return [past for _, past in opened.watched.calls]

    assert pasts(0) == [0] and pasts(0) == [0, 13]
    for seed in range(1, 3 * KEPT):
        assert pasts(seed) == [0]
        assert pasts(0) == [13]
    for seed in range(100, 100 + KEPT):
        assert pasts(seed) == [0]
    assert pasts(0) == [0]


def test_threads_share_preambles(opened: Opened) -> None:
    prompts = [with_preamble(opened.prompt(20 + seed, seed=seed % 3), 13) for seed in range(12)]
    expected = opened.alone(prompts)
    preambles = KeptPasts()

    def alone(prompt: Prompt) -> np.ndarray:
        return numbers(Batches(opened.model.decoder, 256, preambles), [prompt])[0]

    with ThreadPoolExecutor(4) as pool:
        found = np.stack(list(pool.map(alone, prompts * 3)))
    bound = close(opened) * np.abs(expected).max()
    np.testing.assert_allclose(found, np.concatenate([expected] * 3), rtol=0, atol=bound)


def padded_tokens(lengths: Sequence[int], found: Sequence[Sequence[int]]) -> int:
    return sum(len(pack) * max(lengths[index] for index in pack) for pack in found)


@pytest.mark.parametrize("budget", [64, 512, 1024])
def test_packs_hold_every_prompt_once_and_keep_to_the_budget(budget: int) -> None:
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, 700, seed * 7 + 1).tolist()
        found = packs(lengths, budget)
        assert sorted(index for pack in found for index in pack) == list(range(len(lengths)))
        for pack in found:
            assert len(pack) == 1 or len(pack) * max(lengths[index] for index in pack) <= budget


def test_packs_are_the_cheapest_cut() -> None:
    """Against every way to cut seven prompts in order of length."""

    def cost(lengths: Sequence[int], found: Sequence[Sequence[int]]) -> int:
        even = [length + length % 2 for length in lengths]
        return padded_tokens(even, found) + TARGETS["cpu"].call_cost * len(found)

    for seed in range(30):
        lengths = sorted(np.random.default_rng(seed).integers(1, 200, 7).tolist())
        best = np.inf
        for cuts in range(2**6):
            places = [0, *(place + 1 for place in range(6) if cuts >> place & 1), 7]
            cut = [list(range(first, stop)) for first, stop in pairwise(places)]
            if all(len(pack) == 1 or len(pack) * (max(pack) and lengths[max(pack)] + 1) <= 400 for pack in cut):
                best = min(best, cost(lengths, cut))
        assert cost(lengths, packs(lengths, 400)) <= best


def test_little_padding_on_a_mixed_set() -> None:
    """Titles, sentences, paragraphs and pictures in one window: under a tenth of what is computed is padding."""
    random = np.random.default_rng(0)
    lengths = np.concatenate(
        [random.integers(18, 40, 80), random.integers(40, 120, 80), random.integers(120, 500, 60), [280] * 30]
    )
    lengths = random.permutation(lengths).tolist()
    found = packs(lengths, 1024)
    waste = 1 - sum(lengths) / padded_tokens(lengths, found)
    assert waste < 0.1
    assert len(found) < len(lengths) / 3


def test_rows_after_a_long_past_are_few() -> None:
    assert max(map(len, packs([30] * 64, 1024, past=0))) > 30
    assert max(map(len, packs([30] * 64, 1024, past=70))) == TARGETS["cpu"].past_tokens // 100
    assert max(map(len, packs([30] * 64, 1024, past=5000))) == 1
