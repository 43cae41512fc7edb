"""What an export costs at the true 2B and 8B shapes with random weights, a Markdown row a case against its target.

    python bench/export_cost.py FOLDER [--shape 2b] [--precision int8 int4] [--calibrate none builtin] [--json FILE]

Writes the checkpoint into FOLDER where it is not there yet; each package is removed after its row. `--layers 8` makes a
checkpoint with fewer decoder layers: 8B in float32 needs 50 GB of disk. `--json` adds the rows to those of a file.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from process_cost import ROOT, Cost, run

sys.path.insert(0, str(ROOT / "tests"))
from checkpoint_shapes import SHAPES
from random_checkpoint import write_checkpoint

PRECISIONS = {"fp32": ["--fp32"], "int8": ["--int8"], "int8-portable": ["--int8", "--portable"], "int4": ["--int4"]}
MOST_BYTES = {"2b": 3e9, "8b": 6e9}
MOST_SECONDS = {("2b", "int8", "none"): 180, ("2b", "int8", "builtin"): 720}
SHARD_BYTES = 5_000_000_000
HEAD = (
    "| shape | precision | calibration | wall | processor | peak RSS | anonymous | mapped | target |\n"
    + "| --- " * 9
    + "|"
)


def checkpoint(folder: Path, shape: str, layers: int | None) -> Path:
    """The folder of a random checkpoint, written on the first call."""
    path = folder / (f"{shape}-embedding" + (f"-{layers}-layers" if layers else ""))
    if not path.exists():
        sizes = SHAPES[shape]
        if layers:
            sizes = replace(sizes, text=replace(sizes.text, num_hidden_layers=layers))
        write_checkpoint(path.with_suffix(".part"), sizes, shard_bytes=SHARD_BYTES)
        path.with_suffix(".part").rename(path)
    return path


def row(case: tuple[str, str, str], cost: Cost) -> str:
    """One line of the table; `case` is shape, precision, calibration."""
    most = MOST_BYTES[case[0]]
    target = f"≤ {most / 1e9:.0f} GB: {'met' if cost.resident <= most else 'MISSED'}"
    if case in MOST_SECONDS:
        target += f"; ≤ {MOST_SECONDS[case]} s: {'met' if cost.wall <= MOST_SECONDS[case] else 'MISSED'}"
    memory = " | ".join(f"{size / 1e9:.2f} GB" for size in (cost.resident, cost.anonymous, cost.mapped))
    return f"| {' | '.join(case)} | {cost.wall:.0f} s | {cost.processor:.0f} s | {memory} | {target} |"


def main() -> None:
    """Print the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=MOST_BYTES, default="2b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--calibrate", nargs="+", default=["none", "builtin"], help="none, builtin or a folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = checkpoint(options.folder, options.shape, options.layers)
    package = options.folder / f"{path.name}-package"
    print(HEAD, flush=True)
    for precision in options.precision:
        for calibration in ["none"] if precision == "fp32" else options.calibrate:
            command = ["-m", "export", "--model", str(path), "--output", str(package), "--force", "--golden", "none"]
            cost = run([*command, *PRECISIONS[precision], "--calibrate", calibration])
            shutil.rmtree(package, ignore_errors=True)
            if cost.status:
                raise SystemExit(f"{precision} with calibration {calibration} failed with status {cost.status}")
            print(row((options.shape, precision, Path(calibration).name), cost), flush=True)
            if options.json:
                weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
                fact = {"shape": options.shape, "precision": precision, "calibration": calibration, "bytes": weights}
                _add(options.json, fact | asdict(cost))


def _add(file: Path, row: dict[str, object]) -> None:
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    file.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
