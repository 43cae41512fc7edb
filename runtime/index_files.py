"""The files of one generation of an index: rows of vectors, their scales, and the log of steps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import SearchIndexError
from runtime.index_entries import Entries, Step, read_log
from runtime.index_header import HEADER, Header, sync_folder
from runtime.vector_store import Encoded

LOCK = "lock"
VECTORS, SCALES, LOG = "vectors", "scales", "entries"
ENDINGS = {VECTORS: ".bin", SCALES: ".bin", LOG: ".log"}
SCALE = np.dtype("<f4")
COPIED_ROWS = 4096  # at a time: 32 MB of float32 [2048]


class IndexFiles:
    """Paths, and what is done with them; nothing stays open. Methods raise OSError."""

    def __init__(self, folder: Path, header: Header):
        self._folder, self._store = folder, header.vectors
        parts = ENDINGS if header.store == "int8" else {VECTORS: ".bin", LOG: ".log"}
        self.paths = {part: folder / f"{part}.{header.generation}{parts[part]}" for part in parts}

    def create(self) -> None:
        """All of them, empty."""
        for path in self.paths.values():
            path.write_bytes(b"")
        sync_folder(self._folder)

    def read_log(self) -> tuple[Entries, int]:
        """As `index_entries.read_log`; where rows are missing that it names, SearchIndexError."""
        entries, valid = read_log(self.paths[LOG])
        for part, size in self._row_bytes().items():
            path, needed = self.paths[part], size * len(entries.contents)
            found = path.stat().st_size
            if found < needed:
                raise SearchIndexError(
                    f"{path} has {found} bytes where the index needs {needed}: it was cut short; "
                    "delete the index and make it anew with --add."
                )
        return entries, valid

    def log_bytes(self) -> int:
        """Size of the log."""
        return self.paths[LOG].stat().st_size

    def mapped(self, count: int) -> Encoded:
        """The first `count` rows, mapped."""
        scales = self._map(SCALES, SCALE, (count,)) if SCALES in self.paths else None
        return Encoded(self._map(VECTORS, self._store.dtype, (count, self._store.width)), scales)

    def append_rows(self, count: int, encoded: Encoded) -> None:
        """Behind `count` rows; they are on the disk afterwards."""
        for part, size in self._row_bytes().items():
            rows = encoded.rows if part == VECTORS else encoded.scales
            assert rows is not None
            _extend(self.paths[part], count * size, np.ascontiguousarray(rows).tobytes())

    def append_step(self, valid: int, step: Step) -> int:
        """Behind the log's `valid` bytes, on the disk afterwards → how many are valid then."""
        line = step.line()
        _extend(self.paths[LOG], valid, line)
        return valid + len(line)

    def write_rows(self, source: Encoded, entries: Entries, rows: np.ndarray) -> None:
        """Of a new generation: only `rows` of the one before, whose state is `entries`."""
        self.create()
        for start in range(0, len(rows), COPIED_ROWS):
            self.append_rows(start, taken(source, rows[start : start + COPIED_ROWS]))
        valid = 0
        for step in entries.renumbered(rows.tolist()):
            valid = self.append_step(valid, step)

    def remove_others(self) -> None:
        """Delete what other generations have left; Windows keeps what is mapped, until the next time."""
        kept = {HEADER, LOCK, *(path.name for path in self.paths.values())}
        for path in self._folder.iterdir():
            if path.name not in kept and is_own(path.name):
                try:
                    path.unlink()
                except PermissionError:
                    continue

    def _row_bytes(self) -> dict[str, int]:
        sizes = {VECTORS: self._store.width * self._store.dtype.itemsize, SCALES: SCALE.itemsize}
        return {part: sizes[part] for part in self.paths if part in sizes}

    def _map(self, part: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        if not shape[0]:  # nothing cannot be mapped
            return np.zeros(shape, dtype)
        return np.memmap(self.paths[part], dtype, "r", shape=shape)


def taken(stored: Encoded, rows: np.ndarray) -> Encoded:
    """A copy of some rows."""
    return Encoded(stored.rows[rows], None if stored.scales is None else stored.scales[rows])


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
        if file.seek(0, os.SEEK_END) > position:  # Windows does not shorten a file that is mapped
            file.truncate(position)
        file.seek(position)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
