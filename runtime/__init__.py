"""Qwen3-VL-Embedding and Qwen3-VL-Reranker on onnxruntime, without torch. Everything public is listed here."""

import os

# onnxruntime reads it when it is imported. Otherwise its wheels (Linux from 1.32 on) keep a database of what was run in
# ~/.cache/Microsoft and try to send it out, from threads that end the process where memory is short.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import (
    CheckpointError,
    InputError,
    MediaError,
    MissingExtraError,
    NotFiniteError,
    OutOfMemoryError,
    PackageError,
    Qwen3VLError,
    SearchIndexError,
)
from runtime.graphs.package import Skipped
from runtime.media.download import FetchLimits
from runtime.reranker import Qwen3VLReranker
from runtime.search.searcher import Hit, Searcher, rerank
from runtime.version import VERSION as __version__

__all__ = [
    "CheckpointError",
    "FetchLimits",
    "Hit",
    "InputError",
    "MediaError",
    "MissingExtraError",
    "NotFiniteError",
    "OutOfMemoryError",
    "PackageError",
    "Qwen3VLEmbedder",
    "Qwen3VLError",
    "Qwen3VLReranker",
    "SearchIndexError",
    "Searcher",
    "Skipped",
    "__version__",
    "rerank",
]
