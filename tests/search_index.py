"""An index of made-up vectors, for tests that need no package."""

from pathlib import Path

import numpy as np

from runtime.search.index_entries import IndexedFile, Part, Step
from runtime.search.index_folder import SearchIndex
from runtime.search.index_header import FORMAT_VERSION, Header
from runtime.search.regime import Regime
from runtime.search.vector_store import StoreName

DIMENSIONS = 32
REGIME = Regime("a" * 64, "fp32", "cpu", 8192, 4096, 1310720, 7864320, 1.0, 64, "Represent.", "allow", False, False)


def header(store: StoreName = "float32") -> Header:
    return Header(FORMAT_VERSION, "qwen3vl-edge", "tiny, fp32 for cpu", REGIME, store, DIMENSIONS)


def vector(number: int) -> np.ndarray:
    """The unit vector float32 [1, DIMENSIONS] of a content."""
    row = np.random.default_rng(number).standard_normal((1, DIMENSIONS))
    return (row / np.linalg.norm(row)).astype(np.float32)


def content(number: int) -> str:
    return f"{number:064x}"


def put(index: SearchIndex, number: int, path: str | None = None) -> None:
    """One step: a content, and the file that holds it."""
    row = len(index.entries.contents)
    file = IndexedFile(number, number, True, (Part(None, row),))
    index.append(Step((content(number),), {path or f"/{number}": file}), vector(number))


def made(folder: Path, count: int, store: StoreName = "float32") -> SearchIndex:
    """An index of contents 0 to `count`, each in a file of its name."""
    index = SearchIndex(folder)
    index.create(header(store))
    with index.writing():
        for number in range(count):
            put(index, number)
    return index


def require_whole(folder: Path) -> int:
    """What can be found is what the log says, vector by vector → how many contents there are."""
    index = SearchIndex(folder)
    if not index.exists:
        return 0
    vectors, entries = index.vectors(), index.entries
    for row, sha256 in enumerate(entries.contents):
        assert np.array_equal(vectors[row], vector(int(sha256, 16))[0])
    assert {part.row for file in entries.files.values() for part in file.parts} <= set(range(len(entries.contents)))
    for path, file in entries.files.items():
        assert path == f"/{int(entries.contents[file.parts[0].row], 16)}"
    return len(entries.contents)
