"""The files of one generation of an index: the rows of its vectors, and the log of steps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from runtime.errors import SearchIndexError
from runtime.replacing import sync_folder
from runtime.search.index_entries import Entries, Step
from runtime.search.index_header import HEADER, Header
from runtime.search.vector_store import CODES, SCALES, VECTORS, Parts

LOCK = "lock"
LOG = "entries"
ENDINGS = {VECTORS: ".bin", CODES: ".bin", SCALES: ".bin", LOG: ".log"}
COPIED_ROWS = 4096  # at a time: 32 MB of float32 [2048]


class IndexFiles:
    """Paths, and what is done with them; nothing stays open. Methods raise OSError."""

    def __init__(self, folder: Path, header: Header):
        self._folder, self._parts = folder, header.vectors.parts
        names = (*self._parts, LOG)
        self.paths = {name: folder / f"{name}.{header.generation}{ENDINGS[name]}" for name in names}

    def create(self) -> None:
        """All of them, empty."""
        for path in self.paths.values():
            path.write_bytes(b"")
        sync_folder(self._folder)

    def require_rows(self, count: int) -> None:
        """SearchIndexError where rows are missing that the log names."""
        for name, part in self._parts.items():
            path, needed = self.paths[name], part.row_bytes * count
            found = path.stat().st_size
            if found < needed:
                raise SearchIndexError(
                    f"{path} has {found} bytes where the index needs {needed}: it was cut short; "
                    "delete the index and make it anew with --add."
                )

    def identity(self) -> tuple[int, int]:
        """What is another one once the index is made anew, be it in the same place: the header is written only then."""
        return self.paths[LOG].stat().st_ino, (self._folder / HEADER).stat().st_mtime_ns

    def log_state(self) -> tuple[int, int]:
        """What is another one once the log has grown."""
        found = self.paths[LOG].stat()
        return found.st_size, found.st_mtime_ns

    def mapped(self, count: int) -> Parts:
        """The first `count` rows, mapped."""
        shapes = {name: (count, part.width) for name, part in self._parts.items()}
        if not count:  # nothing cannot be mapped
            return {name: np.zeros(shape, self._parts[name].dtype) for name, shape in shapes.items()}
        return {
            name: np.memmap(self.paths[name], self._parts[name].dtype, "r", shape=shape)
            for name, shape in shapes.items()
        }

    def append_rows(self, count: int, rows: Parts) -> None:
        """Behind `count` rows; they are on the disk afterwards."""
        for name, part in self._parts.items():
            _extend(self.paths[name], count * part.row_bytes, np.ascontiguousarray(rows[name]).tobytes())

    def append_step(self, valid: int, step: Step) -> bytes:
        """Behind the log's `valid` bytes, on the disk afterwards → the line."""
        line = step.line()
        _extend(self.paths[LOG], valid, line)
        return line

    def write_rows(self, source: Parts, entries: Entries, rows: np.ndarray) -> None:
        """Of a new generation: only `rows` of the one before, whose state is `entries`."""
        self.create()
        for start in range(0, len(rows), COPIED_ROWS):
            self.append_rows(start, taken(source, rows[start : start + COPIED_ROWS]))
        valid = 0
        for step in entries.renumbered(rows.tolist()):
            valid += len(self.append_step(valid, step))

    def remove_others(self) -> None:
        """Delete what other generations have left; Windows keeps what is mapped, until the next time."""
        kept = {HEADER, LOCK, *(path.name for path in self.paths.values())}
        for path in self._folder.iterdir():
            if path.name not in kept and is_own(path.name):
                try:
                    path.unlink()
                except PermissionError:
                    continue


def taken(stored: Parts, rows: np.ndarray) -> Parts:
    """A copy of some rows."""
    return {name: part[rows] for name, part in stored.items()}


def is_own(name: str) -> bool:
    """Whether an index has files of this name."""
    part, _, rest = name.partition(".")
    generation, ending = os.path.splitext(rest)
    return name in (HEADER, f"{HEADER}.partial", LOCK) or (generation.isdigit() and ENDINGS.get(part) == ending)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """SearchIndexError for an OSError while an index is written."""
    try:
        yield
    except OSError as error:
        raise SearchIndexError(
            f"{folder} cannot be written ({error.strerror or error}); what is in the index stays as it was, so make "
            "room or the folder writable and run the same again, or give --index another folder."
        ) from error


def _extend(path: Path, position: int, content: bytes) -> None:
    """Write behind `position`; what stands there was left by a process that ended too early."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > position:
            try:
                file.truncate(position)
            except OSError:  # Windows does not shorten a file that any process has mapped: rows may have a rest behind
                if path.suffix == ENDINGS[LOG]:
                    raise
        file.seek(position)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
