"""Input that cannot be used, end to end: the message names the place and the source, and nothing stands in for it."""

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import served
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from refusals import refusal
from test_media import encoded, huge_png
from video_files import write_video

from runtime import (
    FetchLimits,
    MediaError,
    Qwen3VLEmbedder,
    Qwen3VLReranker,
    Skipped,
)

Packages = Callable[[Shape, Task], Path]
PICTURE = Image.new("RGB", (64, 64), "teal")
# What is wrong with each file, by its name.
PICTURES = {
    "gone.png": "does not exist; check the path (working folder: ",
    "empty.png": "has zero bytes; replace the file",
    "half.png": "is damaged or truncated (",
    "half.jpg": "is damaged or truncated (",
    "text.png": "is not a picture that Pillow can read; pass a PNG",
    "bomb.png": "decodes to 30000x30000 pixels, over the limit of 178956970; shrink it or raise",
    "narrow.png": ": 2010x10 pixels have an aspect ratio of 201, over the limit of 200; crop or pad it.",
}
VIDEOS = {
    "gone.mp4": "does not exist; check the path (working folder: ",
    "empty.mp4": "has zero bytes; replace the file",
    "text.mp4": ": the video cannot be decoded (Invalid data found",
    "half.mp4": ": the video cannot be decoded (",
    "sound.wav": ": the file holds no video stream; pass a video.",
    "one.mp4": ": 1 frames under max_frames 64 leave fewer than the 2",
}
FILES = [("image", name) for name in PICTURES] + [("video", name) for name in VIDEOS]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file of PICTURES and VIDEOS that exists."""
    folder = tmp_path_factory.mktemp("media")
    whole = write_video(folder / "whole.mp4", (64, 64), 30).read_bytes()
    write_video(folder / "one.mp4", (64, 64), 1)
    Image.new("RGB", (2010, 10)).save(folder / "narrow.png")
    contents = {"half.mp4": whole[: len(whole) // 2], "bomb.png": huge_png(30_000, 30_000)}
    contents |= {"half.png": encoded()[:900], "half.jpg": encoded("JPEG")[:400]}
    contents |= {"empty.png": b"", "empty.mp4": b"", "text.png": b"no picture", "text.mp4": b"no film"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with wave.open(str(folder / "sound.wav"), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        stream.writeframes(bytes(16000))
    return folder


@pytest.fixture(scope="module")
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


@pytest.mark.parametrize(("key", "name"), FILES, ids=[name for _, name in FILES])
def test_a_bad_file_is_named_and_the_others_are_kept(
    key: str, name: str, media: Path, embedder: Qwen3VLEmbedder
) -> None:
    good, bad = [{"text": "a"}, {"image": PICTURE}], {"text": "beside", key: str(media / name)}
    message = refusal(lambda: embedder.process([*good, bad]), MediaError)
    assert message.startswith(f"inputs[2]: {key}: {media / name}")
    assert (PICTURES | VIDEOS)[name] in message
    skipped: list[Skipped] = []
    rows = embedder.process([good[0], bad, good[1]], on_error="skip", skipped=skipped)
    assert np.isnan(rows[1]).all()
    assert np.abs(rows[[0, 2]] - embedder.process(good)).max() <= 1e-6
    assert [each.index for each in skipped] == [1]
    assert isinstance(skipped[0].error, MediaError)
    assert str(skipped[0].error) == message.replace("inputs[2]", "inputs[1]")


@pytest.mark.parametrize(("key", "name"), FILES, ids=[name for _, name in FILES])
def test_the_reranker_names_query_and_document(key: str, name: str, media: Path, reranker: Qwen3VLReranker) -> None:
    text, bad = {"text": "a"}, {key: media / name}
    message = refusal(lambda: reranker.process({"query": bad, "documents": [text]}), MediaError)
    assert message.startswith(f"query: {key}: {media / name}")
    request = {"query": text, "documents": [text, bad, {"image": PICTURE}]}
    assert refusal(lambda: reranker.process(request), MediaError) == message.replace("query", "documents[1]", 1)
    skipped: list[Skipped] = []
    scores = reranker.process(request, on_error="skip", skipped=skipped)
    others = reranker.process({"query": text, "documents": [text, {"image": PICTURE}]})
    assert np.isnan(scores[1])
    assert [scores[0], scores[2]] == pytest.approx(others, abs=1e-6)
    assert [(each.index, type(each.error)) for each in skipped] == [(1, MediaError)]
    refusal(lambda: reranker.process({"query": bad, "documents": [text]}, on_error="skip"), MediaError)


def test_one_of_several_is_named(media: Path, embedder: Qwen3VLEmbedder) -> None:
    def message(**item: Any) -> str:
        return refusal(lambda: embedder.process([item]))

    gone = media / "gone.png"
    assert message(image=[PICTURE, gone]).startswith(f"inputs[0]: image[1]: {gone} does not exist")
    assert message(image=[PICTURE, b"half"]).startswith("inputs[0]: image[1]: bytes (4 of them) is not a picture")
    assert message(video=[PICTURE, gone]).startswith(f"inputs[0]: video: frame 1: {gone} does not exist")
    assert message(video=[[PICTURE], [b""]]).startswith("inputs[0]: video[1]: frame 0: bytes (0 of them) has zero")
    assert message(text=["a", 3]) == "inputs[0]: text[1] is 3, expected a string or a list of strings."
    assert message(image=["", gone]).startswith("inputs[0]: image[0]: the path is empty; pass the path of a picture")


DICT = "expected a dict with text, image, video, instruction, fps, max_frames"
WRONG: list[tuple[Any, str]] = [
    ("a duck", f"inputs[1] is the string 'a duck', {DICT}; write {{'text': 'a duck'}}."),
    (None, f"inputs[1] is None, {DICT}."),
    (7, f"inputs[1] is 7, {DICT}."),
    ([{"text": "a"}], f"inputs[1] is a list of 1, {DICT}."),
    (
        {"txt": "a"},
        "inputs[1] has the unknown key 'txt'; known keys are text, image, video, instruction, fps, max_frames.",
    ),
    ({"text": 3}, "inputs[1]: text is 3, expected a string or a list of strings."),
    ({"text": b"a"}, "inputs[1]: text is bytes (1 of them), expected a string or a list of strings."),
    ({"text": "a", "instruction": ["b"]}, "inputs[1]: instruction is a list of 1, expected a string."),
    (
        {"image": {"url": "a"}},
        "inputs[1]: image is a dict of 1, expected a path, URL, data URI, bytes, PIL image or numpy array, "
        "or a list of them.",
    ),
    (
        {"video": PICTURE},
        "inputs[1]: video is PIL image (RGB, 64x64), expected a path, a URL, a list of frames or a list of videos.",
    ),
    ({"video": [[]]}, "inputs[1]: video[0] is an empty list, expected a path, a URL or a list of frames."),
    ({"text": "a", "fps": -1}, "inputs[1]: fps is -1, expected a positive number."),
    ({"text": "a", "fps": float("nan")}, "inputs[1]: fps is nan, expected a positive number."),
    ({"text": "a", "max_frames": 2.5}, "inputs[1]: max_frames is 2.5, expected a positive whole number."),
    (
        {"text": "a<|image_pad|>"},
        "inputs[1]: text contains the special token <|image_pad|>; remove it, or pass special_tokens='escape' "
        "to embed it as ordinary characters.",
    ),
    (
        {"text": "a", "instruction": "<|video_pad|>"},
        "inputs[1]: instruction contains the special token <|video_pad|>; remove it, or pass "
        "special_tokens='escape' to embed it as ordinary characters.",
    ),
    (
        {"text": "a\ud800"},
        "inputs[1]: text holds a lone surrogate at position 1, which is no character; decode the text with the right "
        "encoding.",
    ),
]


@pytest.mark.parametrize(("item", "message"), WRONG, ids=[ascii(item)[:40] for item, _ in WRONG])
def test_wrong_items_are_named(item: Any, message: str, embedder: Qwen3VLEmbedder) -> None:
    assert refusal(lambda: embedder.process([{"text": "a"}, item])) == message
    skipped: list[Skipped] = []
    rows = embedder.process([{"text": "a"}, item], on_error="skip", skipped=skipped)
    assert np.isfinite(rows[0]).all() and np.isnan(rows[1]).all()
    assert [(each.index, str(each.error)) for each in skipped] == [(1, message)]


@pytest.mark.parametrize(
    ("inputs", "found"),
    [({"text": "a"}, "a dict of 1"), ("a", "the string 'a'"), (None, "None"), (iter([{}]), "list_iterator")],
)
def test_anything_but_a_list_is_refused(inputs: Any, found: str, embedder: Qwen3VLEmbedder) -> None:
    message = refusal(lambda: embedder.process(inputs, on_error="skip"))
    assert message == f"inputs is {found}, expected a list of dicts such as [{{'text': 'a red car'}}]."


def test_visual_tokens_are_never_cut(package: Packages) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"), max_length=40)
    message = refusal(lambda: embedder.process([{"text": "a"}, {"image": Image.new("RGB", (256, 256))}]))
    assert message.startswith("inputs[1]: the prompt has ")
    assert "64 of them visual, and cutting it to max_length 40 would cut visual tokens; lower max_pixels" in message
    assert np.isfinite(embedder.process([{"text": "a word " * 99}])).all()  # a long text is cut, as in the reference


FETCHES = {
    "silent": "did not arrive within 0.3 seconds; try again or raise FetchLimits.timeout.",
    "endless": "has more, over the limit of 5000 bytes; pass a smaller file or raise FetchLimits.max_bytes.",
    "ok.png": "decodes to 30x20 pixels, over the limit of 500; shrink it or raise FetchLimits.max_image_pixels.",
    "missing.png": "answered HTTP 404 Not Found; check that the address exists and is public.",
}


@pytest.mark.parametrize("kind", FETCHES)
def test_fetching_is_bounded(kind: str, package: Packages) -> None:
    limits = FetchLimits(timeout=0.3, max_bytes=5000, max_image_pixels=500)
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"), fetch=limits)
    with served(encoded()) as address:
        source = f"{address}/{kind}"
        message = refusal(lambda: embedder.process([{"text": "a"}, {"image": source}]), MediaError)
        assert message == f"inputs[1]: image: {source} {FETCHES[kind]}"
        if kind != "ok.png":
            message = refusal(lambda: embedder.process([{"video": source}]), MediaError)
            assert message == f"inputs[0]: video: {source} {FETCHES[kind]}"
