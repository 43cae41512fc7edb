"""Absolute paths as an index keeps them, each file under one name however it was given, and as people see them."""

import os
import unicodedata
from contextlib import suppress
from typing import Literal


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is that of `folder` or of something in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def spelled(path: str) -> str:
    """An absolute path with its names as the disk has them: some systems find `Pictures` under `pictures`, too."""
    names: list[str] = []
    while (parts := os.path.split(path))[1]:
        path, name = parts
        names.append(name)
    path = path[:1].upper() + path[1:]  # a drive's letter
    for name in reversed(names):
        path = os.path.join(path, _spelled_name(path, name))
    return path


def _spelled_name(parent: str, name: str) -> str:
    if _has_other_names(os.path.join(parent, name)):
        with suppress(OSError):  # a folder that may be entered, and not be read
            names = os.listdir(parent)
            alike = (each for each in names if _folded(each) == _folded(name))
            return name if name in names else next(alike, name)
    return name


def _has_other_names(path: str) -> bool:
    """Whether the file system finds it with its letters in other case and in another normal form of Unicode."""
    parent, name = os.path.split(path)
    form: Literal["NFC", "NFD"] = "NFC" if unicodedata.is_normalized("NFD", name) else "NFD"
    other = os.path.join(parent, unicodedata.normalize(form, name).swapcase())
    try:
        return other != path and os.path.samefile(path, other)
    except (OSError, ValueError):  # there is none, or a name that this process's locale has no bytes for
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def display_name(path: str, line: int | None) -> str:
    """A path for people: from the working folder where it is below it, and on one line."""
    return one_line(relative(path) + ("" if line is None else f":{line}"))


def relative(path: str) -> str:
    """An absolute path from the working folder where it is below it."""
    here = os.getcwd()
    same, below = os.path.normcase(path), os.path.normcase(here)  # the drive's letter has either case there
    return os.path.relpath(path, here) if is_below(same, below) and same != below else path


def one_line(text: str) -> str:
    """`text` with control characters and lone surrogates as escapes."""
    return "".join(
        each if each.isprintable() or each == " " else each.encode("unicode_escape").decode("ascii") for each in text
    )
