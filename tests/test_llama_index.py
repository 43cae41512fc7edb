"""The adapters for LlamaIndex, used by LlamaIndex's own indexes, retrievers and pipelines; no LLM, no network."""

import asyncio
import base64
import json
import logging
import pickle
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import InputError, MissingExtraError, PackageError, Qwen3VLEmbedder, Qwen3VLReranker
from runtime.llama_index import Qwen3VLEmbedding, Qwen3VLRerank

Packages = Callable[[Shape, Task], Path]
TEXTS = ["a duck on a pond", "a fox in the snow", "a bird", "a much longer text, " * 20]
QUERY = "Which bird swims?"
ASKED = {"text": QUERY, "instruction": "Retrieve images or text relevant to the user's query."}


def floats(rows: np.ndarray) -> list[list[float]]:
    return [[float(number) for number in row] for row in rows]


@pytest.fixture(scope="module")
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "gradient.png"
    Image.linear_gradient("L").resize((64, 96)).convert("RGB").save(path)
    return path


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=str(index)) for index, text in enumerate(TEXTS)]


def test_texts_and_queries_have_the_vectors_of_process(embedder: Qwen3VLEmbedder) -> None:
    embedding = Qwen3VLEmbedding(embedder)
    expected = floats(embedder.process([{"text": text} for text in TEXTS]))
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    assert embedding.get_text_embedding(TEXTS[1]) == expected[1]
    assert type(expected[0][0]) is type(embedding.get_text_embedding("")[0]) is float
    assert embedding.get_query_embedding(QUERY) == floats(embedder.process([ASKED]))[0]
    assert embedding.get_query_embedding(QUERY) != embedding.get_text_embedding(QUERY)


def test_instructions_can_be_chosen(embedder: Qwen3VLEmbedder, png: Path) -> None:
    embedding = Qwen3VLEmbedding(embedder, text_instruction="Describe it.", query_instruction="Find it.")
    items = [{"text": "a", "instruction": "Find it."}, {"text": "a", "instruction": "Describe it."}]
    expected = floats(embedder.process([*items, {"image": png, "instruction": "Describe it."}]))
    assert [embedding.get_query_embedding("a"), embedding.get_text_embedding("a")] == expected[:2]
    assert embedding.get_image_embedding(str(png)) == expected[2]


def test_pictures_have_the_vectors_of_process(embedder: Qwen3VLEmbedder, png: Path) -> None:
    embedding = Qwen3VLEmbedding(embedder)
    expected = floats(embedder.process([{"image": png}]))[0]
    assert embedding.get_image_embedding(str(png)) == expected
    assert embedding.get_image_embedding_batch([str(png), BytesIO(png.read_bytes())]) == [expected] * 2


