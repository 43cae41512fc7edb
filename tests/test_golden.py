"""Golden inputs: what an export keeps of them, and that `python -m runtime verify` tells good packages from bad."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exports import PLAIN
from onnx_files import external, load, weights
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B

from export.package import export_package
from runtime import PackageError, Qwen3VLEmbedder, Qwen3VLReranker
from runtime.commands.cli import main
from runtime.golden import Golden, agreements
from runtime.manifest import DECODER, GOLDEN, Manifest, PackageFile, describe_file
from runtime.planning.machine import UNKNOWN
from runtime.published import DOCUMENT, FIGURES, QUERIES

Packages = Callable[..., Path]
PRECISIONS = ["fp32", "int8", "int8-portable", "int4", "int4-portable"]


def read(folder: Path) -> Golden:
    return Golden.read(folder, Manifest.read(folder))


def reseal(folder: Path, manifest: Manifest, name: str) -> None:
    """Let the manifest describe a file as it is now: only results can tell the difference then."""
    files: tuple[PackageFile, ...] = tuple(
        describe_file(folder / name) if file.name == name else file for file in manifest.files
    )
    replace(manifest, files=files).sealed().write(folder)


@pytest.fixture
def copy(package: Packages, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package(TINY_2B, "embedding", "int8"), tmp_path / "package"))


@pytest.mark.parametrize("task", ["embedding", "reranker"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_package_gives_what_it_gave(
    package: Packages, task: Task, precision: str, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package(TINY_2B, task, precision)
    assert main(["verify", str(folder), "--memory", memory]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("pass  ") == 4 and "FAIL" not in out
    assert out.splitlines()[-1].startswith(f"{folder} passes: tiny, {precision} for cpu")


def test_both_results_are_kept(package: Packages) -> None:
    """The float32 graph's and the package's own, which differ by what quantisation costs."""
    exact, coarse = read(package(TINY_2B, "embedding")), read(package(TINY_2B, "embedding", "int8"))
    assert coarse.package is not None and exact.package is not None
    assert exact.inputs == coarse.inputs and len(exact.inputs) == 4
    assert np.abs(exact.float32 - coarse.float32).max() < 1e-5
    assert np.array_equal(exact.float32, exact.package)
    cosines = (coarse.float32 * coarse.package).sum(axis=1)
    assert cosines.min() > 0.9 and cosines.max() < 0.99999
    found = Qwen3VLEmbedder(package(TINY_2B, "embedding")).process(list(exact.inputs))
    assert np.abs(found - exact.float32).max() < 1e-5


def test_they_go_along_and_leave_no_trace(package: Packages, checkpoint: Packages, tmp_path: Path) -> None:
    """Pictures among them neither, where calibration sees none: the other bytes and the loss are those without."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.txt").write_text("a cat")
    options = replace(PLAIN, precision="int8", calibrate=str(tmp_path / "samples"))
    found, none = (
        export_package(checkpoint(TINY_2B, "embedding"), tmp_path / golden, replace(options, golden=golden))
        for golden in ("builtin", "none")
    )
    assert found.calibration == none.calibration and found.loss == none.loss and found.matrices == none.matrices
    assert [file for file in found.files if file.name != GOLDEN] == list(none.files)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_without_calibration_they_are_run_alone(checkpoint: Packages, tmp_path: Path, precision: str) -> None:
    options = replace(PLAIN, precision=precision, calibrate="none", golden="builtin")
    manifest = export_package(checkpoint(TINY_2B, "embedding"), tmp_path / "package", options)
    golden = Golden.read(tmp_path / "package", manifest)
    found = Qwen3VLEmbedder(tmp_path / "package").process(list(golden.inputs))
    assert golden.package is not None and np.abs(found - golden.package).max() < 1e-5
    assert 0.3 < (golden.float32 * golden.package).sum(axis=1).min() < 0.99999


