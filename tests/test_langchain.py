"""The adapters for LangChain, used by LangChain's own vector store and runnables."""

import asyncio
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import InputError, MediaError, MissingExtraError, PackageError, Qwen3VLEmbedder, Qwen3VLReranker
from runtime.langchain import Qwen3VLCompressor, Qwen3VLEmbeddings

Packages = Callable[[Shape, Task], Path]
TEXTS = ["a duck on a pond", "a fox in the snow", "", "a much longer text, " * 20]
QUERY = "Which bird swims?"


def floats(rows: np.ndarray) -> list[list[float]]:
    return [[float(number) for number in row] for row in rows]


@pytest.fixture(scope="module")
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "gradient.png"
    Image.linear_gradient("L").resize((64, 96)).convert("RGB").save(path)
    return str(path)


def test_documents_have_the_vectors_of_process(embedder: Qwen3VLEmbedder) -> None:
    vectors = Qwen3VLEmbeddings(embedder).embed_documents(TEXTS)
    assert vectors == floats(embedder.process([{"text": text} for text in TEXTS]))
    assert type(vectors[0][0]) is float


def test_a_query_goes_with_an_instruction_of_its_own(embedder: Qwen3VLEmbedder) -> None:
    asked = {"text": QUERY, "instruction": "Retrieve images or text relevant to the user's query."}
    embeddings = Qwen3VLEmbeddings(embedder)
    assert embeddings.embed_query(QUERY) == floats(embedder.process([asked]))[0]
    assert embeddings.embed_query(QUERY) != embeddings.embed_documents([QUERY])[0]


def test_instructions_can_be_chosen(embedder: Qwen3VLEmbedder, png: str) -> None:
    embeddings = Qwen3VLEmbeddings(embedder, embed_instruction="Describe it.", query_instruction="Find it.")
    items = [{"text": "a", "instruction": "Find it."}, {"text": "a", "instruction": "Describe it."}]
    expected = floats(embedder.process([*items, {"image": png, "instruction": "Describe it."}]))
    assert [embeddings.embed_query("a"), *embeddings.embed_documents(["a"])] == expected[:2]
    assert embeddings.embed_image([png]) == expected[2:]


def test_pictures_are_embedded_as_pictures(embedder: Qwen3VLEmbedder, png: str) -> None:
    vectors = Qwen3VLEmbeddings(embedder).embed_image(uris=[png, Path(png).as_uri()])
    assert vectors == floats(embedder.process([{"image": png}, {"image": png}]))
    with pytest.raises(MediaError, match=r"missing\.png does not exist"):
        Qwen3VLEmbeddings(embedder).embed_image(["missing.png"])


