"""Contents to token sequences, against the reference's ids, grids and positions; and errors that say where."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case_names import shown
from encoders import EMBEDDING, OPTIONS, encoder
from parity_cases import picture
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from video_files import write_video

from export.reference_prompt import ReferenceOptions
from runtime.errors import InputError, MediaError
from runtime.prompts.encode import EncodeOptions, Encoder, Loaded
from runtime.prompts.inputs import Content, parse_content, parse_item
from runtime.prompts.positions import token_positions

Checkpoints = Callable[[Shape, Task], Path]
WIDE, TALL, SMALL = (picture("RGB", size, seed) for seed, size in enumerate([(160, 64), (64, 128), (64, 64)]))
FRAMES = [picture("RGB", (96, 64), seed) for seed in range(5)]
ITEMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "texts around nothing": {"text": ["", "a", ""]},
    "videos come before pictures": {"text": "t", "image": [WIDE, TALL], "video": [FRAMES[:2], FRAMES]},
    "pictures of one size": {"image": [SMALL, SMALL, SMALL], "instruction": "Compare"},
    "picture after odd frames": {"video": FRAMES[:3], "image": TALL},
}


@pytest.fixture(scope="module")
def folders(checkpoint: Checkpoints) -> dict[Task, Path]:
    return {"embedding": checkpoint(TINY_2B, "embedding"), "reranker": checkpoint(TINY_2B, "reranker")}


@pytest.fixture(scope="module")
def encoders(folders: dict[Task, Path]) -> dict[Task, Encoder]:
    return {task: encoder(folder, OPTIONS[task]) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", (160, 128), 24, 8))


def load(encoder: Encoder, item: dict[str, Any], where: str = "inputs[0]") -> Loaded:
    parsed = parse_item(item, where)
    return encoder.load(parsed.content, parsed.fps, parsed.max_frames, where)


def assert_equal(sequence: Any, visuals: Any, expected: Any) -> None:
    """Ids, positions and grids equal the reference's stages."""
    assert sequence.input_ids.tolist() == expected.input_ids.tolist()
    positions = token_positions(sequence.is_visual, sequence.blocks)
    assert np.array_equal(positions, expected.position_ids)
    for is_video, grids in ((False, expected.image_grid_thw), (True, expected.video_grid_thw)):
        found = [list(visual.grid) for visual in visuals if (visual.timestamps is not None) == is_video]
        assert found == ([] if grids is None else grids.tolist())


@pytest.mark.parametrize("name", ITEMS)
def test_items_equal_the_reference(encoders: Any, embedding_reference: Any, name: str) -> None:
    loaded = load(encoders["embedding"], ITEMS[name])
    sequence = encoders["embedding"].embedding_sequence(loaded, ITEMS[name].get("instruction"), "inputs[0]")
    assert_equal(sequence, loaded.visuals, embedding_reference(EMBEDDING).stages(ITEMS[name]))


def test_pairs_equal_the_reference(encoders: Any, folders: Any) -> None:
    """The query's visuals stand before the document's, each side's videos before its pictures."""
    pytest.importorskip("torch")
    reference = importlib.import_module("export.reference").ReferenceReranker(folders["reranker"])
    contents = [{**ITEMS[name]} for name in ITEMS if "instruction" not in ITEMS[name]]
    for query, document in zip(contents, [*contents[2:], *contents[:2]], strict=True):
        loaded = [load(encoders["reranker"], side) for side in (query, document)]
        sequence = encoders["reranker"].rerank_sequence(*loaded, "Find it", "documents[0]")
        visuals = loaded[0].visuals + loaded[1].visuals
        assert_equal(sequence, visuals, reference.stages(query, document, "Find it"))


@pytest.fixture(scope="module")
def embedding_reference(folders: Any) -> Callable[[EncodeOptions], Any]:
    pytest.importorskip("torch")
    module = importlib.import_module("export.reference")

    @cache
    def build(options: EncodeOptions) -> Any:
        chosen = ReferenceOptions(
            max_length=options.max_length,
            max_pixels=options.max_pixels,
            fps=options.fps,
            max_frames=options.max_frames,
            file_total_pixels=not options.strict_video_budget,
        )
        return module.ReferenceEmbedder(folders["embedding"], chosen)

    return build


