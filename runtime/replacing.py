"""A package that is being replaced: set aside under a hidden name until the new one stands, taken back if none does.

A folder cannot be exchanged for another in one step on every system, so there is a moment without one. What has the
hidden name is a whole package, always.
"""

from contextlib import suppress
from pathlib import Path


def set_aside(folder: Path) -> Path:
    """Where the package of `folder` stands while it is replaced."""
    return folder.absolute().with_name(f".{folder.absolute().name}.old")


def take_back(folder: Path) -> None:
    """Put the package back that an export had set aside when it was killed; nothing where `folder` exists."""
    if not folder.exists():
        with suppress(OSError, ValueError):  # there is none, another process was faster, or the place is read-only
            set_aside(folder).rename(folder)
