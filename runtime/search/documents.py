"""What an index is made of: the files of a folder, and the documents in them.

.png .jpg .jpeg .webp .gif .bmp   a picture        .txt .md   a text, UTF-8
.jsonl                            a document a line: a string, or a dict as `process` takes it without an instruction;
                                  paths in it start at the file's folder
Hidden files and folders are left out, and folders that are links.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.json_lines import as_item, json_value, numbered_lines
from runtime.manifest import sha256_of
from runtime.media.download import shortened
from runtime.media.source import SCHEME
from runtime.prompts.inputs import CONTENT_KEYS, ITEM_KEYS
from runtime.search.paths import display_name

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TEXTS = (".txt", ".md")
LINES = ".jsonl"
MEDIA_KEYS = ("image", "video")
JUNCTION = 0xA0000003  # Windows' IO_REPARSE_TAG_MOUNT_POINT, which mounted disks have too
MOST_TEXT = 4 * 2**20  # bytes: few books have as many, and the tokenizer takes 200 times a text's size


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that holds documents or is part of one, by its absolute path."""

    path: str
    size: int
    mtime_ns: int

    @property
    def changed(self) -> bool:
        """Whether it is another one now, or gone."""
        try:
            return self != found_file(self.path, os.stat(self.path))
        except (OSError, ValueError):  # a name that this process's locale has no bytes for
            return True


@dataclass(frozen=True)
class Document:
    """A document: its place, what `process` takes, and SHA-256 of that with the content of local files in it.

    `named`: the local files that a line names. `problem` says why there is no hash.
    """

    path: str
    line: int | None
    item: dict[str, Any]
    sha256: str
    named: tuple[FoundFile, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """As `display_name`."""
        return display_name(self.path, self.line)


def find_files(folder: str, unreadable: list[tuple[str, str]]) -> Iterator[FoundFile]:
    """The files with documents below `folder`, in the order of their names; (path, reason) of what cannot be seen."""

    def note(error: OSError) -> None:
        unreadable.append((str(error.filename), error.strerror or str(error)))

    places = [folder]
    while places:  # a level at a time: until Python 3.12 os.walk calls itself for each
        parent, folders, names = next(os.walk(places.pop(), onerror=note), ("", [], []))
        inner = (os.path.join(parent, name) for name in sorted(folders, reverse=True) if not name.startswith("."))
        places += (path for path in inner if not os.path.islink(path) and not _is_junction(path))
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in (*PICTURES, *TEXTS, LINES):
                continue
            path = os.path.join(parent, name)
            try:
                found = os.stat(path)
            except OSError as error:
                note(error)
                continue
            if stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                yield found_file(path, found)


def _is_junction(path: str) -> bool:
    """Whether a folder is Windows' link to another: those in each user's own lead nowhere."""
    try:
        tag = getattr(os.lstat(path), "st_reparse_tag", 0)
    except OSError:  # gone, or `os.walk` will say what is wrong with it
        return False
    return tag == JUNCTION and not os.path.ismount(path)


def found_file(path: str, found: os.stat_result) -> FoundFile:
    """A file as `os.stat` found it."""
    return FoundFile(path, found.st_size, found.st_mtime_ns)


def read_documents(path: str, lines: Collection[int | None] | None = None) -> list[Document]:
    """The documents of a file, of several only those on `lines`.

    Raises OSError, and InputError for what is no text or holds none.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in PICTURES:
        return [_document(path, None, {"image": Path(path)})]
    try:
        if suffix in TEXTS:
            return [_document(path, None, {"text": _text(path)})]
        numbered = numbered_lines(path)
        return [_of_line(path, number, line) for number, line in numbered if lines is None or number in lines]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it.") from error


def is_blank(item: Any) -> bool:
    """Whether a dict as `process` takes it has neither words nor a picture nor a video."""
    return (
        isinstance(item, dict) and not set(item) - set(ITEM_KEYS) and _is_nothing([item.get(k) for k in CONTENT_KEYS])
    )


def located(value: Any, folder: str) -> Any:
    """A path, or each of a list of them, from `folder`; an address stays as it is."""
    if isinstance(value, list):
        return [located(each, folder) for each in value]
    return Path(folder, value) if _is_path(value) else value


def _text(path: str) -> str:
    size = os.stat(path).st_size
    if size > MOST_TEXT:
        raise InputError(f"{path} has {size:,} bytes, more than {MOST_TEXT:,} of a text; cut it into several files.")
    text = Path(path).read_text(encoding="utf-8-sig")
    if not text.strip():
        raise InputError(f"{path} holds no text; write some or remove it.")
    return text


def _of_line(path: str, line: int, content: str) -> Document:
    where = f"{path}, line {line}"
    try:
        item = as_item(json_value(content, where), where)
    except InputError as error:  # a line that is being written may be half there
        return _unusable(path, line, str(error))
    if "instruction" in item:
        problem = f"{where} has an instruction of its own; documents share the package's, so remove it."
        return _unusable(path, line, problem)
    if is_blank(item):
        return _unusable(path, line, f"{where} has neither words nor a picture; write some or remove it.")
    try:
        return _document(path, line, item)
    except OSError as error:
        return _unusable(path, line, f"{where}: {shortened(error.filename)} cannot be read ({error.strerror}).")
    except ValueError as error:  # of a name that no file can have
        return _unusable(path, line, f"{where} names a file that cannot be ({error}); correct it.")


def _unusable(path: str, line: int, problem: str) -> Document:
    return Document(path, line, {}, "", problem=problem)


def _document(path: str, line: int | None, item: dict[str, Any]) -> Document:
    """The paths of `item` made absolute, and its hash. Raises OSError, ValueError."""
    folder, placed, stamped = os.path.dirname(path), dict(item), dict(item)
    media = [item.get(key) for key in MEDIA_KEYS]
    named = () if line is None else tuple(_named(media, folder))  # looked at first: what changes later is seen
    for key in MEDIA_KEYS:
        if key in item:
            placed[key], stamped[key] = located(item[key], folder), _stamped(item[key], folder)
    content = json.dumps(stamped, sort_keys=True)
    return Document(path, line, placed, hashlib.sha256(content.encode("ascii")).hexdigest(), named)


def _named(value: Any, folder: str) -> Iterator[FoundFile]:
    """The file behind a path, or those of a list. Raises OSError, and ValueError for what is no file."""
    if isinstance(value, list):
        for each in value:
            yield from _named(each, folder)
    elif _is_path(value):
        path = os.path.join(folder, value)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is a folder, a pipe or a device")
        yield found_file(path, found)


def _stamped(value: Any, folder: str) -> Any:
    """The same with the content of each file in its place."""
    if isinstance(value, list):
        return [_stamped(each, folder) for each in value]
    return {"sha256": sha256_of(Path(folder, value))} if _is_path(value) else value


def _is_nothing(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_nothing, value))
    return value is None or (isinstance(value, str) and not value.strip())


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and not SCHEME.match(value))
