"""`python -m quant compare`: float against itself, against int8 and int4, and against packages that are damaged."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_files import external, load, weights
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, write_checkpoint

from export.options import ExportOptions
from export.package import export_package
from quant.cli import main
from quant.compare import ROWS, compare
from quant.losses import costliest
from quant.selection import TOKEN_TABLE
from runtime.errors import PackageError
from runtime.manifest import DECODER, VISION, Manifest, describe_file

Packages = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
TASKS: tuple[Task, Task] = ("embedding", "reranker")
# Cosines of a float32 array with itself, in float64.
ROUNDING = 1e-12
DOWN, FC1 = "model.language_model.layers.1.mlp.down_proj.weight", "model.visual.blocks.3.mlp.linear_fc1.weight"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(FLOAT, QUANTISED, ...)`: exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main(["compare", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """A file of JSON lines."""

    def write(*content: object) -> Path:
        file = tmp_path / f"inputs-{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
        return file

    return write


def copy_of(package: Path, output: Path) -> tuple[Path, Manifest]:
    return Path(shutil.copytree(package, output)), Manifest.read(package)


def seal(folder: Path, manifest: Manifest) -> None:
    """Let the manifest of changed files fit them."""
    files = tuple(describe_file(folder / file.name) for file in manifest.files)
    replace(manifest, files=files).sealed().write(folder)


def negate_scales(folder: Path, manifest: Manifest, name: str, matrix: str) -> None:
    """Turn the signs of a matrix round: the highest bit of every little-endian float32 scale."""
    tensor = next(each for each in weights(load(folder, name)) if each.name == f"{matrix}:scales")
    _, offset, length = external(tensor)
    with (folder / f"{name}.data").open("r+b") as file:
        file.seek(offset)
        scales = -np.frombuffer(file.read(length), "<f4")
        file.seek(offset)
        file.write(scales.tobytes())
    seal(folder, manifest)


@pytest.mark.parametrize("task", TASKS)
def test_float_against_itself_loses_nothing(package: Packages, task: Task) -> None:
    folder = package(TINY_2B, task)
    found = compare(folder, folder)
    text, vision = TINY_2B.text.num_hidden_layers, TINY_2B.vision.depth
    expected = [f"blocks.{index}" for index in range(vision)] + [f"layers.{index}" for index in range(text)]
    assert [layer.name for layer in found.layers] == expected
    assert all(layer.loss < ROUNDING for layer in found.layers)
    assert all(matrix.loss < ROUNDING and matrix.relative == 0 for matrix in found.matrices)
    assert found.agreement.cosine_minimum > 1 - ROUNDING and found.agreement.largest == 0
    assert (found.agreement.kendall, found.agreement.overlap, found.agreement.spread) == (1, 1, 1)
    assert ROWS / 2 < found.rows <= ROWS


def test_every_product_is_compared(package: Packages) -> None:
    folder = package(TINY_2B, "embedding", "int8")
    found = compare(package(TINY_2B, "embedding"), folder)
    schemes = Manifest.read(folder).matrices
    assert {each.name: each.scheme for each in found.matrices} == {
        name: scheme for name, scheme in schemes.items() if name != TOKEN_TABLE
    }
    # A norm follows q and k of the decoder, so the scale of their input is left out: only these have no relative error.
    undefined = {each.name for each in found.matrices if np.isnan(each.relative)}
    per_token = {name for name, scheme in schemes.items() if scheme == "int8-per-token"}
    assert undefined == {name for name in per_token if name.endswith(("q_proj.weight", "k_proj.weight"))} != set()
    # Folds are undone: v and up, scaled by calibration, lose no more than q and gate, which read the same.
    losses = {each.name: each.loss for each in found.matrices}
    for name in losses:
        if name.endswith("up_proj.weight"):
            assert losses[name] == pytest.approx(losses[name.replace("up", "gate")], rel=0.5)


def test_int8_loses_less_than_int4(package: Packages) -> None:
    float_package = package(TINY_2B, "embedding")
    int8, int4 = (compare(float_package, package(TINY_2B, "embedding", each)) for each in ("int8-portable", "int4"))
    assert int8.agreement.cosine_minimum > int4.agreement.cosine_minimum
    assert int8.agreement.kendall > int4.agreement.kendall
    decoder = [(one, other) for one, other in zip(int8.layers, int4.layers, strict=True) if "layers" in one.name]
    assert all(0 < one.loss < other.loss / 2 for one, other in decoder)
    four_bit = [(one, other) for one, other in zip(int8.matrices, int4.matrices, strict=True) if "int4" in other.scheme]
    assert len(four_bit) == 3 * 4 and all(one.loss < other.loss for one, other in four_bit)


@pytest.mark.parametrize(("name", "matrix"), [(DECODER, DOWN), (VISION, FC1)], ids=["decoder", "vision"])
def test_a_damaged_matrix_is_the_worst(package: Packages, tmp_path: Path, run: Run, name: str, matrix: str) -> None:
    float_package = package(TINY_2B, "embedding")
    damaged, manifest = copy_of(package(TINY_2B, "embedding", "int8"), tmp_path / "damaged")
    negate_scales(damaged, manifest, name, matrix)
    found = compare(float_package, damaged)
    worst = max(found.matrices, key=lambda each: each.increase)
    assert worst.name == matrix and worst.loss > 1
    assert costliest(found.layers).startswith(f"{worst.layer} (+")
    code, out, err = run(float_package, damaged, "--min-cosine", "0.995")
    marked = [line.split()[0] for line in out.splitlines() if line.endswith("<-- among the worst")]
    assert len(marked) == 5 and worst.name.split(".", 2)[2].removesuffix(".weight") in marked
    assert code == 1
    assert err.startswith("the mean cosine 0.") and f"these layers cost most: {worst.layer} (+" in err


def test_the_table_and_the_exit_code(package: Packages, run: Run) -> None:
    float_package, int4 = package(TINY_2B, "embedding"), package(TINY_2B, "embedding", "int4")
    code, out, err = run(float_package, int4, "--min-cosine", "0.5")
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[0] == "tiny, embedding: int4 against fp32"
    states = [row.split()[0] for row in rows if " hidden state" in row]
    assert states == [*(f"blocks.{index}" for index in range(6)), *(f"layers.{index}" for index in range(4))]
    assert sum("int4-two-level-signed-block8" in row for row in rows) == 3 * 4
    for name in ("cosine", "centred cosine", "top-10 overlap", "Kendall's tau", "score spread", "costliest layers"):
        assert sum(row.startswith(f"  {name} ") for row in rows) == 1
    assert all(row == row.rstrip() and row.isascii() for row in rows)
    assert run(float_package, int4)[0] == 0
    code, again, err = run(float_package, int4, "--min-cosine", "0.9999")
    assert (code, again) == (1, out)
    assert err.endswith(".\n") and "is below --min-cosine 0.9999; these layers cost most: layers." in err


def test_rerankers_are_compared_by_their_logits(package: Packages, run: Run, lines: Callable[..., Path]) -> None:
    float_package, int4 = package(TINY_2B, "reranker"), package(TINY_2B, "reranker", "int4")
    documents: Sequence[object] = [{"text": f"document {number}"} for number in range(4)]
    file = lines({"query": {"text": "a"}, "documents": documents}, {"query": {"text": "b"}, "documents": documents[:1]})
    code, out, _ = run(float_package, int4, "--inputs", file)
    assert code == 0 and "end to end, 5 inputs" in out and "correlation" in out and " of scores" in out
    assert "blocks" not in out, "no picture, no vision encoder"
    found = compare(float_package, int4, file)
    assert 0 < found.agreement.largest < 1 and found.rows > 5
    code, out, err = run(float_package, int4, "--inputs", file, "--min-cosine", "0.5")
    message = "error: --min-cosine compares a reranker's logits over all pairs, and these are 5; "
    assert (code, out, err) == (2, "", f"{message}give 8 or more, or leave it out.\n"), "before anything ran"
    code, _, err = run(float_package, int4, "--min-cosine", "1")
    assert code == 1 and err.startswith("the correlation of the logits 0.") and "is below --min-cosine 1.0;" in err


def test_inputs_of_ones_own(package: Packages, run: Run, lines: Callable[..., Path], tmp_path: Path) -> None:
    float_package, int4 = package(TINY_2B, "embedding"), package(TINY_2B, "embedding", "int4")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    code, out, _ = run(float_package, int4, "--inputs", lines({"text": "a"}, {"image": str(tmp_path / "red.png")}))
    assert code == 0 and "end to end, 2 inputs" in out and "blocks.0 hidden state" in out
    single = compare(float_package, int4, lines({"text": "a"}))
    assert single.agreement.count == 1 and single.agreement.kendall == 1
    # One row, and calibration may have scaled its channels: there is nothing to tell the two apart.
    undefined = {each.name for each in single.matrices if np.isnan(each.loss)}
    assert undefined == {"model.language_model.layers.3.mlp.up_proj.weight"}


def test_more_inputs_than_rows(package: Packages, lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.compare.ROWS", 4)
    found = compare(package(TINY_2B, "embedding"), package(TINY_2B, "embedding"), lines(*[{"text": "a"}] * 10))
    assert (found.agreement.count, found.rows) == (10, 4)


def test_inputs_that_cannot_be_used(package: Packages, run: Run, lines: Callable[..., Path], tmp_path: Path) -> None:
    embedding, reranker = package(TINY_2B, "embedding"), package(TINY_2B, "reranker")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{', encoding="utf-8")
    cases = [
        (embedding, tmp_path / "gone.jsonl", f"--inputs {tmp_path / 'gone.jsonl'} cannot be read"),
        (embedding, tmp_path / "bad.jsonl", f"{tmp_path / 'bad.jsonl'}, line 2: not JSON"),
        (embedding, lines({"texts": "a"}), "inputs[0] has the unknown key 'texts'"),
        (reranker, lines({"query": {"text": "a"}}), "requests[0]: inputs: documents is None"),
        (reranker, lines({"query": {"text": "a"}, "documents": []}), "holds nothing to compare on"),
    ]
    for folder, file, message in cases:
        code, out, err = run(folder, folder, "--inputs", file)
        assert (code, out) == (2, "") and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_wrong_pairs_are_refused(package: Packages, tmp_path: Path, run: Run) -> None:
    float_package = package(TINY_2B, "embedding")
    write_checkpoint(tmp_path / "other", TINY_2B, seed=1)
    export_package(tmp_path / "other", tmp_path / "package", ExportOptions("other"))
    with pytest.raises(PackageError, match=r"was made from the checkpoint other .*; export both from the same"):
        compare(float_package, tmp_path / "package")
    with pytest.raises(PackageError, match=r"is for the task embedding and .* for reranker; compare packages of one"):
        compare(float_package, package(TINY_2B, "reranker"))
    with pytest.raises(PackageError, match=r"is int4, and losses are measured against float; give the package"):
        compare(package(TINY_2B, "embedding", "int4"), float_package)
    assert run(float_package, tmp_path / "nowhere")[0] == 2


def test_the_plot_is_a_picture(package: Packages, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    float_package, int4 = package(TINY_2B, "embedding"), package(TINY_2B, "embedding", "int4")
    for name, quantised in (("int4", int4), ("float", float_package)):  # zeros on a logarithmic axis, too
        file = tmp_path / f"{name}.png"
        assert run(float_package, quantised, "--plot", file)[0] == 0
        with Image.open(file) as picture:
            assert picture.format == "PNG" and min(picture.size) > 800
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


def test_plots_that_cannot_be_made_are_refused_first(
    package: Packages, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (tmp_path / "a", tmp_path / "b")  # packages that there are not: nothing was opened
    assert "does not end in .png" in run(*nowhere, "--plot", tmp_path / "plot.pdf")[2]
    assert "there is no folder" in run(*nowhere, "--plot", tmp_path / "gone" / "plot.png")[2]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(*nowhere, "--plot", tmp_path / "plot.png")
    assert (code, out) == (2, "")
    assert err == 'error: plots need matplotlib, which is not installed; run pip install "qwen3vl-edge[plot]".\n'


def test_comparing_needs_onnx(package: Packages, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(package(TINY_2B, "embedding"), package(TINY_2B, "embedding"))
    assert code == 2
    assert (
        err == 'error: comparing packages needs onnx, which is not installed; run pip install "qwen3vl-edge[export]".\n'
    )
