"""Inputs known by their size: the prompts must be those that real inputs of that size give."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B
from encoders import OPTIONS, encoder
from PIL import Image
from qwen_tokenizer import Task
from video_files import write_video

from runtime.errors import InputError, MediaError
from runtime.planning.workload import (
    QUERY,
    VIDEO_FPS,
    Workload,
    outline,
    picture_workload,
    prompt_of,
    text_workload,
    video_workload,
    words,
)
from runtime.prompts.encode import Encoder, Loaded
from runtime.prompts.inputs import Content

TASKS: tuple[Task, ...] = ("embedding", "reranker")


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


@pytest.fixture
def real(checkpoint: Callable[..., Path], task: Task) -> Encoder:
    return encoder(checkpoint(TINY_2B, task), OPTIONS[task])


def assert_same_prompt(workload: Workload, content: Content, real: Encoder, task: Task) -> None:
    """The outline of a workload is what the encoder makes of a real input."""
    loaded = real.load(content, None, None, "inputs[0]")
    expected = prompt_of(loaded, real, task, "inputs[0]")
    found = outline(workload, real, task)
    assert found.sequence is not None and found.note == ""
    assert np.array_equal(found.sequence.input_ids, expected.input_ids)
    assert found.sequence.blocks == expected.blocks
    assert found.tokens == len(expected.input_ids) and found.visual_tokens == expected.is_visual.sum()
    assert [each.patches.shape for each in workload.loaded.visuals] == [each.patches.shape for each in loaded.visuals]


@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_a_text_has_the_asked_number_of_tokens(real: Encoder, task: Task, tokens: int) -> None:
    one, many = (outline(text_workload(str(count), real), real, task).tokens for count in (1, tokens))
    assert many - one == tokens - 1
    assert_same_prompt(text_workload(str(tokens), real), Content((words(tokens),)), real, task)


def test_several_texts_are_one_workload(real: Encoder, task: Task) -> None:
    together, one = text_workload("4x40", real), text_workload("40", real)
    assert (together.count, together.name) == (4, "4 texts of 40 tokens")
    assert outline(together, real, task).tokens == outline(one, real, task).tokens


@pytest.mark.parametrize("size", [(400, 300), (33, 47), (2000, 1500), (1, 1)])
def test_a_picture_gives_the_prompt_of_a_real_one(real: Encoder, task: Task, size: tuple[int, int]) -> None:
    picture = Content(images=(Image.new("RGB", size),))
    assert_same_prompt(picture_workload(f"{size[0]}x{size[1]}", real), picture, real, task)


@pytest.mark.parametrize("strict", [False, True])
def test_a_video_gives_the_prompt_of_a_real_file(
    checkpoint: Callable[..., Path], tmp_path: Path, task: Task, strict: bool
) -> None:
    options = replace(OPTIONS[task], fps=8.0, total_pixels=1_200_000, strict_video_budget=strict)
    real = encoder(checkpoint(TINY_2B, task), options)
    path = write_video(tmp_path / "clip.mp4", (320, 576), 2 * VIDEO_FPS, VIDEO_FPS)
    workload = video_workload("2s@320x576", real)
    assert_same_prompt(workload, Content(videos=(str(path),)), real, task)
    # Otherwise the strict budget would not show.
    lenient = video_workload("2s@320x576", encoder(checkpoint(TINY_2B, task), replace(options, total_pixels=10**8)))
    assert (workload.loaded.visuals[0].grid == lenient.loaded.visuals[0].grid) == strict


def test_a_query_stands_beside_a_rerankers_input(checkpoint: Callable[..., Path]) -> None:
    real = encoder(checkpoint(TINY_2B, "reranker"), OPTIONS["reranker"])
    found = outline(text_workload("8", real), real, "reranker").sequence
    expected = real.rerank_sequence(QUERY, Loaded(Content((words(8),)), ()), None, "")
    assert found is not None and np.array_equal(found.input_ids, expected.input_ids)


def test_a_text_that_is_too_long_is_cut_as_the_runtime_cuts(checkpoint: Callable[..., Path], task: Task) -> None:
    real = encoder(checkpoint(TINY_2B, task), replace(OPTIONS[task], max_length=100))
    found = outline(text_workload("500", real), real, task)
    expected = prompt_of(Loaded(Content((words(500),)), ()), real, task, "")
    assert found.sequence is not None and len(found.sequence.input_ids) == len(expected.input_ids) < found.tokens
    lost = found.tokens - len(expected.input_ids)
    assert (
        found.note == f"text of 500 tokens: {found.tokens} tokens are over max_length 100, {lost} of the text are cut."
    )


def test_of_a_long_text_no_more_is_made_than_the_runtime_looks_at(real: Encoder, task: Task) -> None:
    limit = real.options.max_length
    long, longer = (text_workload(str(limit + more), real) for more in (1, 10**15))
    assert longer.loaded.content.texts == long.loaded.content.texts == (words(limit),)
    assert outline(longer, real, task).tokens - outline(long, real, task).tokens == 10**15 - 1


def test_visual_tokens_that_are_too_many_are_refused_in_the_runtimes_words(checkpoint: Callable[..., Path]) -> None:
    real = encoder(checkpoint(TINY_2B, "embedding"), replace(OPTIONS["embedding"], max_length=100))
    found = outline(picture_workload("640x640", real), real, "embedding")
    assert found.sequence is None and found.visual_tokens == 400
    with pytest.raises(InputError) as caught:
        content = Content(images=(Image.new("RGB", (640, 640)),))
        real.embedding_sequence(real.load(content, None, None, ""), None, "picture 640x640")
    assert found.note == f"refused, {caught.value}"


def test_a_shape_that_the_runtime_refuses_is_refused(real: Encoder) -> None:
    with pytest.raises(MediaError, match="aspect ratio of 201"):
        picture_workload("4020x20", real)
    with pytest.raises(MediaError, match=r"^it decodes to 20000x20000 pixels, over the limit"):
        picture_workload("20000x20000", real)
    with pytest.raises(MediaError, match="leave fewer than the 2"):
        video_workload("0.01s@64x64", real)


@pytest.mark.parametrize("size", ["", "0", "x4", "4x", "-3", "1.5", "many", "0x4", "9" * 400])
def test_what_is_no_number_of_tokens_is_named(real: Encoder, size: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--tokens is {size!r}, expected a number of tokens")):
        text_workload(size, real)


@pytest.mark.parametrize("size", ["400", "400x", "0x400", "400*300", "400x300x3"])
def test_what_is_no_size_of_a_picture_is_named(real: Encoder, size: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--image is {size!r}, expected the size of a picture")):
        picture_workload(size, real)


@pytest.mark.parametrize("size", ["30@64x64", "s@64x64", "30s", "30s@64", "0s@64x64"])
def test_what_is_no_size_of_a_video_is_named(real: Encoder, size: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--video is {size!r}, expected seconds and size")):
        video_workload(size, real)
