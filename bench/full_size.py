"""Random weights at the true 2B shape: export time and peak memory, and parity with torch at full width and depth.

    python bench/full_size.py FOLDER [--shape 2b] [--task embedding] [--no-verify]

Each step runs in a process of its own and reports wall seconds and the peak resident set as the operating system
counts it. Needs about 14 GB of disk for 2B in float32, and 20 GB of memory for the comparison.
"""

import argparse
from pathlib import Path

from process_cost import run


def step(name: str, command: list[str]) -> None:
    """Run one command, then print its wall seconds and peak resident set."""
    cost = run(command)
    print(f"| {name} | {cost.wall:.0f} s | {cost.resident / 1e9:.2f} GB |", flush=True)
    if cost.status:
        raise SystemExit(f"{name} failed with status {cost.status}")


def main() -> None:
    """Write the checkpoint, export it, compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="2b")
    parser.add_argument("--task", default="embedding")
    parser.add_argument("--no-verify", action="store_true")
    options = parser.parse_args()
    checkpoint = options.folder / f"{options.shape}-{options.task}"
    package = options.folder / f"{options.shape}-{options.task}-fp32"
    print("| step | wall | peak RSS |\n| --- | --- | --- |", flush=True)
    if not checkpoint.exists():
        arguments = [str(checkpoint), "--shape", options.shape, "--task", options.task]
        step("write checkpoint", ["tests/random_checkpoint.py", *arguments])
    step("export", ["-m", "export", "--model", str(checkpoint), "--output", str(package), "--force"])
    step("embed one text", ["-m", "runtime", "embed", str(package), "--text", "a red car", "--dimensions", "8"])
    if not options.no_verify:
        code = (
            "import sys; from pathlib import Path; from export.verify import verify_package, format_table; "
            f"table = verify_package(Path({str(checkpoint)!r}), Path({str(package)!r}), print); "
            "print(format_table(table)); sys.exit(not all(each.passed for each in table))"
        )
        step("compare with torch", ["-c", code])


if __name__ == "__main__":
    main()
