"""Package against torch reference, stage by stage; the bounds and their reasons stand in export/parity.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from parity_cases import SCRIPTS, embedding_items, picture, rerank_requests
from random_checkpoint import TINY_2B, TINY_8B, Shape
from video_files import write_video

import runtime.graphs.decoder
from export.parity import BOUNDS, VIDEO_BOUNDS, compare_embedding, compare_score
from export.reference import ReferenceEmbedder, ReferenceReranker
from export.reference_prompt import ReferenceOptions
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.graphs.vision import VisualFeatures
from runtime.media.image import Visual
from runtime.prompts.positions import token_positions

Factory = Callable[[Shape, str], Path]
Fault = Callable[[Qwen3VLEmbedder, pytest.MonkeyPatch], None]
SHAPES = pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write_video(path, (160, 128), 23, 10)


@SHAPES
@pytest.mark.parametrize("exact_resize", [False, True], ids=["default", "exact"])
def test_every_stage_of_every_embedding(
    checkpoint: Factory, package: Factory, tmp_path: Path, clip: Path, shape: Shape, exact_resize: bool
) -> None:
    reference = ReferenceEmbedder(checkpoint(shape, "embedding"))
    embedder = Qwen3VLEmbedder(package(shape, "embedding"), exact_resize=exact_resize)
    items = embedding_items(tmp_path, clip)
    if exact_resize:
        items = {name: item for name, item in items.items() if "video" in item}
    for name, item in items.items():
        for each in compare_embedding(embedder.package, name, item, reference.stages(item)):
            assert each.passed, each


@SHAPES
def test_a_mixed_batch_equals_the_reference_and_single_runs(
    checkpoint: Factory, package: Factory, tmp_path: Path, clip: Path, shape: Shape
) -> None:
    reference = ReferenceEmbedder(checkpoint(shape, "embedding"))
    items = list(embedding_items(tmp_path, clip).values())
    expected = reference.embed(items)
    embedder = Qwen3VLEmbedder(package(shape, "embedding"))
    together, single = embedder.process(items), np.concatenate([embedder.process([item]) for item in items])
    np.testing.assert_allclose(together, expected, atol=VIDEO_BOUNDS["embedding"], rtol=0)
    np.testing.assert_allclose(together, single, atol=1e-6, rtol=0)


def test_scripts_emoji_and_truncation(checkpoint: Factory, package: Factory) -> None:
    items = [{"text": text, "instruction": text} for text in SCRIPTS] + [{"text": " ".join(SCRIPTS * 3)}]
    options = ReferenceOptions(max_length=200)
    expected = ReferenceEmbedder(checkpoint(TINY_2B, "embedding"), options).embed(items)
    found = Qwen3VLEmbedder(package(TINY_2B, "embedding"), max_length=200).process(items)
    np.testing.assert_allclose(found, expected, atol=BOUNDS["embedding"], rtol=0)


def test_unnormalised_embeddings(checkpoint: Factory, package: Factory) -> None:
    items = [{"text": "a red car"}, {"text": "a blue bicycle"}]
    expected = ReferenceEmbedder(checkpoint(TINY_2B, "embedding")).embed(items, normalize=False)
    found = Qwen3VLEmbedder(package(TINY_2B, "embedding")).process(items, normalize=False)
    np.testing.assert_allclose(found, expected, atol=BOUNDS["embedding"] * np.abs(expected).max(), rtol=0)


@SHAPES
def test_every_stage_of_every_pair(
    checkpoint: Factory, package: Factory, tmp_path: Path, clip: Path, shape: Shape
) -> None:
    reference = ReferenceReranker(checkpoint(shape, "reranker"))
    reranker = Qwen3VLReranker(package(shape, "reranker"))
    for name, request in rerank_requests(tmp_path, clip).items():
        if "fps" in request or isinstance(request["query"].get("text"), tuple):
            continue  # stages() takes neither; test_scores compares these
        for index, document in enumerate(request["documents"]):
            pair = {**request, "documents": [document]}
            expected = reference.stages(request["query"], document, request.get("instruction"))
            for each in compare_score(reranker.package, f"{name} {index}", pair, expected):
                assert each.passed, each


@SHAPES
def test_scores(checkpoint: Factory, package: Factory, tmp_path: Path, clip: Path, shape: Shape) -> None:
    reference = ReferenceReranker(checkpoint(shape, "reranker"))
    reranker = Qwen3VLReranker(package(shape, "reranker"), exact_resize=True)
    for request in rerank_requests(tmp_path, clip).values():
        np.testing.assert_allclose(reranker.process(request), reference.score(request), atol=BOUNDS["score"], rtol=0)


def test_a_long_pair_is_cut_as_the_reference_cuts(checkpoint: Factory, package: Factory) -> None:
    request = {"query": {"text": "short"}, "documents": [{"text": "<|im_end|> word " * 100}]}
    expected = ReferenceReranker(checkpoint(TINY_2B, "reranker"), ReferenceOptions(max_length=120)).score(request)
    found = Qwen3VLReranker(package(TINY_2B, "reranker"), max_length=120).process(request)
    np.testing.assert_allclose(found, expected, atol=BOUNDS["score"], rtol=0)


def without_deepstack(embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedder.package.model
    run = model.vision.features

    def zeroed(visuals: list[Visual]) -> list[VisualFeatures]:
        return [VisualFeatures(each.tokens, np.zeros_like(each.deepstack)) for each in run(visuals)]

    monkeypatch.setattr(model.vision, "features", zeroed)


def swap_height_and_width(embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        runtime.graphs.decoder, "token_positions", lambda visual, blocks: token_positions(visual, blocks)[[0, 2, 1]]
    )


def drop_final_endoftext(embedder: Qwen3VLEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder.package.encoder.tokenizer, "_suffix", np.zeros(0, np.int64))


@SHAPES
@pytest.mark.parametrize("break_it", [without_deepstack, swap_height_and_width, drop_final_endoftext])
def test_classic_faults_exceed_a_hundred_bounds(
    package: Factory, shape: Shape, break_it: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"image": picture("RGB", (200, 120)), "text": "what is it?"}]
    embedder = Qwen3VLEmbedder(package(shape, "embedding"))
    expected = embedder.process(items)
    break_it(embedder, monkeypatch)
    assert np.abs(embedder.process(items) - expected).max() > 100 * BOUNDS["embedding"]
