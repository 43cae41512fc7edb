"""Recall and rerank: what is found is what the two models say, and an index keeps to what it was made with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from random_checkpoint import TINY_2B

from runtime import Hit, InputError, Qwen3VLEmbedder, Qwen3VLReranker, Searcher, SearchIndexError, rerank
from runtime.manifest import Manifest
from runtime.search.documents import FoundFile
from runtime.search.regime import Regime
from runtime.search.searcher import read_again
from runtime.search.vector_store import STORES, StoreName

Packages = Callable[..., Path]
TEXTS = [f"text number {number}" for number in range(12)]


@pytest.fixture(scope="module")
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve texts and two pictures."""
    folder = tmp_path_factory.mktemp("documents")
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    for name, seed in (("x.png", 0), ("y.png", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def searcher(embedder: Qwen3VLEmbedder, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    searcher = Searcher(embedder, tmp_path_factory.mktemp("made") / "index")
    searcher.add(folder)
    return searcher


def items(folder: Path) -> dict[str, dict[str, Any]]:
    """What each document is, by its name."""
    texts = {f"{number:02}.txt": {"text": text} for number, text in enumerate(TEXTS)}
    return {**texts, "x.png": {"image": str(folder / "x.png")}, "y.png": {"image": str(folder / "y.png")}}


def names(hits: list[Hit]) -> list[str]:
    return [Path(hit.path).name for hit in hits]


def refusal(run: Callable[[], object], kind: type[Exception] = SearchIndexError) -> str:
    """The message of the expected error, one sentence on one line."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "query", [{"text": "number 3"}, {"image": "x.png", "text": "a"}, {"text": "b", "instruction": "Retrieve images."}]
)
def test_recall_is_by_the_cosine(searcher: Searcher, folder: Path, query: dict[str, Any]) -> None:
    query = query | ({"image": str(folder / "x.png")} if "image" in query else {})
    documents = items(folder)
    cosines = searcher.embedder.process(list(documents.values())) @ searcher.embedder.process([query])[0]
    order = np.argsort(-cosines)
    hits = searcher.search(query, 5)
    assert names(hits) == [list(documents)[n] for n in order[:5]]
    np.testing.assert_allclose([hit.cosine for hit in hits], cosines[order[:5]], atol=1e-6)
    assert [hit.score for hit in hits] == [None] * 5
    assert len(searcher.search(query, 100)) == 14


@pytest.mark.parametrize("store", STORES)
def test_an_index_may_be_small(embedder: Qwen3VLEmbedder, folder: Path, tmp_path: Path, store: StoreName) -> None:
    searcher = Searcher(embedder, tmp_path / "index", store=store, dimensions=32)
    if store == "binary":
        with pytest.warns(UserWarning, match="a binary index of 32 dimensions loses much"):
            searcher.add(folder)
    else:
        searcher.add(folder)
    size = {"float32": 32 * 4, "int8": 32, "binary": 32 // 8}[store]
    assert (tmp_path / "index" / "vectors.0.bin").stat().st_size == 14 * size
    again = Searcher(embedder, tmp_path / "index")
    for text in TEXTS[:3]:
        assert again.search({"text": text}, 1)[0].path.endswith(f"{TEXTS.index(text):02}.txt")
    full = embedder.process([{"text": TEXTS[0]}, {"text": "number"}], dimensions=32)
    (hit,) = (hit for hit in again.search({"text": "number"}, 14) if hit.path.endswith("00.txt"))
    assert abs(hit.cosine - full[0] @ full[1]) < (1e-6 if store == "float32" else 0.01)


def test_rerank_orders_as_the_reranker_does(searcher: Searcher, reranker: Qwen3VLReranker, folder: Path) -> None:
    query = {"text": "number 3", "image": str(folder / "x.png"), "instruction": "Retrieve images or text."}
    hits = searcher.search(query, 8)
    documents = items(folder)
    content = {key: value for key, value in query.items() if key != "instruction"}
    direct = {
        name: reranker.process(
            {"query": content, "documents": [documents[name]], "instruction": "Retrieve images or text."}
        )[0]
        for name in names(hits)
    }
    found = rerank(reranker, query, hits)
    assert names(found) == sorted(direct, key=lambda name: -direct[name]) != names(hits)
    np.testing.assert_allclose([hit.score or -1 for hit in found], [direct[name] for name in names(found)], atol=1e-6)
    assert {hit.path: hit.cosine for hit in found} == {hit.path: hit.cosine for hit in hits}


def test_equal_contents_are_scored_once(
    embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in (("a", "same"), ("b", "same"), ("c", "other"), ("d", "same")):
        (folder / f"{name}.txt").write_text(text)
    searcher = Searcher(embedder, tmp_path / "index")
    searcher.add(folder)
    calls: list[Any] = []
    process = Qwen3VLReranker.process
    monkeypatch.setattr(
        Qwen3VLReranker, "process", lambda self, inputs, **more: calls.append(inputs) or process(self, inputs, **more)
    )
    hits = searcher.search({"text": "same"}, 2)
    assert names(hits) == ["a.txt", "b.txt", "d.txt", "c.txt"]
    (folder / "a.txt").unlink()  # another with its content is as good
    skipped: list[str] = []
    found = rerank(reranker, {"text": "same"}, hits, skipped=skipped)
    assert [document["text"] for document in calls[0]["documents"]] == ["same", "other"] and len(calls) == 1
    assert skipped == [] and len({hit.score for hit in found}) == 2


def test_what_changed_since_stands_last(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    (folder / "lines.jsonl").write_text('"x"\n"y"\n')
    searcher = Searcher(embedder, tmp_path / "index")
    searcher.add(folder)
    hits = searcher.search({"text": "a"}, 10)
    (folder / "a.txt").write_text("something else")
    (folder / "b.txt").unlink()
    (folder / "lines.jsonl").write_text('"y"\n')
    skipped: list[str] = []
    found = rerank(reranker, {"text": "a"}, hits, skipped=skipped)
    assert names(found)[0] == "c.txt" and [hit.score is None for hit in found] == [False, True, True, True, True]
    assert sorted(skipped) == sorted(
        [
            f"{folder / 'a.txt'} was changed since it was indexed; add its folder again.",
            f"{folder / 'b.txt'} cannot be read (No such file or directory); check that it is there.",
            f"{folder / 'lines.jsonl'}:1 was changed since it was indexed; add its folder again.",
            f"{folder / 'lines.jsonl'}:2 was changed since it was indexed; add its folder again.",
        ]
    )
    assert rerank(reranker, {"text": "a"}, []) == []


def test_a_name_without_bytes_is_a_file_that_cannot_be_read() -> None:
    """As one that was indexed under UTF-8 and is read where the locale has another encoding."""
    nul = "a\0b.png"
    (problem,) = read_again([Hit(nul, None, "0", 1.0)]).values()
    assert isinstance(problem, InputError)
    assert str(problem) == f"{nul} cannot be read (embedded null byte); check that it is there."
    assert FoundFile(nul, 1, 1).changed


def test_another_regime_is_refused_with_the_reason(package: Packages, searcher: Searcher, tmp_path: Path) -> None:
    index = searcher.index.folder
    here = package(TINY_2B, "embedding")
    weights = searcher.embedder.package.manifest.source.sha256

    def reason(folder: Path, **options: Any) -> str:
        store = {key: options.pop(key) for key in ("store", "dimensions") if key in options}
        message = refusal(lambda: Searcher(Qwen3VLEmbedder(folder, **options), index, **store))
        assert message.startswith(f"{index} was made with something else, and vectors of both cannot be compared: ")
        assert message.endswith(
            "; use the package (tiny, fp32 for cpu) and options that it was made with, or give --index another folder."
        )
        return message.split(": ", 1)[1].rsplit("; use the", 1)[0]

    Searcher(Qwen3VLEmbedder(here), index, store="float32", dimensions=64)
    assert reason(here, max_pixels=65536, min_pixels=4096).endswith("max_pixels 1843200 in the index, 65536 here")
    assert reason(here, default_instruction="Find.") == (
        "default_instruction \"Represent the user's input.\" in the index, 'Find.' here"
    )
    assert reason(here, dimensions=32) == "dimensions 64 in the index, 32 here"
    assert reason(here, store="int8") == "store float32 in the index, int8 here"
    shutil.copytree(index, tmp_path / "int8")
    index = tmp_path / "int8"
    there = json.loads((index / "index.json").read_text())
    del there["checksum"]
    (index / "index.json").write_text(json.dumps(there | {"regime": there["regime"] | {"precision": "int8"}}))
    assert reason(here) == "precision int8 in the index, fp32 here"
    changes = {"weights": "0" * 64, "target": "cuda"}
    (index / "index.json").write_text(json.dumps(there | {"regime": there["regime"] | changes}))
    assert reason(here) == f"weights 000000000000 in the index, {weights[:12]} here; target cuda in the index, cpu here"


def test_int4_of_other_blocks_and_a_calibration_are_other_regimes(package: Packages) -> None:
    manifest = Manifest.read(package(TINY_2B, "embedding", "int4"))
    options = Qwen3VLEmbedder(package(TINY_2B, "embedding")).package.encoder.options
    other = {name: each.replace("block8", "block32") for name, each in manifest.matrices.items()}
    index, here = (Regime.of(replace(manifest, matrices=each), options) for each in (manifest.matrices, other))
    (said,) = index.differences(here)
    assert "int4-two-level-signed-block8" in said and "int4-two-level-signed-block32" in said and "calibrated" in said
    (said,) = index.differences(Regime.of(replace(manifest, calibration=None), options))
    assert said.startswith("stored ") and said.count("calibrated") == 1
    assert replace(index, stored="").differences(here) == [], "an index of an earlier version does not know"
    assert index.differences(replace(here, precision="int8")) == ["precision int4 in the index, int8 here"]


def test_bad_arguments(searcher: Searcher, embedder: Qwen3VLEmbedder, folder: Path, tmp_path: Path) -> None:
    assert refusal(lambda: searcher.search({"text": "a"}, 0), InputError) == (
        "count is 0, expected a positive whole number."
    )
    assert refusal(lambda: searcher.search({"txt": "a"}), InputError).startswith("query has the unknown key 'txt';")
    gone = refusal(lambda: searcher.search({"image": str(tmp_path / "gone.png")}), InputError)
    assert gone.startswith(f"query: image: {tmp_path / 'gone.png'} does not exist;")
    assert "expected a whole number from 1 to 64" in refusal(
        lambda: Searcher(embedder, tmp_path / "index", dimensions=65), InputError
    )
    assert "holds other things ('00.txt')" in refusal(lambda: Searcher(embedder, folder))
    empty = Searcher(embedder, tmp_path / "index")
    assert refusal(lambda: empty.search({"text": "a"})).startswith(f"{tmp_path / 'index'} holds no index; make one")
    assert not (tmp_path / "index").exists()
