"""`python -m runtime check`: whether a package is what the export wrote."""

import argparse
from typing import Any

from runtime.commands.options import Lines, add_command
from runtime.manifest import Manifest


def add_check(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    add_command(commands, "check", check, "compare every file of a package with its SHA-256")


def check(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """One line about a whole package. Raises PackageError for any other."""
    manifest = Manifest.read(options.package)
    manifest.check(options.package)
    size = sum(file.size for file in manifest.files)
    yield (
        f"{options.package} is whole: {manifest.name}, {manifest.task}, {manifest.precision} for {manifest.target}, "
        f"{len(manifest.files)} files, {size / 1e6:,.1f} MB, fingerprint {manifest.fingerprint[:16]}"
    )