def test_the_event_loop_stays_free(embedder: Qwen3VLEmbedder, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = Qwen3VLEmbedding(embedder)
    expected = embedding.get_text_embedding_batch(TEXTS)
    query, picture = embedding.get_query_embedding(QUERY), embedding.get_image_embedding(str(png))
    threads: list[threading.Thread] = []
    process = embedder.process

    def watched(items: Any) -> np.ndarray:
        threads.append(threading.current_thread())
        return process(items)

    async def embed() -> list[Any]:
        return [
            await embedding.aget_text_embedding_batch(TEXTS),
            await embedding.aget_text_embedding(TEXTS[0]),
            await embedding.aget_query_embedding(QUERY),
            await embedding.aget_image_embedding(str(png)),
            await embedding.aget_image_embedding_batch([str(png)]),
        ]

    monkeypatch.setattr(embedder, "process", watched)
    assert asyncio.run(embed()) == [expected, expected[0], query, picture, [picture]]
    assert len(threads) == 5  # a batch is one call
    assert threading.main_thread() not in threads


def test_nothing_gives_nothing(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    assert Qwen3VLEmbedding(embedder).get_text_embedding_batch([]) == []
    assert Qwen3VLEmbedding(embedder).get_image_embedding_batch([]) == []
    assert Qwen3VLRerank(reranker).postprocess_nodes([], query_str=QUERY) == []


def test_a_path_is_opened(package: Packages, embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    embedding = Qwen3VLEmbedding(str(package(TINY_2B, "embedding")), embed_batch_size=3)
    assert embedding.get_text_embedding_batch(TEXTS) == pytest.approx(
        np.array(Qwen3VLEmbedding(embedder).get_text_embedding_batch(TEXTS)), abs=1e-6
    )
    found = [NodeWithScore(node=node) for node in nodes()]
    expected = Qwen3VLRerank(reranker).postprocess_nodes(found, query_str=QUERY)
    assert Qwen3VLRerank(package(TINY_2B, "reranker")).postprocess_nodes(found, query_str=QUERY) == expected


def test_an_index_finds_and_the_reranker_orders(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    index = VectorStoreIndex(nodes(), embed_model=Qwen3VLEmbedding(embedder))
    similarity = embedder.process([{"text": text} for text in TEXTS]) @ embedder.process([ASKED])[0]
    found = index.as_retriever(similarity_top_k=len(TEXTS)).retrieve(QUERY)
    assert [each.node_id for each in found] == [str(n) for n in np.argsort(-similarity)]
    assert [each.score for each in found] == pytest.approx(np.sort(similarity)[::-1], abs=1e-5)
    before = [each.score for each in found]

    scores = reranker.process({"query": {"text": QUERY}, "documents": [{"text": text} for text in TEXTS]})
    order = np.argsort(-np.array(scores)).tolist()
    assert [str(n) for n in order] != [each.node_id for each in found]  # or leaving them as they are would pass
    ranked = Qwen3VLRerank(reranker, top_n=3).postprocess_nodes(found, query_str=QUERY)
    assert [each.node_id for each in ranked] == [str(n) for n in order[:3]]
    assert [each.score for each in ranked] == pytest.approx([scores[n] for n in order[:3]], abs=1e-6)
    assert [each.score for each in found] == before
    again = Qwen3VLRerank(reranker, top_n=3).apostprocess_nodes(found, QueryBundle(QUERY))
    assert asyncio.run(again) == ranked


def test_an_index_of_pictures_is_asked_with_words(embedder: Qwen3VLEmbedder, png: Path) -> None:
    embedding = Qwen3VLEmbedding(embedder)
    # LlamaIndex leaves out what has neither text nor metadata.
    pictures = [ImageNode(image_path=str(png), id_="gradient", metadata={"file_name": "gradient.png"})]
    index = MultiModalVectorStoreIndex([*nodes(), *pictures], embed_model=embedding, image_embed_model=embedding)
    assert index.image_vector_store.get("gradient") == floats(embedder.process([{"image": png}]))[0]
    found = index.as_retriever(similarity_top_k=2, image_similarity_top_k=1).retrieve(QUERY)
    assert found[-1].node_id == "gradient"
    expected = embedder.process([{"image": png}])[0] @ embedder.process([ASKED])[0]
    assert found[-1].score == pytest.approx(expected, abs=1e-5)


def test_metadata_is_read_as_elsewhere_in_llama_index(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    node = TextNode(text="a duck", metadata={"title": "Ponds", "page": 3}, excluded_embed_metadata_keys=["page"])
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    assert "Ponds" in text and "page" not in text
    [embedded] = IngestionPipeline(transformations=[Qwen3VLEmbedding(embedder)]).run(nodes=[node])
    assert embedded.embedding == floats(embedder.process([{"text": text}]))[0]
    [ranked] = Qwen3VLRerank(reranker).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert [ranked.score] == reranker.process({"query": {"text": QUERY}, "documents": [{"text": text}]})


def test_pictures_are_reranked_as_pictures(reranker: Qwen3VLReranker, png: Path) -> None:
    encoded = base64.b64encode(png.read_bytes()).decode()
    forms: list[Any] = [
        ImageNode(image_path=str(png)),
        ImageNode(image=encoded),
        ImageNode(image_url=png.as_uri()),
        Node(image_resource=MediaResource(path=png)),
        Node(image_resource=MediaResource(data=png.read_bytes())),
        ImageDocument(image_path=str(png)),
    ]
    captioned = ImageNode(image_path=str(png), text="a gradient")
    found = [NodeWithScore(node=node) for node in [*forms, captioned]]
    rerank = Qwen3VLRerank(reranker, top_n=len(found), instruction="Find it.")
    ranked = {each.node_id: each.score for each in rerank.postprocess_nodes(found, query_str=QUERY)}
    contents = [{"image": png}] * len(forms) + [{"image": png, "text": "a gradient"}]
    request = {"query": {"text": QUERY}, "documents": contents, "instruction": "Find it."}
    assert [ranked[each.node_id] for each in found] == reranker.process(request)
    assert ranked[captioned.node_id] != ranked[forms[0].node_id]


def test_a_query_may_be_a_picture(reranker: Qwen3VLReranker, png: Path) -> None:
    for bundle, query in (
        (QueryBundle(QUERY, image_path=str(png)), {"text": QUERY, "image": png}),
        (QueryBundle("", image_path=str(png)), {"image": png}),
    ):
        ranked = Qwen3VLRerank(reranker).postprocess_nodes([NodeWithScore(node=nodes()[0])], bundle)
        assert [each.score for each in ranked] == reranker.process({"query": query, "documents": [{"text": TEXTS[0]}]})


def test_callbacks_see_what_happens(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    seen = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([seen])
    Qwen3VLEmbedding(embedder, callback_manager=manager).get_text_embedding("a")
    assert len(seen.get_event_pairs(CBEventType.EMBEDDING)) == 1
    found = [NodeWithScore(node=node) for node in nodes()]
    ranked = Qwen3VLRerank(reranker, top_n=1, callback_manager=manager).postprocess_nodes(found, query_str=QUERY)
    [(started, ended)] = seen.get_event_pairs(CBEventType.RERANKING)
    assert started.payload is not None and started.payload["query_str"] == QUERY and started.payload["top_k"] == 1
    assert ended.payload is not None and ended.payload["nodes"] == ranked


def test_wrong_use_is_a_sentence(package: Packages, embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    wrong: Any = embedder
    with pytest.raises(InputError, match="type Qwen3VLEmbedder was given, expected a Qwen3VLReranker or the path"):
        Qwen3VLRerank(wrong)
    with pytest.raises(PackageError, match="is a reranker package; open it with"):
        Qwen3VLEmbedding(package(TINY_2B, "reranker"))
    with pytest.raises(InputError, match="top_n is 0, expected a positive whole number"):
        Qwen3VLRerank(reranker, top_n=0)
    with pytest.raises(InputError, match="needs a query; pass query_str or query_bundle"):
        Qwen3VLRerank(reranker).postprocess_nodes([NodeWithScore(node=nodes()[0])])
    empty = ImageNode(id_="seven")
    with pytest.raises(InputError, match="the picture of node seven has no data, path or address; set one"):
        Qwen3VLRerank(reranker).postprocess_nodes([NodeWithScore(node=empty)], query_str=QUERY)


def test_caches_tell_embeddings_apart(package: Packages, embedder: Qwen3VLEmbedder) -> None:
    same = [Qwen3VLEmbedding(embedder).to_dict(), Qwen3VLEmbedding(package(TINY_2B, "embedding")).to_dict()]
    assert same[0] == same[1]
    others = [
        Qwen3VLEmbedding(embedder, text_instruction="Describe it.").to_dict(),
        Qwen3VLEmbedding(embedder, query_instruction="Find it.").to_dict(),
        Qwen3VLEmbedding(Qwen3VLEmbedder(package(TINY_2B, "embedding"), dimensions=16)).to_dict(),
    ]
    for option in (
        {"default_instruction": "Describe it."},
        {"max_length": 4000},
        {"min_pixels": 8192},
        {"max_pixels": 65536},
        {"total_pixels": 65536},
        {"fps": 2},
        {"max_frames": 8},
        {"special_tokens": "escape"},
        {"strict_video_budget": True},
        {"exact_resize": True},
    ):
        others.append(Qwen3VLEmbedding(Qwen3VLEmbedder(package(TINY_2B, "embedding"), **option)).to_dict())
    assert all(other not in others[:index] for index, other in enumerate([*others, same[0]]))
    assert same[0]["options"]["max_length"] == 8192
    assert same[0]["fingerprint"] == embedder.package.manifest.fingerprint
    assert same[0]["class_name"] == "Qwen3VLEmbedding"


def test_they_can_be_copied_and_written_down(
    embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker, caplog: pytest.LogCaptureFixture
) -> None:
    embedding, rerank = Qwen3VLEmbedding(embedder), Qwen3VLRerank(reranker, top_n=1)
    assert json.loads(embedding.to_json())["query_instruction"] == ASKED["instruction"]
    assert embedding.model_copy(deep=True).to_dict() == embedding.to_dict()
    assert json.loads(rerank.to_json()) == {
        **{"model": "tiny", "top_n": 1, "instruction": None, "class_name": "Qwen3VLRerank"},
    }
    found = [NodeWithScore(node=node) for node in nodes()]
    for deep in (False, True):
        vector = embedding.model_copy(deep=deep).get_query_embedding(QUERY)
        assert vector == embedding.get_query_embedding(QUERY)
        ranked = rerank.model_copy(deep=deep).postprocess_nodes(found, query_str=QUERY)
        assert ranked == rerank.postprocess_nodes(found, query_str=QUERY)
    with caplog.at_level(logging.WARNING):
        for each in (embedding, rerank):
            with pytest.raises(TypeError, match=f"{type(each).__name__} .* cannot be pickled; send the package's path"):
                pickle.dumps(each)
    assert caplog.records == []  # LlamaIndex's own pickles leave out what they cannot hold, with a warning


def test_without_llama_index_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "runtime.llama_index")
    monkeypatch.setitem(sys.modules, "llama_index.core.schema", None)  # what Python itself does for a blocked import
    with pytest.raises(MissingExtraError, match=r'pip install "qwen3vl-edge\[llama-index\]"'):
        import runtime.llama_index  # noqa: F401
