from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Shape

from export.reference import ReferenceEmbedder, ReferenceReranker
from export.reference_prompt import ReferenceOptions, embedder_messages, reranker_messages, truncate
from runtime.errors import CheckpointError, InputError

Checkpoints = Callable[[Shape, Task], Path]
OPTIONS = ReferenceOptions()


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for seed in range(20):
            frame = np.asarray(picture(15, 20, seed).resize((640, 480)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def embedder(checkpoint: Checkpoints) -> ReferenceEmbedder:
    return ReferenceEmbedder(checkpoint(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(checkpoint: Checkpoints) -> ReferenceReranker:
    return ReferenceReranker(checkpoint(TINY_8B, "reranker"))


def test_a_batch_gives_what_single_items_give(embedder: ReferenceEmbedder) -> None:
    items: list[dict[str, Any]] = [
        {"text": "a duck on a pond", "instruction": "Find the bird"},
        {"image": picture(64, 96), "text": "what is this?"},
        {},
        {"video": [picture(64, 64, seed) for seed in range(3)], "image": picture(40, 100)},
    ]
    batch = embedder.embed(items)
    assert batch.shape == (4, 64)
    assert batch.dtype == np.float32
    assert np.abs(np.linalg.norm(batch, axis=1) - 1).max() < 1e-6
    single = np.concatenate([embedder.embed([item]) for item in items])
    assert np.abs(batch - single).max() < 1e-6


def test_the_embedding_is_the_hidden_state_of_endoftext(embedder: ReferenceEmbedder) -> None:
    stages = embedder.stages({"text": "hi"})
    assert stages.prompt == (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert stages.input_ids[-2:].tolist() == [198, 151643]
    assert stages.position_ids.tolist() == [list(range(len(stages.input_ids)))] * 3
    assert stages.visual_tokens.shape == (0, 64)
    assert stages.deepstack.shape == (3, 0, 64)
    assert (stages.pixel_values, stages.pixel_values_videos, stages.logit) == (None, None, None)
    assert np.array_equal(embedder.embed([{"text": "hi"}], normalize=False)[0], stages.embedding)


def test_stages_of_a_picture(embedder: ReferenceEmbedder) -> None:
    stages = embedder.stages({"image": picture(64, 96), "text": "hi"})
    assert stages.image_grid_thw is not None
    assert stages.image_grid_thw.tolist() == [[1, 4, 6]]
    assert stages.pixel_values is not None
    assert stages.pixel_values.shape == (24, 1536)
    assert stages.visual_tokens.shape == (6, 64)
    assert stages.deepstack.shape == (3, 6, 64)
    start = stages.input_ids.tolist().index(151655)
    assert (stages.position_ids[:, start : start + 7] - start).tolist() == [
        [0, 0, 0, 0, 0, 0, 3],
        [0, 0, 0, 1, 1, 1, 3],
        [0, 1, 2, 0, 1, 2, 3],
    ]


def test_visual_rows_stand_in_the_order_of_the_prompt(reranker: ReferenceReranker) -> None:
    image, frames = picture(64, 96), [picture(64, 64, seed) for seed in (1, 2)]
    both = reranker.stages({"image": image}, {"video": frames})
    swapped = reranker.stages({"video": frames}, {"image": image})
    assert len(both.visual_tokens) > 6
    assert np.allclose(both.visual_tokens[:6], swapped.visual_tokens[-6:], atol=1e-5)
    assert np.allclose(both.deepstack[:, 6:], swapped.deepstack[:, :-6], atol=1e-5)


def test_the_score_is_the_sigmoid_of_the_last_tokens_logit(reranker: ReferenceReranker) -> None:
    query, document = {"text": "a duck"}, {"text": "a bird", "image": picture(64, 64)}
    stages = reranker.stages(query, document, "Find it")
    assert stages.input_ids[-5:].tolist() == [151645, 198, 151644, 77091, 198]
    assert stages.logit is not None
    inputs = {"query": query, "documents": [document, {}], "instruction": "Find it"}
    scores = reranker.score(inputs)
    assert len(scores) == 2
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-stages.logit)), abs=1e-6)
    assert 0 < scores[0] < 1
    assert abs(scores[0] - scores[1]) > 1e-3


def test_a_video_file(embedder: ReferenceEmbedder, video: str) -> None:
    stages = embedder.stages({"video": video})
    assert stages.video_grid_thw is not None
    assert stages.video_grid_thw.tolist() == [[2, 30, 40]]
    assert stages.pixel_values_videos is not None
    assert stages.pixel_values_videos.shape == (2 * 30 * 40, 1536)


def test_the_total_budget_holds_for_files_only_on_request(checkpoint: Checkpoints, video: str) -> None:
    folder = checkpoint(TINY_2B, "embedding")
    grids = []
    for file_total_pixels in (False, True):
        options = ReferenceOptions(total_pixels=4 * 150_000 // 2, file_total_pixels=file_total_pixels)
        grids.append(ReferenceEmbedder(folder, options).stages({"video": video}).video_grid_thw)
    assert grids[0] is not None
    assert grids[1] is not None
    assert grids[0].tolist() == [[2, 30, 40]]
    assert int(np.prod(grids[1][0, 1:])) * 256 <= 150_000


def test_unreadable_media_raise(embedder: ReferenceEmbedder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        embedder.embed([{"image": str(tmp_path / "missing.png")}])
    with pytest.raises(InputError, match="a picture is a bytes"):
        embedder.embed([{"image": b"..."}])


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        ReferenceEmbedder(tmp_path)


@pytest.mark.parametrize(
    ("instruction", "system"),
    [
        (None, "Represent the user's input."),
        ("", "Represent the user's input."),
        ("  ", "Represent the user's input."),
        ("Find the bird ", "Find the bird."),
        ("Find the bird!", "Find the bird!"),
        ("找到这只鸟。", "找到这只鸟。"),
        ("a+", "a+."),
    ],
)
def test_the_instruction_ends_with_punctuation(instruction: str | None, system: str) -> None:
    messages = embedder_messages({"text": "x", "instruction": instruction}, OPTIONS)
    assert messages[0] == {"role": "system", "content": [{"type": "text", "text": system}]}


def test_videos_come_before_images_before_texts() -> None:
    item = {"text": ["a", "b"], "image": "p.png", "video": ["a.mp4", "b.mp4"], "fps": 3}
    parts = embedder_messages(item, OPTIONS)[1]["content"]
    assert [part[part["type"]] for part in parts] == [
        "file://a.mp4",
        "file://b.mp4",
        "file://p.png",
        "a",
        "b",
    ]
    assert parts[0] == {"type": "video", "video": "file://a.mp4", "fps": 3, "max_frames": 64}
    assert parts[2] == {"type": "image", "image": "file://p.png", "min_pixels": 4096, "max_pixels": 1_843_200}


def test_a_list_of_frames_is_sampled_and_carries_the_total_budget() -> None:
    frames = [f"{index}.JPG" for index in range(7)]
    part = embedder_messages({"video": frames}, ReferenceOptions(max_frames=3))[1]["content"][0]
    assert part == {
        "type": "video",
        "video": ["file://0.JPG", "file://3.JPG", "file://6.JPG"],
        "total_pixels": 7_864_320,
    }


def test_the_reranker_prompt_names_its_parts() -> None:
    messages = reranker_messages({"query": {"text": ("Judge", "a duck")}}, {}, OPTIONS)
    assert [part["text"] for part in messages[1]["content"]] == [
        "<Instruct>: Judge",
        "<Query>:",
        "a duck",
        "\n<Document>:",
        "NULL",
    ]


def test_truncation_keeps_special_tokens_and_the_tail() -> None:
    special = {9}
    tail = [1, 2, 3, 4, 5]
    assert truncate([10, 9, 11, 12, 9, 13, *tail], 6, special) == [10, 9, 11, 12, 9, 13, *tail]
    assert truncate([10, 9, 11, 12, 9, 13, *tail], 4, special) == [10, 9, 11, 9, *tail]
    assert truncate([10, 9, 11, 12, 9, 13, *tail], 1, special) == [9, 9, *tail]
