"""The README's commands and code run as they stand, in a folder that holds the files they name.

In place of the published checkpoints there are folders of their names with the small trained embedder and a random
reranker; the network is off.
`pip` and `scripts/` are left to those who install, and to the continuous build.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from random_checkpoint import TINY_2B, write_checkpoint
from video_files import write_video

from bench.openmoji import picture, some
from export.source import find_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
NOT_RUN = ("pip ", "scripts/")
REFERENCE = "from src.models"  # how the reference is used, for comparison
EMBEDDER, RERANKER = "Qwen3-VL-Embedding-2B", "Qwen3-VL-Reranker-2B"
WITHOUT_TORCH = """
import sys
assert "runtime" in sys.modules and not {"torch", "torchvision", "transformers"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the section it is in."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for match in BLOCK.finditer(README):
        sections = [heading[1] for heading in HEADING.finditer(README, 0, match.start())]
        found.append(Block(sections[-1], match[1], match[2]))
    return found


def test_the_map_names_every_module() -> None:
    named: dict[Path, set[str]] = {}
    top = folder = REPOSITORY
    for line in README.partition("## Map of the code")[2].splitlines():
        if match := re.match(r"( {10})?(\w+)/ ", line):
            folder = (top if match[1] else REPOSITORY) / match[2]
            top = top if match[1] else folder
        named.setdefault(folder, set()).update(re.findall(r"\w+", line))
    paths = [path for package in ("export", "quant", "runtime") for path in (REPOSITORY / package).rglob("*.py")]
    modules = [path for path in paths if not path.stem.startswith("__")]
    assert [path for path in modules if path.stem not in named.get(path.parent, ())] == []


def test_there_are_no_more_pictures_than_emoji() -> None:
    everything = some(10_000)
    assert len({each.slug for each in everything}) == len(everything)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has what the README names."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(find_checkpoint("tiny"), folder / EMBEDDER)
    write_checkpoint(folder / RERANKER, TINY_2B, task="reranker")
    for name in ("pictures", "photos", "notes"):
        (folder / name).mkdir()
    for index, each in enumerate(some(12)):
        picture(each, 96).save(folder / ("pictures" if index % 2 else "photos") / f"{each.slug}.png")
    (folder / "notes" / "rain.txt").write_text("A cyclist in the rain.", encoding="utf-8")
    for name in ("car.jpg", "street.jpg", "front.png", "back.png"):
        Image.linear_gradient("L").resize((64, 96)).convert("RGB").save(folder / name)
    write_video(folder / "clip.mp4", (64, 64), 50)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Callable[..., None]:
    """Runs a command there; it must succeed, or have the exit code that is expected."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")

    def run(*command: str) -> None:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | nowhere | {"PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"

    return run


def run_commands(run: Callable[..., None], text: str) -> None:
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and not line.startswith(NOT_RUN):
            assert words[0] == "python", line
            run(sys.executable, *words[1:])


@pytest.fixture(scope="module")
def after_first_run(run: Callable[..., None]) -> None:
    """What the later sections go on from."""
    for block in blocks():
        if block.section == "First run":
            run_commands(run, block.text)


@pytest.mark.usefixtures("after_first_run")
def test_the_first_run(folder: Path) -> None:
    with Image.open(folder / "found.png") as sheet:
        assert sheet.width > 100


@pytest.mark.full
@pytest.mark.usefixtures("after_first_run")
def test_every_command_and_all_code(run: Callable[..., None]) -> None:
    """In order, in one folder, and the code in one interpreter, as someone who reads on would."""
    for precision in ("--fp32", "--int8"):
        for name in (EMBEDDER, RERANKER):
            run(sys.executable, "-m", "export", "--model", name, precision, "--golden", "none", "--force")
    code = []
    for block in blocks():
        if block.language == "bash" and block.section != "First run":
            run_commands(run, block.text)
        elif block.language == "python" and REFERENCE not in block.text:
            code.append(block.text)
    assert len(code) > 6
    run(sys.executable, "-W", "error", "-c", "\n".join([*code, WITHOUT_TORCH]))


@pytest.mark.parametrize("library", ["langchain", "llama_index"])
def test_no_adapter_is_left_out(library: str) -> None:
    assert any(f"from runtime.{library} import" in block.text for block in blocks())
