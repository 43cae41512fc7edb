"""Unit vectors as an index stores them, and the nearest of them, found by usearch's exact search.

float32   4 bytes a number
int8      a byte a number, and a float32 scale a vector: number = code · scale
binary    a bit a number, most significant first (numpy.packbits), 1 for a positive one; that is what is searched. Of
          16 times as many as asked for, the int8 codes, which are stored too, are compared with the query as well

Exact search of 100,000 vectors of 512 numbers took 12 ms (float32), 7 ms (int8) and 4 ms (binary) on two cores of an
AMD EPYC with AVX-512: an approximate index would only lose some.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from runtime.errors import InputError
from runtime.extras import needing_extra
from runtime.graphs.session import default_threads

StoreName = Literal["float32", "int8", "binary"]
STORES: tuple[StoreName, ...] = get_args(StoreName)
# What is searched, and what the vectors are calculated from where that is something else.
VECTORS, CODES, SCALES = "vectors", "codes", "scales"
# How many times as many vectors as asked for are compared once more, as exactly as what is stored allows.
CANDIDATES = {"float32": 1, "int8": 4, "binary": 16}
# Below, the signs of too few numbers are left: half of the nearest are lost at 128.
SMALLEST_BINARY = 512
LARGEST_CODE = 127
TINY = 1e-30  # a scale that a vector of zeros can be divided by


# Of N vectors, by name: arrays [N, entries of a row].
Parts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """How a row of one file looks."""

    dtype: np.dtype[Any]
    width: int

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return self.dtype.itemsize * self.width


@dataclass(frozen=True)
class VectorStore:
    """One way to store vectors of so many numbers."""

    name: StoreName
    dimensions: int

    def __post_init__(self) -> None:
        if self.name not in STORES:
            raise InputError(f"store is {self.name!r}, expected one of {', '.join(STORES)}.")

    @property
    def parts(self) -> dict[str, Part]:
        """The files that rows are kept in; VECTORS is the one that is searched."""
        scales, codes = Part(np.dtype("<f4"), 1), Part(np.dtype("i1"), self.dimensions)
        return {
            "float32": {VECTORS: Part(np.dtype("<f4"), self.dimensions)},
            "int8": {VECTORS: codes, SCALES: scales},
            "binary": {VECTORS: Part(np.dtype("u1"), -(-self.dimensions // 8)), CODES: codes, SCALES: scales},
        }[self.name]

    def encode(self, vectors: np.ndarray) -> Parts:
        """Unit vectors float32 [N, dimensions] as they are stored."""
        if self.name == "float32":
            return {VECTORS: vectors.astype("<f4")}
        scales = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0) / LARGEST_CODE, TINY).astype("<f4")
        codes = np.rint(vectors / scales).astype(np.int8)
        if self.name == "int8":
            return {VECTORS: codes, SCALES: scales}
        return {VECTORS: np.packbits(vectors > 0, axis=1), CODES: codes, SCALES: scales}

    def decode(self, stored: Parts) -> np.ndarray:
        """float32 [N, dimensions], as exact as what is stored."""
        codes = stored.get(CODES, stored[VECTORS])
        vectors: np.ndarray = codes.astype(np.float32)
        return vectors * stored[SCALES] if SCALES in stored else vectors

    def nearest(self, rows: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
        """Indexes int64 of the `count` stored rows that are most similar to a unit vector, best first."""
        search, metric = _usearch()
        kinds = {"float32": metric.IP, "int8": metric.Cos, "binary": metric.Hamming}
        encoded = np.ascontiguousarray(self.encode(query[None])[VECTORS][0])
        # Without it, versions before 2.26 take packed bits for numbers.
        bits = {"dtype": "b1"} if self.name == "binary" else {}
        options = bits | {"exact": True, "threads": default_threads()}
        found = search(rows, encoded, min(count, len(rows)), kinds[self.name], **options)
        return np.asarray(found.keys, np.int64)

    def cosines(self, stored: Parts, query: np.ndarray) -> np.ndarray:
        """float32 [N]: of a unit vector and what the stored rows were, as well as they tell."""
        vectors = self.decode(stored)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), TINY)
        cosines: np.ndarray = (vectors @ query / lengths).astype(np.float32)
        return cosines


def require_search_extra() -> None:
    """MissingExtraError where what `search` needs is not installed."""
    _usearch()
    with needing_extra("search", "searching needs filelock"):
        import filelock  # noqa: F401


def _usearch() -> tuple[Any, Any]:
    """usearch's exact search and its metrics."""
    # onnxruntime has to be imported before usearch, as this module does: the other way round the process ends (2.26.6
    # and 1.32, SIGSEGV).
    with needing_extra("search", "searching needs usearch"):
        from usearch.compiled import MetricKind
        from usearch.index import search
    return search, MetricKind
