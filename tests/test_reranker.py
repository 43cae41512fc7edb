"""`Qwen3VLReranker` from a request to scores; equality with the reference is in test_parity.py."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import Qwen3VLReranker
from runtime.graphs.vision import VisualFeatures
from runtime.media.image import Visual
from runtime.prompts.inputs import parse_content

Packages = Callable[[Shape, Task], Path]
CLOSE = 1e-6  # float32 sums in another order


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


QUERY = {"text": "a duck on a pond"}
DOCUMENTS: list[dict[str, Any]] = [
    {"text": "water birds"},
    {"image": picture(1)},
    {"text": "a picture", "image": picture(2, (40, 90))},
    {"video": [picture(seed) for seed in range(3)]},
    {},
    {"text": "a much longer text, " * 20},
]


@pytest.fixture(scope="module")
def folder(package: Packages) -> Path:
    return package(TINY_2B, "reranker")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Qwen3VLReranker:
    return Qwen3VLReranker(folder)


def test_scores_are_probabilities_in_the_order_of_the_documents(reranker: Qwen3VLReranker) -> None:
    scores = reranker.process({"query": QUERY, "documents": DOCUMENTS})
    assert [type(score) for score in scores] == [float] * len(DOCUMENTS)
    assert all(0 < score < 1 for score in scores)
    assert len({round(score, 4) for score in scores}) == len(DOCUMENTS)  # each document has a score of its own
    assert scores == [reranker.process({"query": QUERY, "documents": [each]})[0] for each in DOCUMENTS]
    assert reranker.process({"query": QUERY, "documents": DOCUMENTS[::-1]}) == scores[::-1]


def test_no_documents_no_scores(reranker: Qwen3VLReranker) -> None:
    assert reranker.process({"query": QUERY, "documents": []}) == []
    assert reranker.process({"query": QUERY, "documents": ()}) == []


@pytest.mark.parametrize("query", [QUERY, {"image": picture(7)}], ids=["text", "picture"])
def test_batches_do_not_change_scores(query: Any, reranker: Qwen3VLReranker, folder: Path) -> None:
    request = {"query": query, "documents": DOCUMENTS}
    scores = Qwen3VLReranker(folder, batch_tokens=100).process(request)
    assert scores == pytest.approx(reranker.process(request), abs=CLOSE)


def test_three_ways_to_give_an_instruction(reranker: Qwen3VLReranker, folder: Path) -> None:
    asked, request = "Find the bird", {"query": QUERY, "documents": DOCUMENTS}
    scores = reranker.process({**request, "instruction": asked})
    assert np.abs(np.subtract(scores, reranker.process(request))).max() > 1e-3
    assert reranker.process({**request, "query": {"text": (asked, QUERY["text"])}}) == scores
    # The pair wins over the request's own, as in the reference.
    both = {**request, "query": {"text": (asked, QUERY["text"])}, "instruction": "Find the fish"}
    assert reranker.process(both) == scores
    assert Qwen3VLReranker(folder, default_instruction=asked).process(request) == scores
    assert reranker.process({**request, "instruction": ""}) == reranker.process(request)


def test_sides_are_not_exchangeable(reranker: Qwen3VLReranker) -> None:
    one, other = {"text": "a duck"}, {"text": "a pond", "image": picture(4)}
    there = reranker.process({"query": one, "documents": [other]})
    back = reranker.process({"query": other, "documents": [one]})
    assert abs(there[0] - back[0]) > 1e-4


def test_the_querys_picture_is_encoded_once(
    reranker: Qwen3VLReranker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "query.png"
    picture(5).save(path)
    query = {"image": str(path), "text": "like this"}
    separate = [reranker.process({"query": query, "documents": [each]})[0] for each in DOCUMENTS]
    vision, seen = reranker.package.model.vision, 0
    encode = vision.features

    def counted(visuals: Sequence[Visual]) -> list[VisualFeatures]:
        nonlocal seen
        seen += len(visuals)
        return encode(visuals)

    monkeypatch.setattr(vision, "features", counted)
    scores = reranker.process({"query": query, "documents": DOCUMENTS})
    assert scores == pytest.approx(separate, abs=CLOSE)
    assert seen == 1 + sum("image" in each or "video" in each for each in DOCUMENTS)


def test_pictures_of_both_sides_stand_in_their_own_places(folder: Path) -> None:
    reranker = Qwen3VLReranker(folder)
    query, documents = {"image": picture(5)}, [{"image": picture(6)}, {"image": [picture(7), picture(8)]}]
    encoder, model = reranker.package.encoder, reranker.package.model
    expected = []
    for document in documents:
        asked, offered = (encoder.load(parse_content(side, "here"), None, None, "here") for side in (query, document))
        sequence = encoder.rerank_sequence(asked, offered, None, "here")
        logit = model.pooled([model.prompt(sequence, [*asked.visuals, *offered.visuals])])[0]
        expected.append(1 / (1 + np.exp(-logit)))
    assert reranker.process({"query": query, "documents": documents}) == pytest.approx(expected, abs=CLOSE)


def test_text_alone_leaves_the_vision_encoder_closed(folder: Path) -> None:
    reranker = Qwen3VLReranker(folder)
    reranker.process({"query": QUERY, "documents": [{"text": "water birds"}, {}]})
    assert not reranker.package.model.vision.is_open
    reranker.process({"query": QUERY, "documents": [{"image": picture(1)}]})
    assert reranker.package.model.vision.is_open


def test_frames_of_the_request_hold_for_both_sides(reranker: Qwen3VLReranker) -> None:
    frames = [picture(seed) for seed in range(6)]
    # As in the reference, a list of frames obeys the constructor's max_frames and never the request's.
    request = {"query": QUERY, "documents": [{"video": frames}]}
    assert reranker.process({**request, "max_frames": 2}) == reranker.process(request)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_goes_to_stderr_only(shown: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reranker = Qwen3VLReranker(folder, show_progress=shown)
    reranker.process({"query": QUERY, "documents": [{"text": "a"}] * 9})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("9/9" in captured.err) == shown
    assert bool(captured.err) == shown


def test_the_options_are_the_references(reranker: Qwen3VLReranker) -> None:
    defaults = {
        "max_length": 10240,
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 1800 * 32 * 32,
        "total_pixels": 10 * 768 * 32 * 32,
        "fps": 1,
        "max_frames": 64,
        "default_instruction": "Given a search query, retrieve relevant candidates that answer the query.",
    }
    options = reranker.package.encoder.options
    assert {name: getattr(options, name) for name in defaults} == defaults
    parameters = list(inspect.signature(Qwen3VLReranker).parameters)
    assert parameters[:8] == ["model_name_or_path", *defaults]
