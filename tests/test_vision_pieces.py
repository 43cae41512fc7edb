"""What follows the attention of pictures is calculated in pieces of rows, and gives what all rows at once do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B, TINY_8B
from onnx_files import bodies, external, load, nodes, operators, weights
from random_checkpoint import Shape
from scheme_graphs import needs_exact_int8, vectors_on_both_kinds

from quant.prompts import prompts
from quant.taps import TappedPackage
from runtime import Qwen3VLEmbedder
from runtime.graphs import model, vision
from runtime.graphs.model import graph_file
from runtime.graphs.package import open_encoder
from runtime.graphs.vision import PIECE_ROWS, pieces_of
from runtime.manifest import VISION, VISION_UINT8, Manifest

Packages = Callable[..., Path]
PIXELS = np.random.default_rng(4).integers(0, 256, (96, 160, 3), dtype=np.uint8)
ITEMS = [{"image": PIXELS}, {"image": PIXELS[:64]}, {"video": [PIXELS[:64]] * 4, "text": "four frames"}]


@pytest.mark.parametrize("rows", [4, 36, 64, 512, 1024, 4096, 4588, 7200, 4 * 1021, 8 * 1000])
def test_pieces_are_equal_even_and_about_as_long_as_wanted(rows: int) -> None:
    count = pieces_of(rows)
    assert rows % count == 0 and rows // count % 2 == 0
    assert rows // count <= 2 * PIECE_ROWS or rows == 4 * 1021  # a prime number of visual tokens in one line
    assert rows // count >= min(rows, PIECE_ROWS / 4)


def test_few_rows_are_one_piece_and_odd_ones_too() -> None:
    assert [pieces_of(rows) for rows in (2, 4, 36, 512)] == [1, 1, 1, 1]
    assert [pieces_of(rows, wanted=2) for rows in (1, 3, 9)] == [1, 1, 1]
    assert [pieces_of(rows, wanted=8) for rows in (16, 24, 64, 72)] == [2, 3, 8, 9]
    assert [pieces_of(rows) for rows in (1024, 4096, 7200)] == [2, 8, 15]


@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-portable"])
def test_every_block_has_one_body_and_no_weights_in_it(package: Packages, shape: Shape, precision: str) -> None:
    graph = load(package(shape, "embedding", precision), VISION)
    scans = nodes(graph, "Scan")
    assert len(scans) == shape.vision.depth
    for scan in scans:
        (body,) = bodies(scan)
        found = [node.op_type for node in body.node]
        # A body's own weights would stay in memory beside what they were prepacked to.
        assert not body.initializer and "MultiHeadAttention" not in found
        assert found.count("FastGelu") == found.count("LayerNormalization") == 1 and found[-1] == "Add"
    assert dict(operators(graph))["MultiHeadAttention"] == shape.vision.depth


@pytest.mark.parametrize("precision", ["int8", "int8-portable", "int4"])
@pytest.mark.parametrize("wanted", [8, 16])
def test_pieces_give_what_all_rows_give(
    package: Packages, monkeypatch: pytest.MonkeyPatch, precision: str, wanted: int
) -> None:
    whole, counts = results(package(TINY_2B, "embedding", precision), monkeypatch, 10**6)
    cut, more = results(package(TINY_2B, "embedding", precision), monkeypatch, wanted)
    assert set(counts) == {1} and min(more) > 1
    assert np.array_equal(whole, cut)


def test_in_float32_too(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole, _), (cut, _) = (results(package(TINY_8B, "embedding"), monkeypatch, wanted) for wanted in (10**6, 8))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-6)


def results(folder: Path, monkeypatch: pytest.MonkeyPatch, wanted: int) -> tuple[np.ndarray, list[int]]:
    """Vectors of ITEMS with pieces of about `wanted` rows, and in how many pieces each call was cut."""
    counts: list[int] = []

    def spy(rows: int) -> int:
        counts.append(pieces_of(rows, wanted))
        return counts[-1]

    monkeypatch.setattr(vision, "pieces_of", spy)
    return Qwen3VLEmbedder(folder).process(ITEMS), counts


def test_packages_with_int8_products_have_a_second_graph(package: Packages) -> None:
    for precision, has_two in (("fp32", False), ("int8", True), ("int8-portable", False), ("int4", True)):
        folder = package(TINY_2B, "embedding", precision)
        names = {file.name for file in Manifest.read(folder).files}
        assert (VISION_UINT8 in names) == (folder / VISION_UINT8).exists() == has_two


@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
def test_the_second_graph_has_the_same_bytes_and_no_body(package: Packages, shape: Shape) -> None:
    folder = package(shape, "embedding", "int8")
    one, other = (load(folder, name) for name in (VISION, VISION_UINT8))
    stored = [{(each.name, each.data_type, *external(each)) for each in weights(graph)} for graph in (one, other)]
    assert stored[0] == stored[1] and not (folder / f"{VISION_UINT8}.data").exists()
    # onnxruntime makes uint8 weights for products of the graph itself only.
    assert operators(one)["Scan"] == shape.vision.depth and not operators(other)["Scan"]
    assert operators(one)["MatMulIntegerToFloat"] == operators(other)["MatMulIntegerToFloat"] > 0


@pytest.mark.parametrize(("saturates", "file"), [(False, VISION), (True, VISION_UINT8)])
def test_the_processor_decides(package: Packages, monkeypatch: pytest.MonkeyPatch, saturates: bool, file: str) -> None:
    monkeypatch.setattr(model, "products_saturate", lambda: saturates)
    assert graph_file(Manifest.read(package(TINY_2B, "embedding", "int8")), VISION) == file
    assert graph_file(Manifest.read(package(TINY_2B, "embedding", "int8-portable")), VISION) == VISION


@needs_exact_int8
def test_both_graphs_give_the_same_vectors(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(*vectors_on_both_kinds(package(TINY_2B, "embedding", "int8"), ITEMS, monkeypatch))


def test_values_in_a_body_are_read_as_those_outside(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package(TINY_2B, "embedding", "int8")
    manifest = Manifest.read(folder)
    *_, make = prompts(open_encoder(folder, manifest, {}), "embedding", None)  # with a picture
    patches = len(make().visuals[0].patches[0])
    found = []
    for wanted in (10**6, 8):
        monkeypatch.setattr(vision, "pieces_of", lambda rows, wanted=wanted: pieces_of(rows, wanted))
        tapped = TappedPackage(folder, manifest)
        tapped.pooled(make(), rows=10**4)
        found.append(tapped.rows)
    name = "model.visual.blocks.0.mlp.linear_fc1.weight"
    assert found[0][name][0].shape == (patches, manifest.vision.intermediate_size) and pieces_of(patches, 8) > 1
    assert found[0].keys() == found[1].keys()
    for value in found[0]:
        assert np.array_equal(np.concatenate(found[0][value]), np.concatenate(found[1][value])), value