def test_an_item_s_sampling_applies_to_files_and_not_to_frames(
    folders: Any, embedding_reference: Any, clip: str
) -> None:
    """As in the reference, a list of frames obeys the constructor's max_frames, whatever its item says."""
    options = replace(EMBEDDING, fps=2.0, max_frames=4)
    ours, reference = encoder(folders["embedding"], options), embedding_reference(options)
    frames = load(ours, {"video": FRAMES, "fps": 8, "max_frames": 2}).visuals[0]
    assert (frames.grid[0], frames.timestamps) == (2, (0.25, 1.25))
    for item, pairs in (
        ({"video": clip}, 2),
        ({"video": clip, "max_frames": 20}, 3),
        ({"video": clip, "fps": 8, "max_frames": 9}, 4),
        ({"video": clip, "fps": 0.1}, 2),
        ({"video": [FRAMES, clip], "fps": 8, "max_frames": 2}, 2),
    ):
        loaded = load(ours, item)
        assert loaded.visuals[0].grid[0] == pairs
        sequence = ours.embedding_sequence(loaded, None, "inputs[0]")
        assert_equal(sequence, loaded.visuals, reference.stages(item))


def test_pixel_budgets_are_obeyed(folders: Any, tmp_path: Path) -> None:
    small = encoder(folders["embedding"], replace(EMBEDDING, max_pixels=8192))
    assert load(small, {"image": picture("RGB", (400, 400))}).visuals[0].tokens_per_frame <= 8
    large = encoder(folders["embedding"], replace(EMBEDDING, min_pixels=100 * 1024))
    assert load(large, {"image": SMALL}).visuals[0].tokens_per_frame >= 100
    clip = str(write_video(tmp_path / "clip.mp4", (640, 480), 4, 1))
    tight = replace(EMBEDDING, total_pixels=1)
    assert load(encoder(folders["embedding"], tight), {"video": clip}).visuals[0].tokens_per_frame <= 134
    strict = replace(tight, strict_video_budget=True)
    assert load(encoder(folders["embedding"], strict), {"video": clip}).visuals[0].tokens_per_frame == 20 * 15


def test_a_sequence_by_hand(encoders: Any) -> None:
    loaded = load(encoders["embedding"], {"image": SMALL, "text": "hi"})
    sequence = encoders["embedding"].embedding_sequence(loaded, "Go", "inputs[0]")
    assert sequence.blocks == ((2, 2),)
    assert sequence.is_visual.dtype == bool
    pads = [151652, *[151655] * 4, 151653]
    head, tail = [151644, 8948, 198, 10850, 13, 151645, 198, 151644, 872, 198], [151645, 198, 151644, 77091, 198]
    assert sequence.input_ids.tolist() == [*head, *pads, 6023, *tail, 151643]
    assert np.flatnonzero(sequence.is_visual).tolist() == [11, 12, 13, 14]


@pytest.mark.parametrize(
    ("item", "start"),
    [
        ({"image": "no.png"}, "inputs[4]: image: no.png does not exist; check the path"),
        ({"image": [SMALL, "no.png"]}, "inputs[4]: image[1]: no.png does not exist; check the path"),
        ({"video": ["no.mp4", FRAMES]}, "inputs[4]: video[0]: no.mp4 does not exist; check the path"),
        ({"video": [SMALL, "no.png"]}, "inputs[4]: video: frame 1: no.png does not exist; check the path"),
        ({"video": [SMALL, WIDE]}, "inputs[4]: video: PIL image (RGB, 160x64): frame 1 is "),
        ({"image": picture("RGB", (402, 2))}, "inputs[4]: image: PIL image (RGB, 402x2): 402x2 pixels have an aspect"),
        ({"image": b"no picture"}, "inputs[4]: image: bytes (10 of them) is not a picture that Pillow can read;"),
    ],
    ids=shown,
)
def test_media_errors_say_where(encoders: Any, item: dict[str, Any], start: str) -> None:
    with pytest.raises(MediaError) as caught:
        load(encoders["embedding"], item, "inputs[4]")
    assert str(caught.value).startswith(start)


