"""onnxruntime's own records of what was run are off, in the library and in all command lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import os
import {module}
import onnxruntime
onnxruntime.SessionOptions()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(module: str, home: Path, **variables: str) -> str:
    """What the variable is after the import in a fresh process, whose home is `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE.format(module=module)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["runtime", "runtime.graphs.session", "quant.compare", "quant.cli", "quant.__main__", "export.cli"]
)
def test_nothing_is_recorded(module: str, tmp_path: Path) -> None:
    assert run(module, tmp_path) == "1"
    assert list(tmp_path.rglob("*.db")) == []


def test_who_wants_it_may_have_it(tmp_path: Path) -> None:
    assert run("runtime", tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
