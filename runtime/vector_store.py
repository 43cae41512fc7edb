"""Unit vectors as an index stores them, and the nearest of them, found by usearch's exact search.

float32   4 bytes a number
int8      a byte a number, and a float32 scale a vector: number = code · scale
binary    a bit a number, most significant first (numpy.packbits), 1 for a positive one

Exact search of 100,000 vectors of 512 numbers took 12 ms (float32), 7 ms (int8) and 4 ms (binary) on two cores of an
AMD EPYC with AVX-512: an approximate index would only lose some.

What of float32's first ten is found among 20,000 made-up vectors with a decaying spectrum: int8 0.99 at 512 numbers and
1.00 at 2,048. Binary 0.40 and 0.59 by the signs alone, 0.53 and 0.71 when four times as many are compared with the
query's own numbers, which is all that signs can tell (40 times as many give no more); of the first hundred so found,
0.98 and 1.00 hold them, so that a reranker loses little.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from runtime.errors import InputError, MissingExtraError
from runtime.session import default_threads

StoreName = Literal["float32", "int8", "binary"]
STORES: tuple[StoreName, ...] = get_args(StoreName)
DTYPES = {"float32": "<f4", "int8": "i1", "binary": "u1"}
# How many times as many vectors as asked for are compared once more, as exactly as what is stored allows.
CANDIDATES = {"float32": 1, "int8": 4, "binary": 4}
# Below, the signs of too few numbers are left: half of the nearest are lost at 128.
SMALLEST_BINARY = 512
LARGEST_CODE = 127
TINY = 1e-30  # a scale that a vector of zeros can be divided by


@dataclass(frozen=True, eq=False)
class Encoded:
    """`rows` [N, width] of the store's dtype; `scales` float32 [N], only of int8."""

    rows: np.ndarray
    scales: np.ndarray | None = None


@dataclass(frozen=True)
class VectorStore:
    """One way to store vectors of so many numbers."""

    name: StoreName
    dimensions: int

    def __post_init__(self) -> None:
        if self.name not in STORES:
            raise InputError(f"store is {self.name!r}, expected one of {', '.join(STORES)}.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored row."""
        return np.dtype(DTYPES[self.name])

    @property
    def width(self) -> int:
        """Entries of a stored row."""
        return -(-self.dimensions // 8) if self.name == "binary" else self.dimensions

    def encode(self, vectors: np.ndarray) -> Encoded:
        """Unit vectors float32 [N, dimensions] as they are stored."""
        if self.name == "binary":
            return Encoded(np.packbits(vectors > 0, axis=1))
        if self.name == "float32":
            return Encoded(vectors.astype(self.dtype))
        scales = np.maximum(np.abs(vectors).max(axis=1, initial=0) / LARGEST_CODE, TINY).astype("<f4")
        return Encoded(np.rint(vectors / scales[:, None]).astype(np.int8), scales)

    def decode(self, stored: Encoded) -> np.ndarray:
        """float32 [N, dimensions]; of bits the unit vector with their signs."""
        if self.name == "binary":
            bits = np.unpackbits(stored.rows, axis=1, count=self.dimensions)
            signs: np.ndarray = ((2.0 * bits - 1.0) / np.sqrt(self.dimensions)).astype(np.float32)
            return signs
        rows = stored.rows.astype(np.float32)
        return rows if stored.scales is None else rows * stored.scales[:, None]

    def nearest(self, rows: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
        """Indexes int64 of the `count` stored rows that are most similar to a unit vector, best first."""
        search, metric = _usearch()
        kinds = {"float32": metric.IP, "int8": metric.Cos, "binary": metric.Hamming}
        encoded = np.ascontiguousarray(self.encode(query[None]).rows[0])
        # Without it, versions before 2.26 take packed bits for numbers.
        bits = {"dtype": "b1"} if self.name == "binary" else {}
        options = bits | {"exact": True, "threads": default_threads()}
        found = search(rows, encoded, min(count, len(rows)), kinds[self.name], **options)
        return np.asarray(found.keys, np.int64)

    def cosines(self, stored: Encoded, query: np.ndarray) -> np.ndarray:
        """float32 [N]: of a unit vector and what the stored rows were, as well as they tell."""
        vectors = self.decode(stored)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), TINY)
        cosines: np.ndarray = (vectors @ query / lengths).astype(np.float32)
        return cosines


def require_search_extra() -> None:
    """MissingExtraError where what `search` needs is not installed."""
    _usearch()
    try:
        import filelock  # noqa: F401
    except ImportError as error:
        raise _missing("filelock") from error


def _usearch() -> tuple[Any, Any]:
    """usearch's exact search and its metrics."""
    # onnxruntime has to be imported before usearch, as this module does: the other way round the process ends (2.26.6
    # and 1.32, SIGSEGV).
    try:
        from usearch.compiled import MetricKind
        from usearch.index import search
    except ImportError as error:
        raise _missing("usearch") from error
    return search, MetricKind


def _missing(library: str) -> MissingExtraError:
    return MissingExtraError(
        f"searching needs {library}, which is not installed; run pip install 'qwen3vl-edge[search]'."
    )