def test_wrong_weights_fail(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that someone changed and described anew: only the results tell."""
    manifest = Manifest.read(copy)
    name = "model.language_model.layers.1.mlp.down_proj.weight:scales"
    (weight,) = (each for each in weights(load(copy, DECODER)) if each.name == name)
    file, offset, length = external(weight)
    with (copy / file).open("r+b") as stream:
        stream.seek(offset)
        scales = np.frombuffer(stream.read(length), np.float32)
        stream.seek(offset)
        stream.write((scales * 1.5).astype(np.float32).tobytes())
    assert main(["verify", str(copy)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {copy / file} ")
    reseal(copy, manifest, file)
    assert main(["verify", str(copy)]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAIL  cosine") == 4
    assert err == (
        f"{copy} does not give here what it should (4 of 4 comparisons); do not use it here, and report this output.\n"
    )


def test_other_kernels_have_a_looser_bound(copy: Path) -> None:
    golden = read(copy)
    assert golden.package is not None
    turned = golden.package.copy()
    turned[:, 0] += 0.02  # cosine about 0.9998
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    same = agreements(golden, turned, "int8", same_kernels=True)
    other = agreements(golden, turned, "int8", same_kernels=False)
    assert not any(each.passed for each in same) and all(each.passed for each in other)
    assert not any(each.passed for each in agreements(golden, turned, "fp32", same_kernels=False))
    nothing = np.full_like(turned, np.nan)
    assert not any(each.passed for each in agreements(golden, nothing, "int8", same_kernels=False))


def test_what_is_not_known_is_not_taken_for_the_same(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.planning.machine.CPUINFO", Path("nowhere"))
    manifest = Manifest.read(copy)
    replace(read(copy), instructions=UNKNOWN).write(copy)
    reseal(copy, manifest, GOLDEN)
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().out.count("(≥ 0.99)") == 4


def test_without_the_package_s_own_results_float32_counts(copy: Path) -> None:
    golden = replace(read(copy), package=None)
    for each in agreements(golden, golden.float32, "int8", same_kernels=True):
        assert each.against == "float32" and each.passed and each.bound < 0.999


def test_none(checkpoint: Packages, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "package"
    manifest = export_package(checkpoint(TINY_2B, "embedding"), output, replace(PLAIN, golden="none"))
    assert manifest.golden == "none" and not (output / GOLDEN).exists()
    assert main(["verify", str(output)]) == 2
    assert capsys.readouterr().err == (
        f"error: {output} has no golden inputs (it was exported with --golden none); export it again without that.\n"
    )


def test_a_damaged_file_is_named(copy: Path) -> None:
    path, manifest = copy / GOLDEN, Manifest.read(copy)
    content = json.loads(path.read_text(encoding="utf-8"))
    few = {"inputs": content["inputs"][:2]}
    for damage in ({"package": "!"}, {"float32": None}, {"float32": content["float32"][:8]}, {"inputs": []}, few):
        path.write_text(json.dumps(content | damage), encoding="utf-8")
        reseal(copy, manifest, GOLDEN)
        with pytest.raises(PackageError, match=r"golden\.json cannot be read .*; export the package again\.$"):
            read(copy)
    path.write_text("[" * 10**5, encoding="utf-8")
    reseal(copy, manifest, GOLDEN)
    with pytest.raises(PackageError, match=r"golden\.json cannot be read"):
        read(copy)


def test_cuda_packages_are_compared_with_float32(cuda_package: Packages) -> None:
    golden = read(cuda_package(TINY_2B, "embedding", "int8"))
    assert golden.package is None and len(golden.float32) == 4


@pytest.fixture
def published(package: Packages, tmp_path: Path) -> Callable[[Task], Path]:
    """A package of random weights that says it is of a published model."""

    def rename(task: Task) -> Path:
        folder = Path(shutil.copytree(package(TINY_2B, task), tmp_path / task))
        name = {"embedding": "Qwen3-VL-Embedding-2B", "reranker": "Qwen3-VL-Reranker-2B"}[task]
        replace(Manifest.read(folder), name=name).sealed().write(folder)
        return folder

    return rename


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_the_announced_figures_are_compared(
    published: Callable[[Task], Path],
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Random weights do not give them; figures that these weights give pass."""
    folder, picture = published(task), Image.new("RGB", (96, 64), "orange")
    monkeypatch.setattr("runtime.commands.verify.load_image", lambda *arguments: picture)
    rows = {"embedding": 4, "reranker": 1}[task]
    assert main(["verify", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAIL  difference") >= 1 and "to the announcement (≤ 0.02)" in out
    assert "not what was announced of" in err and f"of {rows} comparisons" in err

    model = {"embedding": Qwen3VLEmbedder, "reranker": Qwen3VLReranker}[task](folder)
    monkeypatch.setitem(FIGURES, Manifest.read(folder).name, results(model, picture))
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.count("pass  difference") >= rows


def results(model: Qwen3VLEmbedder | Qwen3VLReranker, picture: Image.Image) -> list[list[float]]:
    """Independently of what is tested: one call an input."""
    documents = [{"text": DOCUMENT}, {"image": picture}, {"text": DOCUMENT, "image": picture}]
    if isinstance(model, Qwen3VLReranker):
        query = {"text": "A woman playing with her dog on a beach at sunset."}
        request = {"query": query, "instruction": "Retrieval relevant image or text with user's query"}
        return [[model.process({**request, "documents": [document]})[0] for document in documents]]
    columns = np.concatenate([model.process([document]) for document in documents])
    return [(model.process([{"text": query}]) @ columns.T)[0].tolist() for query in QUERIES]


def test_without_the_picture_the_rest_is_verified(
    published: Callable[[Task], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published("embedding")
    monkeypatch.setattr("runtime.commands.verify.PICTURE", "http://127.0.0.1:9/demo.jpeg")
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not compared with the announcement: http://127.0.0.1:9/demo.jpeg cannot be downloaded" in out
    assert "passes" in out
