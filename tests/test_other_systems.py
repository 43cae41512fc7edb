"""What Windows and macOS do otherwise, simulated: files that are in use, names, encodings."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_on_windows_has_the_bytes_that_were_committed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "core.autocrlf=true", *arguments], cwd=tmp_path, check=True, capture_output=True)

    names = (".gitattributes", "scripts/environment.sh", "export/checkpoints/tiny/config.json")
    git("init")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    git("add", ".")
    for name in names:
        (tmp_path / name).unlink()
    git("checkout-index", "--all")
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name
