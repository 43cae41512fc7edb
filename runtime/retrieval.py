"""What the adapters for retrieval libraries share: opening a package, the query's instruction, the best documents."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError
from runtime.graphs.package import require_positive
from runtime.reranker import Qwen3VLReranker

# The reference's own examples give it to queries, and the default to what is searched.
QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."

Opened = TypeVar("Opened", Qwen3VLEmbedder, Qwen3VLReranker)


def opened(kind: type[Opened], source: Opened | str | os.PathLike[str]) -> Opened:
    """`source` itself if it is open, else the package at that path. Raises InputError, PackageError."""
    if isinstance(source, kind):
        return source
    if isinstance(source, str | os.PathLike):
        return kind(source)
    raise InputError(
        f"an object of type {type(source).__name__} was given, expected a {kind.__name__} or the path of its package."
    )


def require_top_n(top_n: int | None) -> int | None:
    """`top_n` as it is, None for all documents. Raises InputError."""
    return None if top_n is None else require_positive("top_n", top_n)


def embedded(
    embedder: Qwen3VLEmbedder, key: str, values: Sequence[object], instruction: str | None
) -> list[list[float]]:
    """The vectors of `values`, each a text, image or video as `key` says; floats that are those of float32."""
    # In a list None is refused; alone it would be an input without one.
    rows = embedder.process([{key: [value], "instruction": instruction} for value in values])
    vectors: list[list[float]] = rows.tolist()
    return vectors


def best(
    reranker: Qwen3VLReranker,
    query: Mapping[str, object],
    documents: Sequence[object],
    instruction: str | None,
    top_n: int | None,
) -> list[tuple[int, float]]:
    """(index, score) of the `top_n` documents with the highest scores, the best first; equal ones in their order."""
    scores = reranker.process({"query": query, "documents": documents, "instruction": instruction})
    ranking = sorted(enumerate(scores), key=lambda pair: -pair[1])
    return ranking[: require_top_n(top_n)]
