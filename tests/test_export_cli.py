"""`python -m export`: the package's path on stdout, words on stderr, exit codes that tell the truth."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape, write_checkpoint
from safetensors.numpy import load_file, save_file

from export.cli import main, package_name
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.manifest import Manifest

Folders = Callable[[Shape, Task], Path]
Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("--model", ...)`: exit code, stdout and stderr of an export with `tmp_path` as working folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def folder(checkpoint: Folders) -> Path:
    return checkpoint(TINY_2B, "embedding")


def test_the_default_output_is_named_after_the_checkpoint(run: Run, folder: Path) -> None:
    code, out, err = run("--model", folder)
    package = Path("packages") / f"{folder.name}-fp32"
    assert (code, out) == (0, f"{package}\n")
    assert err.splitlines()[0] == "task: embedding (tokenizer.json appends <|endoftext|>, modules.json says embedding)"
    assert {path.name for path in Path("packages").iterdir()} == {package.name}
    manifest = Manifest.read(package)
    manifest.check(package)
    assert (manifest.name, manifest.task, manifest.precision) == (folder.name, "embedding", "fp32")
    assert Qwen3VLEmbedder(package).process([{"text": "a"}]).shape == (1, 64)


def test_an_existing_package_is_replaced_only_by_force(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "duck.png").touch()
    assert run("--model", folder, "--output", "out")[:2] == (0, "out\n")
    first = Manifest.read(Path("out"))
    again = "error: out exists already; pass --force to replace it or choose another --output.\n"
    assert run("--model", folder, "--output", "out") == (2, "", again)
    assert Manifest.read(Path("out")) == first
    assert run("--model", folder, "--output", "out", "--task", "reranker", "--force")[:2] == (0, "out\n")
    assert Manifest.read(Path("out")).task == "reranker"
    other = "error: photos exists and is not a package; choose another --output.\n"
    assert run("--model", folder, "--output", "photos", "--force") == (2, "", other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    assert (tmp_path / "photos" / "duck.png").exists()


def test_task_decides_where_the_files_disagree(run: Run, folder: Path, checkpoint: Folders, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(folder, tmp_path / "mixed"))
    shutil.copyfile(checkpoint(TINY_2B, "reranker") / "tokenizer.json", mixed / "tokenizer.json")
    code, out, err = run("--model", mixed)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("say which with --task.\n")
    assert run("--model", mixed, "--task", "reranker", "--output", "out")[:2] == (0, "out\n")
    scores = Qwen3VLReranker("out").process({"query": {"text": "a"}, "documents": [{"text": "b"}]})
    assert 0 < scores[0] < 1


def test_bad_checkpoints_are_one_line_and_leave_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    bare, cut = tmp_path / "bare", Path(shutil.copytree(folder, tmp_path / "cut"))
    bare.mkdir()
    weights = cut / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 100)
    cases = {
        "nowhere": "'nowhere' is neither a folder nor a known model: give a checkpoint folder, one of Qwen3-VL-",
        str(tmp_path / "gone"): f"There is no folder {tmp_path / 'gone'}: give an existing checkpoint folder",
        str(bare): f"{bare} has no config.json; pass the folder of a whole checkpoint.",
        str(cut): f"{weights} ",
        str(weights): f"{weights} is a file: give the folder that holds config.json and the weights.",
    }
    for model, message in cases.items():
        code, out, err = run("--model", model, "--output", "out")
        *words, error = err.splitlines()
        assert (code, out) == (2, "")
        assert error.startswith(f"error: {message}")
        assert all(word.startswith("task: ") for word in words)
        assert not list(tmp_path.glob("*out*"))
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", [(), ("--int8", "--calibrate", "none", "--golden", "none"), ("--int8",)])
def test_a_weight_that_is_no_number_is_named(
    run: Run, folder: Path, tmp_path: Path, number: float, precision: tuple[str, ...]
) -> None:
    name, damaged = "model.language_model.layers.2.mlp.down_proj.weight", tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors[name][5, 7] = number
    save_file(tensors, damaged / "model.safetensors")
    code, out, err = run("--model", damaged, "--output", "out", *precision)
    assert (code, out) == (2, "")
    assert (
        err.splitlines()[-1] == f"error: {name} of the checkpoint holds NaN or infinity: it is damaged, get it again."
    )
    assert "RuntimeWarning" not in err and not list(tmp_path.glob("*out*"))


def test_scores_are_correlated_and_too_few_are_not(run: Run, checkpoint: Folders, tmp_path: Path) -> None:
    arguments = ("--model", checkpoint(TINY_2B, "reranker"), "--int4", "--golden", "none", "--output", "out")
    assert "on 26 samples: correlation of the logits 0." in run(*arguments)[2]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "lines.jsonl").write_text('"a"\n"b"\n')
    few = ("--calibrate", tmp_path / "samples", "--force")
    code, out, err = run(*arguments, *few, "--min-cosine", 0.5)
    assert (code, out) == (2, "")
    message = "error: --min-cosine compares a reranker's logits over all samples, and "
    assert err.splitlines()[-1] == f"{message}{tmp_path / 'samples'} has 2; give 8 or more, or leave it out."
    assert run(*arguments, *few)[0] == 0


def test_an_output_that_nobody_reads(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "--model", folder, "--output", tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 141
    assert Manifest.read(tmp_path / "out").precision == "fp32"


def test_the_target_has_its_own_default_and_name(run: Run, folder: Path) -> None:
    code, out, _ = run("--model", folder, "--target", "cuda")
    package = Path("packages") / f"{folder.name}-bf16-cuda"
    assert (code, out) == (0, f"{package}\n")
    manifest = Manifest.read(package)
    assert (manifest.target, manifest.precision) == ("cuda", "bf16")
    assert run("--model", folder, "--target", "cuda", "--bf16", "--output", "out")[:2] == (0, "out\n")
    assert Manifest.read(Path("out")).files == manifest.files


def test_the_loss_says_what_it_was_measured_with(run: Run, folder: Path) -> None:
    said = "weights as stored, activations in float32; against float32 on 26 samples: cosine 0.99"
    assert said in run("--model", folder, "--target", "cuda", "--int8")[2]
    assert "activations" not in run("--model", folder, "--int8")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--bf16"],
            "--bf16 is for --target cuda; "
            "--target cpu takes --fp32, --int8, --int8 --portable, --int4 or --int4 --portable.",
        ),
        (["--target", "cuda", "--fp32"], "--fp32 is for --target cpu; --target cuda takes --bf16, --int8 or --int4."),
        (
            ["--target", "cuda", "--int8", "--portable"],
            "--int8 --portable is for --target cpu; --target cuda takes --bf16, --int8 or --int4.",
        ),
        (
            ["--target", "cuda", "--verify"],
            "--verify compares float32 packages with torch; leave it out of --bf16, "
            "or export with --fp32 --target cpu.",
        ),
        (
            ["--int8", "--portable", "--verify"],
            "--verify compares float32 packages with torch; leave it out of --int8 --portable, "
            "or export with --fp32 --target cpu.",
        ),
        (
            ["--target", "cuda", "--min-cosine", "0.9"],
            "--min-cosine needs a quantised precision and calibration samples to compare on.",
        ),
        (["--int8", "--block", "32"], "--block belongs to --int4; add --int4 or leave it out."),
        *(
            (
                ["--int4", "--block", "8", *more],
                "--block 8 is for --int4 on the CPU; with --portable or on cuda take 16 or more.",
            )
            for more in (["--portable"], ["--target", "cuda"])
        ),
        (["--calibrate", "x"], "--calibrate is for quantised precisions; add --int8 or --int4, or leave it out."),
        (["--int8", "--min-cosine", "nan"], "--min-cosine is nan, expected a number from -1 to 1, such as 0.995."),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, out, err = run("--model", folder, *options)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_names_of_packages() -> None:
    assert package_name("Qwen/Qwen3-VL-Reranker-8B") == "Qwen3-VL-Reranker-8B"
    assert package_name("qwen3-vl-embedding-2b") == "Qwen3-VL-Embedding-2B"
    assert package_name("someone/fine-tuned") == "fine-tuned"
    assert package_name(".") == Path.cwd().name


def test_verify_passes_and_is_stored(run: Run, folder: Path) -> None:
    pytest.importorskip("torch")
    code, out, err = run("--model", folder, "--output", "out", "--verify")
    assert (code, out) == (0, "out\n")
    rows = json.loads(Path("out", "verify.json").read_text(encoding="utf-8"))
    assert err.endswith(f"{len(rows)} comparisons, 0 failed\n")
    assert {"token ids", "positions", "visual tokens", "DeepStack", "embedding"} <= {row["stage"] for row in rows}
    assert all(row["passed"] and row["difference"] <= row["bound"] for row in rows)
    Manifest.read(Path("out")).check(Path("out"))  # still whole


def test_verify_fails_a_package_of_other_weights(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    verify = importlib.import_module("export.verify")
    compare = verify.verify_package
    write_checkpoint(tmp_path / "other", TINY_2B, seed=1)
    # The package is made of one checkpoint and compared with the reference on another.
    monkeypatch.setattr(verify, "verify_package", lambda _, package, say: compare(tmp_path / "other", package, say))
    code, out, err = run("--model", folder, "--output", "out", "--verify")
    assert (code, out) == (1, "out\n")
    assert err.endswith("out does not reproduce the reference; do not use it and report the table.\n")
    rows = json.loads(Path("out", "verify.json").read_text(encoding="utf-8"))
    # What comes before the weights agrees in every case; nothing that depends on them does.
    failed, passed = ({row["stage"] for row in rows if row["passed"] is each} for each in (False, True))
    assert failed == {"visual tokens", "DeepStack", "embedding"}
    assert passed.isdisjoint(failed)


def test_the_console_exports(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "export", "--model", str(folder), "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, f"{output}\n")
    assert Manifest.read(output).task == "embedding"
    failed = subprocess.run([sys.executable, "-m", "export"], capture_output=True, text=True, cwd=ROOT)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "the following arguments are required: --model" in failed.stderr


@pytest.mark.parametrize(("module", "library"), [("export", "onnx"), ("export", "jinja2"), ("quant", "ml_dtypes")])
def test_without_the_extra_its_name_is_said(module: str, library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from {module}.__main__ import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f' needs {library}, which is not installed; run pip install "qwen3vl-edge[export]".\n')
    assert done.stderr.count("\n") == 1
