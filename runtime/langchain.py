"""LangChain's `Embeddings` and document compressor on this runtime; needs the extra `langchain`.

A package is given as its path or as an open `Qwen3VLEmbedder` or `Qwen3VLReranker`, which carries all other options.
"""

import os
from collections.abc import Sequence
from typing import Any

from runtime.embedder import Qwen3VLEmbedder
from runtime.extras import needing_extra
from runtime.media.source import ImageSource
from runtime.reranker import Qwen3VLReranker
from runtime.retrieval import QUERY_INSTRUCTION, best, embedded, opened, require_top_n

with needing_extra("langchain", "runtime.langchain needs langchain-core"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import ConfigDict, Field


class Qwen3VLEmbeddings(Embeddings):
    """Embeds texts and pictures for LangChain's vector stores; vectors are those of `Qwen3VLEmbedder.process`.

    `embed_instruction` is for what is stored (None: the package's own default), `query_instruction` for what is asked.
    Raises PackageError, InputError; the methods raise what `process` raises.
    """

    def __init__(
        self,
        embedder: Qwen3VLEmbedder | str | os.PathLike[str],
        *,
        embed_instruction: str | None = None,
        query_instruction: str = QUERY_INSTRUCTION,
    ):
        self.embedder = opened(Qwen3VLEmbedder, embedder)
        self.embed_instruction = embed_instruction
        self.query_instruction = query_instruction

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector of length 1 for each text, as Python floats."""
        return embedded(self.embedder, "text", texts, self.embed_instruction)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question, of length 1, as Python floats."""
        return embedded(self.embedder, "text", [text], self.query_instruction)[0]

    def embed_image(self, uris: Sequence[ImageSource]) -> list[list[float]]:
        """A vector for each path, URL, data URI, PIL image or array; stores with `add_images` look for this name."""
        return embedded(self.embedder, "image", uris, self.embed_instruction)


class Qwen3VLCompressor(BaseDocumentCompressor):
    """Keeps the `top_n` documents (None: all) that the reranker likes best, in order, with their `relevance_score`.

    A document with a picture (path, URL or data URI) in `metadata[image_key]` is reranked as that picture, without its
    text: stores of pictures keep their base64 there. Raises PackageError, InputError.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    reranker: Qwen3VLReranker = Field(exclude=True, repr=False)
    top_n: int | None
    instruction: str | None
    image_key: str

    def __init__(
        self,
        reranker: Qwen3VLReranker | str | os.PathLike[str],
        *,
        top_n: int | None = 3,
        instruction: str | None = None,
        image_key: str = "image",
    ):
        fields: dict[str, Any] = {
            "reranker": opened(Qwen3VLReranker, reranker),
            "top_n": require_top_n(top_n),
            "instruction": instruction,
            "image_key": image_key,
        }
        super().__init__(**fields)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the best documents with the probability of "yes" in `metadata["relevance_score"]`.

        Raises what `Qwen3VLReranker.process` raises.
        """
        contents = [self._content(document) for document in documents]
        return [
            documents[index].model_copy(update={"metadata": {**documents[index].metadata, "relevance_score": score}})
            for index, score in best(self.reranker, {"text": [query]}, contents, self.instruction, self.top_n)
        ]

    def _content(self, document: Document) -> dict[str, object]:
        picture = document.metadata.get(self.image_key)
        return {"text": document.page_content} if picture is None else {"image": picture}
