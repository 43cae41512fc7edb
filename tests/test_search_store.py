"""How vectors are stored and the nearest found, with numpy as the oracle."""

import sys

import numpy as np
import pytest
from refusals import refusal

from runtime import MissingExtraError
from runtime.search.vector_store import (
    CANDIDATES,
    SCALES,
    STORES,
    VECTORS,
    StoreName,
    VectorStore,
    require_search_extra,
)


def unit(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """float32 [count, dimensions]."""
    rows = np.random.default_rng(seed).standard_normal((count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_bits_are_most_significant_first() -> None:
    row = np.array([[1, -1, -1, 1, 1, -1, -1, -1, 0.5, -0.5]], np.float32)
    store = VectorStore("binary", 10)
    assert store.encode(row)[VECTORS].tolist() == [[0b10011000, 0b10000000]] and store.parts[VECTORS].width == 2


def test_int8_has_a_scale_a_vector() -> None:
    rows = np.array([[0.6, -0.8, 0.0], [0.0, 0.0, 0.0], [1e-3, -1e-3, 5e-4]], np.float32)
    encoded = VectorStore("int8", 3).encode(rows)
    assert encoded[VECTORS].tolist() == [[95, -127, 0], [0, 0, 0], [127, -127, 64]]
    assert encoded[SCALES].shape == (3, 1)


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_codes_give_the_vectors_back(name: StoreName) -> None:
    rows = unit(50, 100)
    store = VectorStore(name, 100)
    error = np.abs(store.decode(store.encode(rows)) - rows).max(axis=1)
    assert (error <= np.abs(rows).max(axis=1) / 127 / 2 + 1e-7).all()


@pytest.mark.parametrize("dimensions", [3, 64, 1024])
def test_float32_gives_the_order_of_the_cosines(dimensions: int) -> None:
    rows, query = unit(500, dimensions), unit(1, dimensions, 1)[0]
    store = VectorStore("float32", dimensions)
    expected = np.argsort(-(rows @ query), kind="stable")
    assert store.nearest(rows, query, 20).tolist() == expected[:20].tolist()
    assert store.nearest(rows, query, 1000).tolist() == expected.tolist()  # more than there are
    np.testing.assert_allclose(store.cosines(store.encode(rows), query), rows @ query, atol=1e-6)


def test_int8_ranks_by_the_cosine_of_the_codes() -> None:
    rows, query = unit(500, 64), unit(1, 64, 1)[0]
    store = VectorStore("int8", 64)
    encoded, codes = store.encode(rows), store.encode(query[None])[VECTORS][0].astype(float)
    cosines = (encoded[VECTORS] @ codes) / np.linalg.norm(encoded[VECTORS].astype(float), axis=1)
    assert store.nearest(encoded[VECTORS], query, 50).tolist() == np.argsort(-cosines, kind="stable")[:50].tolist()
    assert np.abs(store.cosines(encoded, query) - rows @ query).max() < 0.01


@pytest.mark.parametrize("dimensions", [20, 512])
def test_binary_ranks_by_differing_signs(dimensions: int) -> None:
    rows, query = unit(500, dimensions), unit(1, dimensions, 1)[0]
    store = VectorStore("binary", dimensions)
    encoded = store.encode(rows)
    differing = ((rows > 0) != (query > 0)).sum(axis=1)
    assert differing[store.nearest(encoded[VECTORS], query, 50)].tolist() == sorted(differing)[:50]
    assert np.abs(store.cosines(encoded, query) - rows @ query).max() < 0.01  # of the codes


def test_binary_finds_most_with_its_codes() -> None:
    """Rows with a decaying spectrum in all directions, as trained embeddings have."""
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((512, 512)))[0]
    spread = (np.arange(1, 513) ** -0.5)[:, None] * turn
    rows, queries = (unit(count, 512, seed) @ spread for count, seed in ((5000, 0), (50, 1)))
    rows, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, queries))
    store, shares = VectorStore("binary", 512), []
    encoded = store.encode(rows.astype(np.float32))
    for query in queries.astype(np.float32):
        found = store.nearest(encoded[VECTORS], query, 10 * CANDIDATES["binary"])
        cosines = store.cosines({name: part[found] for name, part in encoded.items()}, query)
        best = found[np.argsort(-cosines)[:10]]
        shares.append(len({*best} & {*np.argsort(-(rows @ query))[:10]}) / 10)
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize("name", STORES)
def test_a_vector_finds_itself(name: StoreName) -> None:
    store, rows = VectorStore(name, 96), unit(40, 96)
    encoded = store.encode(rows)
    assert [store.nearest(encoded[VECTORS], row, 1)[0] for row in rows] == list(range(40))
    assert set(encoded) == set(store.parts)
    assert store.decode({name: part[:0] for name, part in encoded.items()}).size == 0


def test_an_unknown_store_is_refused() -> None:
    assert refusal(lambda: VectorStore("int4", 8)) == "store is 'int4', expected one of float32, int8, binary."  # type: ignore[arg-type]


@pytest.mark.parametrize(("library", "module"), [("usearch", "usearch.compiled"), ("filelock", "filelock")])
def test_what_is_not_installed_is_named(library: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        require_search_extra()
    assert str(caught.value) == (
        f'searching needs {library}, which is not installed; run pip install "qwen3vl-edge[search]".'
    )
