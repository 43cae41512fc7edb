"""A user's environment, without torch and with the newest versions: from checkpoint to vectors and scores.

Not collected with the other tests, which need the reference: scripts/test runs it in .venv.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from checkpoint_shapes import TINY_2B
from fake_hub import COMMIT, FakeHub
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import write_checkpoint
from video_files import write_video

TASKS: tuple[Task, ...] = ("embedding", "reranker")
SCRIPTS = sysconfig.get_path("scripts")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command writes to stdout; it must succeed, and warnings are errors in it too."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,  # elsewhere than the repository: what runs is what was installed
        env=os.environ | {"PYTHONWARNINGS": "error", "PYTHONUTF8": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_module(module: str, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    return run(sys.executable, "-m", module, *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds <task>-checkpoint, <task> (its package, exported by command), car.png and car.mp4."""
    folder = tmp_path_factory.mktemp("smoke")
    for task in TASKS:
        write_checkpoint(folder / f"{task}-checkpoint", TINY_2B, task=task)
        assert run_module("export", "--model", f"{task}-checkpoint", "--output", task, cwd=folder) == f"{task}\n"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(folder / "car.png")
    write_video(folder / "car.mp4", (64, 64), 50)
    return folder


@pytest.mark.parametrize("name", ["torch", "torchvision", "transformers", "qwen_vl_utils", "decord"])
def test_the_reference_is_not_installed(name: str) -> None:
    assert importlib.util.find_spec(name) is None


@pytest.mark.parametrize(("library", "extra"), [("langchain", "langchain"), ("llama_index", "llama-index")])
def test_an_adapter_without_its_library_names_the_extra(library: str, extra: str, tmp_path: Path) -> None:
    code = f"""
try:
    import runtime.{library}
except ImportError as error:
    print(type(error).__name__, error)
"""
    said = run(sys.executable, "-c", code, cwd=tmp_path)
    assert said.startswith("MissingExtraError ") and said.endswith(f'run pip install "qwen3vl-edge[{extra}]".\n')


@pytest.mark.parametrize("name", ["export", "quant", "runtime"])
def test_console_commands_are_installed(name: str, tmp_path: Path) -> None:
    command = shutil.which(f"qwen3vl-{name}", path=SCRIPTS)
    assert command is not None
    assert run(command, "--help", cwd=tmp_path).startswith("usage: ")
    assert run(command, "--version", cwd=tmp_path) == run_module(name, "--version", cwd=tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_packages_are_whole(task: Task, folder: Path) -> None:
    assert f"{task} is whole: " in run_module("runtime", "check", task, cwd=folder)
    assert f"{task}, fp32 for cpu" in run_module("quant", "report", task, cwd=folder)


def test_text_picture_and_video_are_embedded(folder: Path) -> None:
    inputs = ("--text", "a red car", "--image", "car.png", "--video", "car.mp4")
    run_module("runtime", "embed", "embedding", *inputs, "--output", "vectors.npy", cwd=folder)
    vectors = np.load(folder / "vectors.npy")
    assert vectors.shape == (3, TINY_2B.text.hidden_size)
    assert vectors.dtype == np.float32
    similarity = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-6)
    assert np.all(similarity[np.triu_indices(3, 1)] < 0.999)
    # Decoded otherwise: one at a time, through text.
    for (flag, value), vector in zip([inputs[i : i + 2] for i in (0, 2, 4)], vectors, strict=True):
        line = json.loads(run_module("runtime", "embed", "embedding", flag, value, cwd=folder))
        np.testing.assert_allclose(line["embedding"], vector, atol=1e-6)


def test_documents_are_scored(folder: Path) -> None:
    documents = ("--text", "a blue bicycle", "--image", "car.png", "--video", "car.mp4")
    line = run_module("runtime", "rerank", "reranker", "--query", "a red car", *documents, cwd=folder)
    scores = json.loads(line)["scores"]
    assert len(set(scores)) == 3
    assert all(0 < score < 1 for score in scores)


def test_documents_are_found(folder: Path) -> None:
    documents = folder / "documents"
    documents.mkdir()
    shutil.copy(folder / "car.png", documents)
    (documents / "note.txt").write_text("a blue bicycle")
    arguments = ("--index", "index", "--add", "documents", "--text", "a blue bicycle", "--sheet", "sheet.png")
    found = run_module("runtime", "search", "embedding", *arguments, cwd=folder)
    assert [line.split()[-1] for line in found.splitlines()] == [
        f"documents{os.sep}{n}" for n in ("note.txt", "car.png")
    ]
    assert (folder / "sheet.png").is_file()
    reranked = run_module("runtime", "search", "embedding", *arguments[:6], "--reranker", "reranker", cwd=folder)
    assert reranked.count("score ") == 2


def test_a_fetched_checkpoint_gives_the_same_package(folder: Path, tmp_path: Path) -> None:
    checkpoint = folder / "embedding-checkpoint"
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    hub = FakeHub("Qwen/Qwen3-VL-Embedding-2B", {name: path.read_bytes() for name, path in files.items()})
    with hub.serve():
        arguments = ("--model", "Qwen3-VL-Embedding-2B", "--output", "fetched", "--revision", COMMIT)
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        run_module("export", *arguments, cwd=tmp_path, **environment)
    exported = folder / "embedding"
    for path in exported.iterdir():
        if path.name != "manifest.json":  # which names the source
            assert (tmp_path / "fetched" / path.name).read_bytes() == path.read_bytes()
