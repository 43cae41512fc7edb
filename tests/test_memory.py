"""Weights stream: exporting takes little memory and no torch, however large the checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_shapes import Shape, TextShape, VisionShape
from random_checkpoint import write_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
# A token table of 311 MB and MLP matrices of 42 MB, stored as float32 in 84 MB: 2B's table and more than its matrices.
LARGE = Shape(
    text=TextShape(
        hidden_size=1024,
        intermediate_size=20480,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        mrope_section=(24, 20, 20),
    ),
    vision=VisionShape(hidden_size=128, intermediate_size=256, depth=2, num_heads=2, deepstack_visual_indexes=(0,)),
    tied=True,
)
# Measured on Linux, Python 3.11: 114 MB after the imports, 200 MB at the peak, most of the difference tokenizer.json as
# Python objects. The bound leaves room for another allocator, not for a tensor: the token table would be 622 MB.
MOST_BYTES = 300e6

EXPORT = """
import json, sys
from pathlib import Path
from export.options import ExportOptions
from export.package import export_package

def peak():
    if sys.platform == "linux":
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
export_package(Path(sys.argv[1]), Path(sys.argv[2]), ExportOptions("large", golden="none"))
print(json.dumps({"before": before, "peak": peak(), "modules": sorted(sys.modules)}))
"""


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of 578 MB; removed at once, as pytest would keep three of them."""
    write_checkpoint(tmp_path / "checkpoint", LARGE)
    yield tmp_path / "checkpoint"
    shutil.rmtree(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither VmHWM nor ru_maxrss")
def test_the_peak_of_an_export_is_a_block_not_a_checkpoint(large: Path) -> None:
    stored = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    # A process of its own: the peak is that of a whole life.
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, large, large.with_name("package")],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["before"] < found["peak"] < MOST_BYTES < 0.75 * stored
    assert not {"torch", "transformers"} & set(found["modules"])
