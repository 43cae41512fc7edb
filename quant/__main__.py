"""`python -m quant report PACKAGE`: how each matrix of a package is stored, and what that costs on disk."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import Qwen3VLError
from runtime.manifest import Manifest
from runtime.version import VERSION


def parser() -> argparse.ArgumentParser:
    """The commands of `python -m quant`."""
    parser = argparse.ArgumentParser("python -m quant", description="What a package's precision is made of.")
    parser.add_argument("--version", action="version", version=f"qwen3vl-edge {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="how each matrix is stored")
    report.add_argument("package", type=Path)
    report.add_argument("--matrices", action="store_true", help="list every matrix")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 for an error."""
    options = parser().parse_args(arguments)
    try:
        manifest = Manifest.read(options.package)
    except Qwen3VLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{manifest.name}: {manifest.task}, {manifest.precision} for {manifest.target}")
    for scheme, count in sorted(Counter(manifest.matrices.values()).items()):
        print(f"{count:5} matrices {scheme}")
    for file in manifest.files:
        print(f"{file.size / 1e6:12,.1f} MB {file.name}")
    if options.matrices:
        for name, scheme in manifest.matrices.items():
            print(f"{scheme:12} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
