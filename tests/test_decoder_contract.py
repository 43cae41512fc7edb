"""decoder.onnx run directly: what its past inputs promise to chunked prefill and shared prefixes.

Every layer but the last (GroupQueryAttention) wants a row's past packed at the front of the capacity C and leaves
past and new tokens packed in its present. The last layer (Attention) leaves its whole past input, gaps included,
then the S new tokens; so `last_mask` sees the past's own tokens and C … C + new - 1, not the gaps:

    past of 2 in a capacity of 4, then 3 new of S = 4:    P P . .   N N N .   →   1 1 0 0   1 1 1 0

What stands in a gap matters to no layer, but in the last one it must be finite: a NaN would pass through the mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from runtime.graphs.session import create_session
from runtime.prompts.positions import text_rotary, token_positions
from runtime.vectors import finish

Packages = Callable[[Shape, Task], Path]
Past = dict[str, NDArray[np.float32]]

# Sums of the same float32 numbers in another order, on vectors of length 1 and on scores; measured 4.2e-7.
TOLERANCE = 1e-6
JUNK = 1e4
IMAGE_PAD = 151655


@dataclass(frozen=True)
class Prompt:
    """Tokens of one row; every image pad stands for a 1 x 1 picture with features of its own."""

    ids: NDArray[np.int64]  # [S]
    tokens: NDArray[np.float32]  # [visual, D]
    deepstack: NDArray[np.float32]  # [L, visual, D]

    @property
    def is_visual(self) -> NDArray[np.bool_]:
        return np.asarray(self.ids == IMAGE_PAD)


@dataclass(frozen=True)
class Chunk:
    """Tokens start … stop - 1 of a prompt, after a past of `start` tokens."""

    prompt: Prompt
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Decoder:
    """The session of a tiny package's decoder and the shape it was made from."""

    def __init__(self, folder: Path, shape: Shape):
        self.text = shape.text
        self.levels = len(shape.vision.deepstack_visual_indexes)
        self.session = create_session(str(folder / "decoder.onnx"), ort.SessionOptions())
        self.names = [output.name for output in self.session.get_outputs()]

    def prompt(self, length: int, visual: Sequence[int] = ()) -> Prompt:
        """Random tokens, image pads at the positions `visual`."""
        random = np.random.default_rng([length, *visual])
        ids = random.integers(0, 1000, length)
        ids[list(visual)] = IMAGE_PAD
        size = self.text.hidden_size
        features = random.standard_normal((1 + self.levels, len(visual), size)).astype(np.float32)
        return Prompt(ids, features[0], features[1:])

    def empty_past(self, rows: int) -> Past:
        empty = np.zeros((rows, self.text.num_key_value_heads, 0, self.text.head_dim), np.float32)
        layers = range(self.text.num_hidden_layers)
        return {f"past_{kind}.{layer}": empty for kind in ("key", "value") for layer in layers}

    def is_last(self, name: str) -> bool:
        """Whether `past_key.3` and the like belong to the last layer."""
        return name.endswith(f".{self.text.num_hidden_layers - 1}")

    def run(
        self, chunks: Sequence[Chunk], past: Past, last_past: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], Past]:
        """Embeddings [B, D] or scores [B], and the presents as the next call's past, all [B, heads, C+S, h].

        `last_past` bool [B, C] marks what of the last layer's past is a token and no gap.
        """
        lengths = np.array([chunk.length for chunk in chunks])
        starts = np.array([chunk.start for chunk in chunks])
        longest = int(lengths.max())
        new = np.arange(longest) < lengths[:, None]  # [B,S]
        last_mask = np.concatenate([last_past, new], axis=1)  # [B,C+S]
        feeds = self._tokens(chunks, longest) | {
            "query_lengths": lengths.astype(np.int32),
            "last_position": (starts + lengths - 1).astype(np.int32),
            "capacity": np.array(last_mask.shape[1], np.int32),
            "last_index": (lengths - 1).reshape(-1, 1, 1),
            "token_mask": new[:, :, None],
            "last_mask": last_mask[:, None, None, :],
        }
        outputs = dict(zip(self.names, self.session.run(self.names, feeds | past), strict=True))
        if "logit" in outputs:
            pooled = 1 / (1 + np.exp(-outputs.pop("logit")))
        else:
            pooled = finish(outputs.pop("embedding"), self.text.hidden_size, normalize=True)
        return pooled, {name.replace("present", "past"): value for name, value in outputs.items()}

    def _tokens(self, chunks: Sequence[Chunk], longest: int) -> dict[str, NDArray[np.generic]]:
        """Ids, visuals and angles, padded to [B, longest]; padding gets angles of 0."""
        ids = np.full((len(chunks), longest), 151643)
        angles = np.zeros((2, len(chunks), longest, self.text.head_dim // 2), np.float32)
        index, tokens, deepstack = [], [], []
        for row, chunk in enumerate(chunks):
            prompt, part, new = chunk.prompt, slice(chunk.start, chunk.stop), slice(chunk.length)
            ids[row, new] = prompt.ids[part]
            cells = [(1, 1)] * len(prompt.tokens)
            positions = token_positions(prompt.is_visual, cells)
            rotary = text_rotary(positions, self.text.rope_theta, self.text.mrope_section)
            angles[:, row, new] = rotary.cos[part], rotary.sin[part]
            index += [(row, place) for place in np.flatnonzero(prompt.is_visual[part])]
            seen = slice(prompt.is_visual[: chunk.start].sum(), prompt.is_visual[: chunk.stop].sum())
            tokens.append(prompt.tokens[seen])
            deepstack.append(prompt.deepstack[:, seen])
        return {
            "input_ids": ids,
            "visual_index": np.array(index, np.int64).reshape(-1, 2),
            "visual_tokens": np.concatenate(tokens),
            "deepstack": np.concatenate(deepstack, axis=1),
            "rotary_cos": angles[0],
            "rotary_sin": angles[1],
        }

    def whole(self, prompt: Prompt) -> NDArray[np.float32]:
        """The pooled output of one prompt in one call, [1, ...]."""
        return self.run([Chunk(prompt, 0, len(prompt.ids))], self.empty_past(1), np.ones((1, 0), np.bool_))[0]


@pytest.fixture(scope="module", params=[(TINY_2B, "embedding"), (TINY_8B, "reranker")], ids=["2b", "8b"])
def decoder(request: pytest.FixtureRequest, package: Packages) -> Decoder:
    shape, task = request.param
    return Decoder(package(shape, task), shape)


def prefixes(decoder: Decoder, prompts: Sequence[Prompt], cuts: Sequence[int], capacity: int) -> Past:
    """What each prompt's first `cut` tokens leave, run one by one and stacked at the front of the capacity."""
    pasts = []
    for prompt, cut in zip(prompts, cuts, strict=True):
        past = decoder.empty_past(1)
        if cut:
            _, past = decoder.run([Chunk(prompt, 0, cut)], past, np.ones((1, 0), np.bool_))
        pasts.append(past)
    return {name: stack([past[name] for past in pasts], capacity, decoder.is_last(name)) for name in pasts[0]}


def stack(rows: Sequence[NDArray[np.float32]], capacity: int, finite: bool) -> NDArray[np.float32]:
    stacked = np.full((len(rows), rows[0].shape[1], capacity, rows[0].shape[3]), JUNK if finite else np.nan, np.float32)
    for index, row in enumerate(rows):
        stacked[index, :, : row.shape[2]] = row[0]
    return stacked


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def first_tokens(counts: Sequence[int], capacity: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(capacity) < np.array(counts)[:, None])


VISUAL = {"text": (), "visual in both chunks": (2, 3, 9), "visual in the second chunk": (19,)}


@pytest.mark.parametrize("visual", VISUAL.values(), ids=VISUAL)
@pytest.mark.parametrize("cut", [1, 7, 19])
def test_two_chunks_give_what_the_whole_gives(decoder: Decoder, cut: int, visual: tuple[int, ...]) -> None:
    prompt = decoder.prompt(20, visual)
    past = prefixes(decoder, [prompt], [cut], cut)
    pooled, present = decoder.run([Chunk(prompt, cut, 20)], past, np.ones((1, cut), np.bool_))
    assert difference(pooled, decoder.whole(prompt)) <= TOLERANCE
    assert {value.shape[2] for value in present.values()} == {20}


@pytest.mark.parametrize("visual", [(), (0, 2)], ids=["text", "visual"])
def test_a_padded_batch_gives_what_single_rows_give(decoder: Decoder, visual: tuple[int, ...]) -> None:
    prompts = [decoder.prompt(length, visual) for length in (6, 33, 3, 17)]
    chunks = [Chunk(prompt, 0, len(prompt.ids)) for prompt in prompts]
    pooled, _ = decoder.run(chunks, decoder.empty_past(4), np.ones((4, 0), np.bool_))
    assert difference(pooled, np.concatenate([decoder.whole(prompt) for prompt in prompts])) <= TOLERANCE


@pytest.mark.parametrize("spare", [0, 5], ids=["capacity of the longest past", "spare capacity"])
@pytest.mark.parametrize("visual", [(), (20, 21, 24)], ids=["text", "visual in the second chunk"])
def test_rows_may_have_pasts_of_their_own_length(decoder: Decoder, visual: tuple[int, ...], spare: int) -> None:
    lengths, cuts = (26, 40, 33, 25), (16, 3, 20, 0)
    prompts = [decoder.prompt(length, visual) for length in lengths]
    capacity = max(cuts) + spare
    chunks = [Chunk(*each) for each in zip(prompts, cuts, lengths, strict=True)]
    past = prefixes(decoder, prompts, cuts, capacity)
    pooled, _ = decoder.run(chunks, past, first_tokens(cuts, capacity))
    assert difference(pooled, np.concatenate([decoder.whole(prompt) for prompt in prompts])) <= TOLERANCE


def test_a_third_chunk_sees_past_the_gaps_of_the_second(decoder: Decoder) -> None:
    prompts = [decoder.prompt(30, (1, 12)), decoder.prompt(28, (27,))]
    first, second = (4, 9), (11, 12)
    past = prefixes(decoder, prompts, first, 9)
    _, past = decoder.run(
        [Chunk(p, *cut) for p, *cut in zip(prompts, first, second, strict=True)], past, first_tokens(first, 9)
    )
    # The last layer's past is now 9 of the first chunk's capacity, then 7 new, with gaps in both.
    seen = np.concatenate([first_tokens(first, 9), first_tokens((7, 3), 7)], axis=1)
    pooled, _ = decoder.run([Chunk(p, cut, len(p.ids)) for p, cut in zip(prompts, second, strict=True)], past, seen)
    assert difference(pooled, np.concatenate([decoder.whole(prompt) for prompt in prompts])) <= TOLERANCE


def test_a_mask_that_sees_the_gaps_is_wrong(decoder: Decoder) -> None:
    prompts, cuts = [decoder.prompt(26), decoder.prompt(40)], (16, 3)
    past = prefixes(decoder, prompts, cuts, 16)
    chunks = [Chunk(prompt, cut, len(prompt.ids)) for prompt, cut in zip(prompts, cuts, strict=True)]
    pooled, _ = decoder.run(chunks, past, np.ones((2, 16), np.bool_))
    assert difference(pooled[:1], decoder.whole(prompts[0])) <= TOLERANCE
    assert difference(pooled[1:], decoder.whole(prompts[1])) > 1000 * TOLERANCE
