"""A package that is being replaced: set aside under a hidden name until the new one stands, taken back if none does.

A folder cannot be exchanged for another in one step on every system, so there is a moment without one. What has the
hidden name is a whole package, always. How names change and get to the disk holds for indexes and results too.
"""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Windows' words for a file, or one in a folder, that a program has open: access denied, sharing violation.
IN_USE = (5, 32)
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)  # seconds


def patiently(rename: Callable[[], object]) -> None:
    """Rename something just written: on Windows virus scanners open it for a while, so it is tried again meanwhile."""
    for pause in PAUSES:
        try:
            rename()
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in IN_USE:
                raise
        time.sleep(pause)
    rename()


def set_aside(folder: Path) -> Path:
    """Where the package of `folder` stands while it is replaced."""
    return folder.absolute().with_name(f".{folder.absolute().name}.old")


def take_back(folder: Path) -> None:
    """Put the package back that an export had set aside when it was killed; nothing where `folder` exists."""
    if not folder.exists():
        with suppress(OSError, ValueError):  # there is none, another process was faster, or the place is read-only
            set_aside(folder).rename(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system says that cannot, such as VirtualBox's shared folders
            raise
    finally:
        os.close(descriptor)
