"""The README's code for LangChain and LlamaIndex runs as it stands, and without torch."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

REPOSITORY = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^## With LangChain and LlamaIndex$(.*?)^## ", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What the code found, and what had to be loaded for it.
REPORT = """
import json, sys
print(json.dumps({"found": len(found), "best": [type(each).__name__ for each in best], "loaded": list(sys.modules)}))
"""


def examples() -> list[str]:
    section = SECTION.search((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert section
    return CODE.findall(section[1])


@pytest.fixture
def folder(package: Callable[[Shape, Task], Path], tmp_path: Path) -> Path:
    """Has what the examples name."""
    (tmp_path / "packages").mkdir()
    names: dict[Task, str] = {"embedding": "Qwen3-VL-Embedding-2B-int8", "reranker": "Qwen3-VL-Reranker-2B-int8"}
    for task, name in names.items():
        (tmp_path / "packages" / name).symlink_to(package(TINY_2B, task))
    Image.linear_gradient("L").resize((64, 96)).convert("RGB").save(tmp_path / "street.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("library", "found", "best"),
    [("langchain", 3, ["Document", "Document"]), ("llama_index", 2, ["NodeWithScore"])],
)
def test_the_example_runs(library: str, found: int, best: list[str], folder: Path) -> None:
    [code] = [example for example in examples() if f"from runtime.{library} import" in example]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + REPORT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["found"], report["best"]) == (found, best)
    assert "runtime" in report["loaded"]
    assert not {"torch", "torchvision", "transformers"} & set(report["loaded"])