def test_nothing_gives_nothing(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    assert Qwen3VLEmbeddings(embedder).embed_documents([]) == []
    assert Qwen3VLEmbeddings(embedder).embed_image([]) == []
    assert list(Qwen3VLCompressor(reranker).compress_documents([], QUERY)) == []


def test_a_path_is_opened(package: Packages, embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    embeddings = Qwen3VLEmbeddings(str(package(TINY_2B, "embedding")))
    assert embeddings.embed_documents(TEXTS) == Qwen3VLEmbeddings(embedder).embed_documents(TEXTS)
    documents = [Document(page_content=text) for text in TEXTS]
    found = Qwen3VLCompressor(package(TINY_2B, "reranker")).compress_documents(documents, QUERY)
    assert found == Qwen3VLCompressor(reranker).compress_documents(documents, QUERY)


def test_the_vector_store_finds_the_nearest(embedder: Qwen3VLEmbedder) -> None:
    store = InMemoryVectorStore(Qwen3VLEmbeddings(embedder))
    store.add_documents([Document(page_content=text, metadata={"n": index}) for index, text in enumerate(TEXTS)])
    asked = {"text": QUERY, "instruction": "Retrieve images or text relevant to the user's query."}
    similarity = embedder.process([{"text": text} for text in TEXTS]) @ embedder.process([asked])[0]
    found = store.similarity_search_with_score(QUERY, k=len(TEXTS))
    assert [document.metadata["n"] for document, _ in found] == np.argsort(-similarity).tolist()
    assert [score for _, score in found] == pytest.approx(np.sort(similarity)[::-1], abs=1e-5)
    retrieved = asyncio.run(store.as_retriever(search_kwargs={"k": 2}).ainvoke(QUERY))
    assert retrieved == [document for document, _ in found[:2]]


def test_the_compressor_orders_as_the_scores_do(reranker: Qwen3VLReranker) -> None:
    documents = [Document(page_content=text, metadata={"n": n}, id=str(n)) for n, text in enumerate(TEXTS)]
    scores = reranker.process({"query": {"text": QUERY}, "documents": [{"text": text} for text in TEXTS]})
    order = np.argsort(-np.array(scores)).tolist()
    assert order != sorted(order)  # or leaving them as they are would pass
    found = Qwen3VLCompressor(reranker, top_n=None).compress_documents(documents, QUERY)
    assert [document.id for document in found] == [str(n) for n in order]
    assert [document.metadata for document in found] == [{"n": n, "relevance_score": scores[n]} for n in order]
    assert [document.page_content for document in found] == [TEXTS[n] for n in order]
    assert [document.metadata for document in documents] == [{"n": n} for n in range(len(TEXTS))]
    assert Qwen3VLCompressor(reranker).compress_documents(documents, QUERY) == found[:3]
    assert asyncio.run(Qwen3VLCompressor(reranker, top_n=1).acompress_documents(documents, QUERY)) == found[:1]


def test_the_compressor_follows_a_retriever(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    store = InMemoryVectorStore(Qwen3VLEmbeddings(embedder))
    store.add_texts(TEXTS)
    compressor = Qwen3VLCompressor(reranker, top_n=2)
    chain = store.as_retriever() | RunnableLambda(lambda found: compressor.compress_documents(found, QUERY))
    scores = reranker.process({"query": {"text": QUERY}, "documents": [{"text": text} for text in TEXTS]})
    found = chain.invoke(QUERY)
    assert [document.metadata["relevance_score"] for document in found] == pytest.approx(
        sorted(scores, reverse=True)[:2], abs=1e-6
    )


def test_pictures_are_reranked_as_pictures(reranker: Qwen3VLReranker, png: str) -> None:
    contents = [{"text": "words"}, {"image": png}, {"text": "more words"}]
    scores = reranker.process({"query": {"text": QUERY}, "documents": contents, "instruction": "Find it."})
    for key in ("image", "source"):
        documents = [
            Document(page_content="words"),
            Document(page_content="iVBORw0KGgo", metadata={key: png}),
            Document(page_content="more words", metadata={key: None}),
        ]
        compressor = Qwen3VLCompressor(reranker, top_n=3, instruction="Find it.", image_key=key)
        found = {
            each.page_content: each.metadata["relevance_score"]
            for each in compressor.compress_documents(documents, QUERY)
        }
        assert list(found) == [documents[n].page_content for n in np.argsort(-np.array(scores))]
        assert [found[document.page_content] for document in documents] == scores


def test_none_is_no_input(embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    nothing: Any = None
    with pytest.raises(InputError, match=r"inputs\[0\]: text is None, expected a string"):
        Qwen3VLEmbeddings(embedder).embed_query(nothing)
    with pytest.raises(InputError, match=r"inputs\[0\]: image is None, expected a path"):
        Qwen3VLEmbeddings(embedder).embed_image([nothing])
    with pytest.raises(InputError, match="query: text is None, expected a string"):
        Qwen3VLCompressor(reranker).compress_documents([Document("a duck")], nothing)


def test_wrong_use_is_a_sentence(package: Packages, embedder: Qwen3VLEmbedder, reranker: Qwen3VLReranker) -> None:
    wrong: Any = reranker
    with pytest.raises(InputError, match="type Qwen3VLReranker was given, expected a Qwen3VLEmbedder or the path"):
        Qwen3VLEmbeddings(wrong)
    with pytest.raises(PackageError, match="is an embedding package; open it with"):
        Qwen3VLCompressor(package(TINY_2B, "embedding"))
    with pytest.raises(InputError, match="top_n is 0, expected a positive whole number"):
        Qwen3VLCompressor(reranker, top_n=0)
    changed = Qwen3VLCompressor(reranker)
    changed.top_n = -1
    with pytest.raises(InputError, match="top_n is -1"):
        changed.compress_documents([Document(page_content="a")], QUERY)
    with pytest.raises(MediaError, match=r"documents\[1\].*missing.png does not exist"):
        documents = [Document(page_content="a"), Document(page_content="", metadata={"image": "missing.png"})]
        Qwen3VLCompressor(reranker).compress_documents(documents, QUERY)


def test_the_compressor_can_be_copied_and_written_down(reranker: Qwen3VLReranker) -> None:
    compressor = Qwen3VLCompressor(reranker, top_n=2, instruction="Find it.")
    facts = {"top_n": 2, "instruction": "Find it.", "image_key": "image"}
    assert compressor.model_dump() == facts
    assert json.loads(compressor.model_dump_json()) == facts
    assert "reranker" not in repr(compressor)
    documents = [Document(page_content=text) for text in TEXTS]
    for twin in (compressor.model_copy(), compressor.model_copy(deep=True, update={"image_key": "picture"})):
        assert twin.reranker.package is reranker.package
        assert twin.compress_documents(documents, QUERY) == compressor.compress_documents(documents, QUERY)
    with pytest.raises(TypeError, match="cannot be pickled; send the package's path"):
        pickle.dumps(compressor)


def test_without_langchain_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "runtime.langchain")
    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", None)  # what Python itself does for a blocked import
    with pytest.raises(MissingExtraError, match=r'pip install "qwen3vl-edge\[langchain\]"'):
        import runtime.langchain  # noqa: F401
