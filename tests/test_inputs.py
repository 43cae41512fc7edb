"""Dicts of the user to typed values: every accepted form, and every refusal with its sentence."""

import io
import pathlib
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from case_names import shown
from PIL import Image

from runtime.errors import InputError
from runtime.prompts.inputs import Content, looks_like_media, parse_content, parse_item, parse_request, require_list

PATH = pathlib.Path("a.png")
ARRAY = np.zeros((4, 4, 3), np.uint8)
PICTURE = Image.fromarray(ARRAY)
BUFFER = io.BytesIO()
PICTURE.save(BUFFER, "PNG")
ENCODED = BUFFER.getvalue()
SOURCES: list[Any] = [
    "a.png",
    "https://host/a.png",
    "data:image/png;base64,AA==",
    PATH,
    ENCODED,
    bytearray(ENCODED),
    PICTURE,
]
SOURCES += [memoryview(ENCODED), ARRAY]


def same(found: Any, expected: Any) -> bool:
    """Equal tuples whose pictures are the very objects that were given."""
    if isinstance(expected, tuple):
        return isinstance(found, tuple) and len(found) == len(expected) and all(map(same, found, expected))
    return found is expected or (isinstance(found, str | pathlib.Path) and found == expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Content()),
        ({"text": None, "image": None, "video": None}, Content()),
        ({"text": [], "image": [], "video": []}, Content()),
        ({"text": "a"}, Content(texts=("a",))),
        ({"text": ""}, Content(texts=("",))),
        ({"text": ["a", "日本", "a"]}, Content(texts=("a", "日本", "a"))),
        ({"image": SOURCES}, Content(images=tuple(SOURCES))),
        ({"video": "a.mp4"}, Content(videos=("a.mp4",))),
        ({"video": "a.png"}, Content(videos=("a.png",))),
        ({"video": PATH}, Content(videos=(PATH,))),
        ({"video": ["a.mp4", "b.mp4"]}, Content(videos=("a.mp4", "b.mp4"))),
        ({"video": [pathlib.Path("a.mp4")]}, Content(videos=(pathlib.Path("a.mp4"),))),
        ({"video": ["http://host/a.mp4?poster=b.png"]}, Content(videos=("http://host/a.mp4?poster=b.png",))),
        ({"video": ["a.png", PICTURE]}, Content(videos=(("a.png", PICTURE),))),
        ({"video": ["http://host/A.JPG?size=4", "b"]}, Content(videos=(("http://host/A.JPG?size=4", "b"),))),
        ({"video": ["http://host/a.jpg;v=2", "b"]}, Content(videos=(("http://host/a.jpg;v=2", "b"),))),
        ({"video": [".png"]}, Content(videos=(".png",))),
        ({"video": [["a", "b"], "c.mp4", [PICTURE]]}, Content(videos=(("a", "b"), "c.mp4", (PICTURE,)))),
        (MappingProxyType({"text": "a", "video": [PICTURE], "image": PATH}), Content(("a",), (PATH,), ((PICTURE,),))),
    ],
    ids=shown,
)
def test_contents(given: Any, expected: Content) -> None:
    found = parse_content(given, "here")
    for name in ("texts", "images", "videos"):
        assert same(getattr(found, name), getattr(expected, name)), name


def test_what_is_empty() -> None:
    assert parse_content({"text": [], "image": None, "video": []}, "here").is_empty
    for content in ({"text": ""}, {"image": PICTURE}, {"video": "a.mp4"}):
        assert not parse_content(content, "here").is_empty


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_one_picture_is_a_list_of_one(source: Any) -> None:
    assert same(parse_content({"image": source}, "here").images, (source,))


@pytest.mark.parametrize("frame", [*SOURCES[2:], pathlib.Path("a.PNG"), "a.webp"], ids=lambda each: type(each).__name__)
def test_a_list_that_starts_with_a_picture_is_one_video(frame: Any) -> None:
    assert same(parse_content({"video": [frame, "b.bin"]}, "here").videos, ((frame, "b.bin"),))


def test_items() -> None:
    item = parse_item({"text": "a", "instruction": "find", "fps": 2, "max_frames": np.int64(8)}, "here")
    assert (item.content.texts, item.instruction, item.fps, item.max_frames) == (("a",), "find", 2.0, 8)
    assert (type(item.fps), type(item.max_frames)) == (float, int)
    item = parse_item({"fps": np.float32(0.5)}, "here")
    assert (item.content.is_empty, item.instruction, item.fps, item.max_frames) == (True, None, 0.5, None)


