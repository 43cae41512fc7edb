"""Where the pictures and their names come from: npm packages with an open licence, fetched once, never committed.

Drawing styles of the same emoji: eight to train on, one that training never sees. Names and keywords: Unicode CLDR.
"""

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NpmPackage:
    """One version of a package in the npm registry."""

    name: str
    version: str
    licence: str


STYLES = {
    "noto": NpmPackage("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "noto-v1": NpmPackage("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "twemoji": NpmPackage("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "fluent": NpmPackage("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "fluent-flat": NpmPackage("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "fluent-mono": NpmPackage("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT"),
    "emojione": NpmPackage("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    "emojione-mono": NpmPackage("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0"),
    "openmoji": NpmPackage("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0"),
}
UNSEEN = "openmoji"  # measured on, never trained on
TRAINED = tuple(style for style in STYLES if style != UNSEEN)
ANNOTATIONS = NpmPackage("cldr-annotations-full", "48.2.0", "Unicode-3.0")


def fetch(package: NpmPackage, cache: Path) -> Path:
    """The unpacked folder of a package, from the registry that npm is configured for, kept in `cache`."""
    folder = cache / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        archive = cache / subprocess.run(command, cwd=cache, check=True, capture_output=True, text=True).stdout.strip()
        partial = folder.with_name(f"{folder.name}.partial")  # what is cut short is not taken for the package
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
        archive.unlink()
    return folder / "package"


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