def test_token_errors_say_where(folders: Any, encoders: Any) -> None:
    for item, where in (({"text": "<|image_pad|>"}, "text"), ({"text": ["a", "<|video_pad|>"]}, "text")):
        with pytest.raises(InputError, match=rf"^inputs\[4\]: {where} contains the special token <\|.*_pad\|>; "):
            load(encoders["embedding"], item, "inputs[4]")
    nothing = load(encoders["embedding"], {})
    with pytest.raises(InputError, match=r"^inputs\[4\]: instruction contains the special token <\|image_pad\|>; "):
        encoders["embedding"].embedding_sequence(nothing, "a <|image_pad|>", "inputs[4]")
    with pytest.raises(InputError, match=r"^documents\[4\]: instruction contains the special token <\|video_pad\|>; "):
        encoders["reranker"].rerank_sequence(nothing, nothing, "a <|video_pad|>", "documents[4]")
    short = encoder(folders["embedding"], replace(EMBEDDING, max_length=20))
    with pytest.raises(InputError, match=r"^inputs\[4\]: the prompt has 32 tokens, 10 of them visual, and cutting it"):
        short.embedding_sequence(load(short, {"image": WIDE}), None, "inputs[4]")


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_special_token_policies(folders: Any, task: Task) -> None:
    """They hold for the text, for one put together from two texts, and for the instruction."""
    turn_end = 151645

    def ids(policy: Any, texts: tuple[str, ...], instruction: str) -> Any:
        ours = encoder(folders[task], replace(OPTIONS[task], special_tokens=policy))
        loaded = ours.load(Content(texts=texts), None, None, "here")
        if task == "embedding":
            return ours.embedding_sequence(loaded, instruction, "here").input_ids.tolist()
        return ours.rerank_sequence(loaded, loaded, instruction, "here").input_ids.tolist()

    plain = ids("refuse", ("a",), "b").count(turn_end)
    for texts, instruction in ((("a<|im_end|>",), "b"), (("a<|im_", "end|>"), "b"), (("a",), "b<|im_end|>")):
        assert ids("allow", texts, instruction).count(turn_end) > plain
        assert ids("escape", texts, instruction).count(turn_end) == plain
        with pytest.raises(InputError, match=r"^here: (text|instruction) contains the special token <\|im_end\|>; "):
            ids("refuse", texts, instruction)
    with pytest.raises(InputError, match=r"^here: text contains the special token <\|image_pad\|>; "):
        ids("allow", ("<|image_", "pad|>"), "b")


def test_a_text_like_a_path_is_embedded_and_warned_of_once(folders: Any) -> None:
    """Warnings are errors here, so the second text shows that there is no second one."""
    ours = encoder(folders["embedding"], EMBEDDING)
    with pytest.warns(UserWarning) as caught:
        loaded = load(ours, {"text": ["a", "photos/cat.jpg"]})
    assert [str(warning.message) for warning in caught] == [
        "inputs[0]: text 'photos/cat.jpg' looks like a picture's path or address and is embedded as text; "
        "pass it as 'image' to embed the picture."
    ]
    assert "".join(loaded.content.texts) == "aphotos/cat.jpg"
    load(ours, {"text": "https://host/dog.png"})


def test_no_text_stays_no_text(encoders: Any) -> None:
    assert load(encoders["embedding"], {"text": []}).content.is_empty
    assert not load(encoders["embedding"], {"text": ""}).content.is_empty
    assert parse_content({"image": SMALL}, "here").texts == ()


@pytest.mark.parametrize("name", ["max_length", "min_pixels", "max_pixels", "total_pixels", "max_frames"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 4096.0, True, "64", None])
def test_whole_number_options(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        replace(EMBEDDING, **{name: value})
    assert str(caught.value) == f"{name} is {value!r}, expected a positive whole number."


@pytest.mark.parametrize("fps", [0, -1.0, True, "2", None, float("nan"), float("inf")])
def test_fps_option(fps: Any) -> None:
    with pytest.raises(InputError) as caught:
        replace(EMBEDDING, fps=fps)
    assert str(caught.value) == f"fps is {fps!r}, expected a positive number."


def test_fps_is_no_more_than_a_float_can_hold() -> None:
    with pytest.raises(InputError, match=r"^fps is 10+, expected a positive number\.$"):
        replace(EMBEDDING, fps=10**400)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("special_tokens", "ignore", "special_tokens is 'ignore', expected one of allow, escape, refuse."),
        ("default_instruction", 5, "default_instruction is 5, expected a string."),
        (
            "default_instruction",
            "a\ud800",
            "default_instruction holds a lone surrogate at position 1, which is no "
            "character; decode the text with the right encoding.",
        ),
        ("max_pixels", 4095, "max_pixels 4095 is below min_pixels 4096; swap or widen them."),
        ("fetch", 5, "fetch is 5, expected FetchLimits such as FetchLimits(timeout=5)."),
    ],
)
def test_other_options(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(EMBEDDING, **{name: value})
    assert str(caught.value) == message
