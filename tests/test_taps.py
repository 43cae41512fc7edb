"""What is read inside a package's graphs: the runtime's own numbers, the right rows, and calibration's."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_files import load
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from export.options import ExportOptions
from export.package import export_package
from quant.prompts import prompts
from quant.taps import TappedPackage
from runtime.errors import CheckpointError, PackageError
from runtime.graphs.model import Model
from runtime.graphs.package import open_encoder
from runtime.manifest import DECODER, Manifest, describe_file

Packages = Callable[..., Path]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_reading_the_inside_changes_nothing(package: Packages, precision: str) -> None:
    folder = package(TINY_2B, "embedding", precision)
    manifest = Manifest.read(folder)
    tapped, model = TappedPackage(folder, manifest), Model(folder, manifest, ["CPUExecutionProvider"], 1)
    for make in prompts(open_encoder(folder, manifest, {}), "embedding", None)[15:]:
        prompt = make()
        expected = model.pooled([model.prompt(prompt.sequence, prompt.visuals)])[0]
        np.testing.assert_allclose(tapped.pooled(prompt, rows=3), expected, rtol=0, atol=1e-5)
    assert {len(rows) for rows in tapped.rows["layers.0:hidden"]} == {3}
    assert {len(rows) for rows in tapped.rows["layers.3:hidden"]} == {1}


def test_the_last_row_comes_first(package: Packages) -> None:
    folder = package(TINY_2B, "embedding")
    manifest = Manifest.read(folder)
    make = prompts(open_encoder(folder, manifest, {}), "embedding", None)[0]
    few, all_rows = TappedPackage(folder, manifest), TappedPackage(folder, manifest)
    few.pooled(make(), rows=2)
    all_rows.pooled(make(), rows=10_000)
    (two,), (every,) = few.rows["layers.0:hidden"], all_rows.rows["layers.0:hidden"]
    length = len(make().sequence.input_ids)
    assert len(every) == length
    np.testing.assert_array_equal(two, every[:: -(-length // 2)])


def test_packages_without_names_are_refused(package: Packages, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(package(TINY_2B, "embedding"), tmp_path / "old"))
    manifest = Manifest.read(folder)
    model = load(folder, DECODER)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = name.replace(":hidden", ":0")
    onnx.save(model, folder / DECODER)
    files = tuple(describe_file(folder / file.name) for file in manifest.files)
    replace(manifest, files=files).sealed().write(folder)
    with pytest.raises(PackageError, match="has no names for its hidden states, it is from an earlier version; export"):
        TappedPackage(folder, Manifest.read(folder))


def test_an_export_below_min_cosine_says_which_layers(
    checkpoint: Callable[[Shape, Task], Path], tmp_path: Path
) -> None:
    options = ExportOptions("tiny", "int4", min_cosine=0.999)
    with pytest.raises(
        CheckpointError,
        match=r"below --min-cosine 0.999, and these layers cost most: layers\.\d \(\+0\.\d+\), layers\.\d \(.*; choose",
    ):
        export_package(checkpoint(TINY_2B, "embedding"), tmp_path / "out", options)
    assert not list(tmp_path.glob("*out*"))
