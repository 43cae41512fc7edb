"""LlamaIndex's multimodal embedding and node postprocessor on this runtime; needs the extra `llama-index`.

A package is given as its path or as an open `Qwen3VLEmbedder` or `Qwen3VLReranker`, which carries all other options.
"""

import asyncio
import os
from io import BytesIO
from typing import Any, NoReturn, SupportsIndex

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError
from runtime.extras import needing_extra
from runtime.graphs.package import require_positive
from runtime.reranker import Qwen3VLReranker
from runtime.retrieval import QUERY_INSTRUCTION, best, embedded, opened
from runtime.search.regime import Regime
from runtime.shared import refuse_pickling

with needing_extra("llama-index", "runtime.llama_index needs llama-index-core"):
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.constants import DEFAULT_EMBED_BATCH_SIZE
    from llama_index.core.embeddings import MultiModalEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, ImageNode, ImageType, MetadataMode, Node, NodeWithScore, QueryBundle

Vector = list[float]


class Qwen3VLEmbedding(MultiModalEmbedding):
    """Embeds texts and pictures for LlamaIndex's indexes; vectors are those of `Qwen3VLEmbedder.process`.

    `text_instruction` is for what is stored, pictures too (None: the package's own default), `query_instruction` for
    what is asked. `embed_batch_size` texts are embedded a call. Raises PackageError, InputError; the methods raise
    what `process` raises.
    """

    query_instruction: str = Field(description="Instruction that goes with queries.")
    text_instruction: str | None = Field(description="Instruction that goes with texts and pictures.")
    # LlamaIndex's caches know an embedding by its fields.
    fingerprint: str = Field(description="Identity of the package.")
    options: dict[str, Any] = Field(description="Options of the embedder that decide a vector.")
    dimensions: int = Field(description="Numbers in a vector.")
    _embedder: Qwen3VLEmbedder = PrivateAttr()

    def __init__(
        self,
        embedder: Qwen3VLEmbedder | str | os.PathLike[str],
        *,
        query_instruction: str = QUERY_INSTRUCTION,
        text_instruction: str | None = None,
        embed_batch_size: int = DEFAULT_EMBED_BATCH_SIZE,
        callback_manager: CallbackManager | None = None,
    ):
        model = opened(Qwen3VLEmbedder, embedder)
        fields: dict[str, Any] = {
            "model_name": model.package.manifest.name,
            "embed_batch_size": embed_batch_size,
            "callback_manager": callback_manager or CallbackManager([]),
            "query_instruction": query_instruction,
            "text_instruction": text_instruction,
            "fingerprint": model.package.manifest.fingerprint,
            "options": Regime.of(model.package.manifest, model.package.encoder.options).options(),
            "dimensions": model.dimensions,
        }
        super().__init__(**fields)
        self._embedder = model

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised components."""
        return "Qwen3VLEmbedding"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # LlamaIndex's own would leave the embedder out and fail at the first text.
        refuse_pickling(self)

    def _get_query_embedding(self, query: str) -> Vector:
        return embedded(self._embedder, "text", [query], self.query_instruction)[0]

    def _get_text_embedding(self, text: str) -> Vector:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return embedded(self._embedder, "text", texts, self.text_instruction)

    def _get_image_embedding(self, img_file_path: ImageType) -> Vector:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Vector]:
        images = [image.getvalue() if isinstance(image, BytesIO) else image for image in img_file_paths]
        return embedded(self._embedder, "image", images, self.text_instruction)

    # LlamaIndex's own asynchronous forms compute in the event loop, one input at a time.
    async def _aget_query_embedding(self, query: str) -> Vector:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Vector:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Vector:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Vector]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)


class Qwen3VLRerank(BaseNodePostprocessor):
    """Keeps the `top_n` nodes that the reranker likes best, in order, scored with the probability of "yes".

    An ImageNode, or a Node or ImageDocument with an image, is reranked as its picture together with its text if it has
    one; a query's `image_path` counts too. Raises PackageError, InputError.
    """

    model: str = Field(description="Name of the checkpoint.")
    top_n: int = Field(description="Number of nodes to return.")
    instruction: str | None = Field(description="Instruction for the reranker.")
    _reranker: Qwen3VLReranker = PrivateAttr()

    def __init__(
        self,
        reranker: Qwen3VLReranker | str | os.PathLike[str],
        *,
        top_n: int = 2,
        instruction: str | None = None,
        callback_manager: CallbackManager | None = None,
    ):
        model = opened(Qwen3VLReranker, reranker)
        fields: dict[str, Any] = {
            "model": model.package.manifest.name,
            "top_n": require_positive("top_n", top_n),
            "instruction": instruction,
            "callback_manager": callback_manager or CallbackManager([]),
        }
        super().__init__(**fields)
        self._reranker = model

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised components."""
        return "Qwen3VLRerank"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        refuse_pickling(self)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("reranking nodes needs a query; pass query_str or query_bundle to postprocess_nodes.")
        if not nodes:
            return []
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            contents = [_content(each.node) for each in nodes]
            ranking = best(self._reranker, _query(query_bundle), contents, self.instruction, self.top_n)
            chosen = [NodeWithScore(node=nodes[index].node, score=score) for index, score in ranking]
            event.on_end(payload={EventPayload.NODES: chosen})
        return chosen


def _query(bundle: QueryBundle) -> dict[str, object]:
    given = {"text": bundle.query_str, "image": bundle.image_path}
    return {key: value for key, value in given.items() if value}


def _content(node: BaseNode) -> dict[str, object]:
    picture = _picture(node)
    if picture is None:
        return {"text": node.get_content(metadata_mode=MetadataMode.EMBED)}
    if not node.get_content(metadata_mode=MetadataMode.NONE):
        return {"image": picture}
    return {"image": picture, "text": node.get_content(metadata_mode=MetadataMode.EMBED)}


def _picture(node: BaseNode) -> str | None:
    """A node's picture for the reranker, which fetches an address itself, under its own limits."""
    if isinstance(node, ImageNode):
        encoded, place = node.image, node.image_path or node.image_url
    elif isinstance(node, Node) and node.image_resource is not None:
        held = node.image_resource
        encoded, place = held.data.decode() if held.data else None, str(held.path or held.url or "")
    else:
        return None
    if not encoded and not place:
        raise InputError(
            f"the picture of node {node.node_id} has no data, path or address; set one, or use a TextNode."
        )
    return f"data:image;base64,{encoded}" if encoded else place
