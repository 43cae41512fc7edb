"""Packages with 4-bit weights in two levels: two decoders over the same bytes, one for each kind of processor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B
from onnx_files import external, load, operators, weights
from random_checkpoint import Shape
from scheme_graphs import needs_exact_int8, vectors_on_both_kinds

from runtime.graphs import model
from runtime.graphs.model import graph_file
from runtime.manifest import DECODER, DECODER_UINT8, Manifest

Packages = Callable[..., Path]
ITEMS = [{"text": "a red car"}, {"image": np.full((64, 96, 3), 200, np.uint8)}, {"text": "stone " * 40}]


@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
def test_both_decoders_read_the_same_bytes(package: Packages, shape: Shape) -> None:
    folder = package(shape, "embedding", "int4")
    stored = [
        {(each.name, each.data_type, *external(each)) for each in weights(load(folder, name))}
        for name in (DECODER, DECODER_UINT8)
    ]
    assert stored[0] == stored[1] and len(stored[0]) > 5 * 5 * Manifest.read(folder).text.num_hidden_layers
    assert not (folder / f"{DECODER_UINT8}.data").exists()


def test_only_these_packages_have_two(package: Packages) -> None:
    for precision, has_two in (("int4", True), ("int4-portable", False), ("int8", False)):
        folder = package(TINY_2B, "embedding", precision)
        names = {file.name for file in Manifest.read(folder).files}
        assert (DECODER_UINT8 in names) == (folder / DECODER_UINT8).exists() == has_two


@pytest.mark.parametrize(("saturates", "file"), [(False, DECODER), (True, DECODER_UINT8)])
def test_the_processor_decides(package: Packages, monkeypatch: pytest.MonkeyPatch, saturates: bool, file: str) -> None:
    monkeypatch.setattr(model, "products_saturate", lambda: saturates)
    assert graph_file(Manifest.read(package(TINY_2B, "embedding", "int4")), DECODER) == file


@needs_exact_int8
def test_both_decoders_give_the_same_vectors(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(*vectors_on_both_kinds(package(TINY_2B, "embedding", "int4"), ITEMS, monkeypatch))


def test_weights_stay_packed_and_every_matrix_is_unpacked_once(package: Packages) -> None:
    folder = package(TINY_2B, "embedding", "int4")
    layers = Manifest.read(folder).text.num_hidden_layers
    found = operators(load(folder, DECODER))
    # Those of the MLP, each in two halves; attention's four are int8.
    assert found["QLinearAdd"] == 3 * layers and found["MatMulIntegerToFloat"] == (2 * 3 + 4) * layers
    portable = package(TINY_2B, "embedding", "int4-portable")
    sizes = [(each / f"{DECODER}.data").stat().st_size for each in (folder, portable)]
    assert sizes[0] < 1.01 * sizes[1]  # blocks of 8 beside int8 attention, against blocks of 32 with float scales