def test_requests() -> None:
    documents = [{"text": "a"}, "wrong, but found only when its turn comes"]
    request = parse_request({"query": {"text": ["q"]}, "documents": documents, "instruction": "find", "fps": 2})
    assert request.query.texts == ("q",)
    assert request.documents == tuple(documents)
    assert (request.instruction, request.fps, request.max_frames) == ("find", 2.0, None)
    assert parse_request({"query": {"text": "q"}, "documents": ()}).documents == ()


def test_a_pair_brings_its_own_instruction() -> None:
    request = parse_request({"query": {"text": ("find", "q"), "image": PATH}, "documents": [], "instruction": "other"})
    assert (request.instruction, request.query.texts, request.query.images) == ("find", ("q",), (PATH,))


SURROGATE = "holds a lone surrogate at position 1, which is no character; decode the text with the right encoding."
KNOWN = "known keys are text, image, video, instruction, fps, max_frames."
IMAGES = "expected a path, URL, data URI, bytes, PIL image or numpy array, or a list of them."
VIDEOS = "expected a path, a URL, a list of frames or a list of videos."
NUMBER, COUNT = "expected a positive number.", "expected a positive whole number."


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "a cat",
            "in[3] is the string 'a cat', expected a dict with text, image, video, instruction, fps, "
            "max_frames; write {'text': 'a cat'}.",
        ),
        (None, "in[3] is None, expected a dict with text, image, video, instruction, fps, max_frames."),
        ([{}], "in[3] is a list of 1, expected a dict with text, image, video, instruction, fps, max_frames."),
        ({"images": PATH}, f"in[3] has the unknown key 'images'; {KNOWN}"),
        ({1: PATH}, f"in[3] has the unknown key 1; {KNOWN}"),
        ({"text": 3}, "in[3]: text is 3, expected a string or a list of strings."),
        ({"text": b"a"}, "in[3]: text is bytes (1 of them), expected a string or a list of strings."),
        ({"text": ["a", None]}, "in[3]: text[1] is None, expected a string or a list of strings."),
        ({"text": ("a", "b")}, "in[3]: text is a tuple of 2, expected a string or a list of strings."),
        ({"text": "a\ud800"}, f"in[3]: text {SURROGATE}"),
        ({"instruction": ["a"]}, "in[3]: instruction is a list of 1, expected a string."),
        ({"instruction": "a\udfff"}, f"in[3]: instruction {SURROGATE}"),
        ({"image": 3.5}, f"in[3]: image is 3.5, {IMAGES}"),
        ({"image": ["a.png", None]}, f"in[3]: image[1] is None, {IMAGES}"),
        ({"image": {}}, f"in[3]: image is an empty dict, {IMAGES}"),
        ({"image": [["a.png"]]}, f"in[3]: image is a list of 1, {IMAGES}"),
        ({"video": PICTURE}, f"in[3]: video is PIL image (RGB, 4x4), {VIDEOS}"),
        ({"video": ARRAY}, f"in[3]: video is array (uint8, shape (4, 4, 3)), {VIDEOS}"),
        ({"video": ("a.png",)}, f"in[3]: video is a tuple of 1, {VIDEOS}"),
        ({"video": ["a.mp4", []]}, "in[3]: video[1] is an empty list, expected a path, a URL or a list of frames."),
        (
            {"video": ["a.mp4", PICTURE]},
            "in[3]: video[1] is PIL image (RGB, 4x4), expected a path, a URL or a list of frames.",
        ),
        ({"video": [None]}, "in[3]: video[0] is None, expected a path, a URL or a list of frames."),
        ({"video": [PICTURE, 7]}, f"in[3]: video: frame 1 is 7, {IMAGES}"),
        ({"video": ["a.mp4", ["a.png", None]]}, f"in[3]: video[1]: frame 1 is None, {IMAGES}"),
        ({"fps": 0}, f"in[3]: fps is 0, {NUMBER}"),
        ({"fps": -1.5}, f"in[3]: fps is -1.5, {NUMBER}"),
        ({"fps": float("nan")}, f"in[3]: fps is nan, {NUMBER}"),
        ({"fps": float("inf")}, f"in[3]: fps is inf, {NUMBER}"),
        ({"fps": True}, f"in[3]: fps is True, {NUMBER}"),
        ({"fps": "2"}, f"in[3]: fps is the string '2', {NUMBER}"),
        ({"max_frames": 0}, f"in[3]: max_frames is 0, {COUNT}"),
        ({"max_frames": 8.0}, f"in[3]: max_frames is 8.0, {COUNT}"),
        ({"max_frames": True}, f"in[3]: max_frames is True, {COUNT}"),
    ],
    ids=shown,
)
def test_refused_items(item: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_item(item, "in[3]")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs is an empty list, expected a dict with query, documents, instruction, fps, max_frames."),
        ({"documents": []}, "inputs: query is None, expected a dict with text, image or video."),
        ({"query": {}, "documents": []}, "inputs: query is an empty dict, expected a dict with text, image or video."),
        ({"query": 5, "documents": []}, "inputs: query is 5, expected a dict with text, image or video."),
        ({"query": {"text": "q"}}, "inputs: documents is None, expected a list of dicts."),
        ({"query": {"text": "q"}, "documents": {"text": "a"}},
         "inputs: documents is a dict of 1, expected a list of dicts."),
        ({"query": {"text": "q"}, "documents": "a"}, "inputs: documents is the string 'a', expected a list of dicts."),
        ({"query": {"text": "q"}, "document": []},
         "inputs has the unknown key 'document'; known keys are query, documents, instruction, fps, max_frames."),
        ({"query": {"txt": "q"}, "documents": []},
         "query has the unknown key 'txt'; known keys are text, image, video."),
        ({"query": {"text": ("a", "b", "c")}, "documents": []},
         "query: text is a tuple of 3, expected a string or a pair (instruction, text)."),
        ({"query": {"text": ("a", None)}, "documents": []},
         "query: text is a tuple of 2, expected a string or a pair (instruction, text)."),
        ({"query": {"text": ("a\ud800", "b")}, "documents": []}, f"query: instruction {SURROGATE}"),
        ({"query": {"text": ("a", "b\ud800")}, "documents": []}, f"query: text {SURROGATE}"),
        ({"query": {"image": 5}, "documents": []}, f"query: image is 5, {IMAGES}"),
        ({"query": {"text": "q"}, "documents": [], "max_frames": -1}, f"inputs: max_frames is -1, {COUNT}"),
        ({"query": {"text": "q"}, "documents": [], "fps": 0}, f"inputs: fps is 0, {NUMBER}"),
        ({"query": {"text": "q"}, "documents": [], "instruction": 5},
         "inputs: instruction is 5, expected a string."),
    ],
    ids=shown,
)  # fmt: skip
def test_refused_requests(inputs: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_request(inputs)
    assert str(caught.value) == message


@pytest.mark.parametrize(("key", "expected"), [("fps", NUMBER), ("max_frames", COUNT)])
def test_numbers_that_python_cannot_write_are_refused(key: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_item({key: -(10**5000)}, "in[3]")
    assert str(caught.value) == f"in[3]: {key} is a whole number of 16610 bits, {expected}"


@pytest.mark.parametrize("fps", [10**400, np.complex64(1), np.longdouble("1e4000")], ids=["int", "complex", "long"])
def test_what_no_float_can_hold_is_no_rate(fps: Any) -> None:
    with pytest.raises(InputError, match=r"^in\[3\]: fps is .*, expected a positive number\.$"):
        parse_item({"fps": fps}, "in[3]")


def test_a_long_string_is_shown_shortened() -> None:
    with pytest.raises(InputError) as caught:
        parse_item("x" * 10_000, "inputs[0]")
    assert len(str(caught.value)) < 300


def test_the_embedder_takes_a_list() -> None:
    items = [{"text": "a"}]
    assert require_list(items) is items
    assert require_list(()) == ()
    with pytest.raises(InputError) as caught:
        require_list({"text": "a"})
    assert str(caught.value) == ("inputs is a dict of 1, expected a list of dicts such as [{'text': 'a red car'}].")


@pytest.mark.parametrize("text", ["a.png", "/photos/a.JPEG", "https://host/x.webp?y=1#z",
                                  "C:\\photos\\a.tiff", "data:image/png;base64,AAAA"])  # fmt: skip
def test_texts_that_look_like_media(text: str) -> None:
    assert looks_like_media(text)


@pytest.mark.parametrize("text", ["", "png", "see a.png", "a.png is red", "https://host/page", "http://[::1/a.png",
                                  "data: image/png", "a.pdf", ".png"])  # fmt: skip
def test_texts_that_do_not(text: str) -> None:
    assert not looks_like_media(text)
