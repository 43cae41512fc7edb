"""An index on the disk. A process that writes holds its lock; those that search look at what is whole and need none.

index/
├── index.json       runtime/search/index_header.py: what it was made with, and the generation G of the files below
├── vectors.G.bin    a row a content, as runtime/search/vector_store.py says; only appended to, mapped when searched
├── codes.G.bin, scales.G.bin   of the int8 and the binary store
├── entries.G.log    runtime/search/index_entries.py: which contents and files there are; only appended to, read by
│                   runtime/search/index_log.py
└── lock             held while one writes

Vectors are on the disk before the step that names them: whatever moment a process ends at, what the log says is there.
Rows that no file refers to are left out of searches, and dropped by writing the next generation when they are the most,
or when the log has told of most documents again and again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock

import numpy as np

from runtime.errors import SearchIndexError
from runtime.search.index_entries import Entries, Step
from runtime.search.index_files import LOCK, LOG, IndexFiles, explained, is_own, taken
from runtime.search.index_header import Header
from runtime.search.index_log import IndexLog
from runtime.search.vector_store import CANDIDATES, VECTORS, Parts

TRIES = 3
MOST_TOLD = 8  # times that a log tells of a document; a .jsonl file is told of as a whole whenever a line is new
FINDER = ".DS_Store"  # what macOS' Finder leaves in each folder that it shows


class SearchIndex:
    """An index, or the place for one; between calls its vectors are mapped and no file is open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._log = IndexLog()
        self._header: Header | None = None
        self._identity: tuple[Header, tuple[int, int]] | None = None  # of what was read
        self._seen: tuple[int, int] | None = None  # the log as it was then
        self._stored: Parts | None = None
        self._one_thread = RLock()  # at a time looks at the state above, or changes it
        self.refresh()

    @property
    def entries(self) -> Entries:
        """What the index holds, as of the last look."""
        return self._log.entries

    @property
    def holders(self) -> dict[int, list[tuple[str, int | None]]]:
        """As `Entries.holders`."""
        return self.entries.holders

    @property
    def header(self) -> Header:
        """SearchIndexError where there is no index yet."""
        if self._header is None:
            raise SearchIndexError(f"{self.folder} holds no index; make one with --add FOLDER, or check the path.")
        return self._header

    @property
    def exists(self) -> bool:
        """Whether there is one to search in."""
        return self._header is not None

    def create(self, header: Header) -> None:
        """Make an empty index, or find that another process has. Raises SearchIndexError."""
        require_free(self.folder)
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(), explained(self.folder):
            if Header.read(self.folder) is None:
                IndexFiles(self.folder, header).create()
                header.write(self.folder)
        self.refresh()

    def refresh(self) -> None:
        """See what this or another process has written. Raises SearchIndexError."""
        for left in reversed(range(TRIES)):
            try:
                with self._one_thread:
                    self._header = Header.read(self.folder)
                    if self._header is not None:
                        self._load(self._header)
                return
            except FileNotFoundError as error:  # the next generation may have come between two of the reads
                if not left:
                    raise SearchIndexError(
                        f"{error.filename} is missing from the index; delete the index and make it anew with --add."
                    ) from None
            except OSError as error:
                raise SearchIndexError(
                    f"{self.folder} cannot be read ({error.strerror or error}); check its permissions."
                ) from error

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """As it is now for this thread: others of this process that look or write wait."""
        with self._one_thread:
            self.refresh()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone with the index: `append` within, and `settle` at the end. SearchIndexError where another process is."""
        with self._locked():
            with self.unchanged(), explained(self.folder):
                self._stored = None  # Windows does not delete a file that is mapped
                self._files().remove_others()
            yield
            self.refresh()

    def append(self, step: Step, vectors: np.ndarray) -> None:
        """Take one step, with unit vectors float32 [N, dimensions] of its N contents. Raises SearchIndexError."""
        files = self._files()
        with explained(self.folder), self._one_thread:
            if step.contents:
                files.append_rows(len(self.entries.contents), self.header.vectors.encode(vectors))
            self._log.take(step, files.append_step(self._log.valid, step))
            self._seen = None

    def settle(self) -> None:
        """At the end of writing: drop unused rows and what the log told before, where they are the most.

        Raises SearchIndexError.
        """
        is_told_again = self._log.told > MOST_TOLD * self.entries.documents
        if 2 * len(self.holders) >= len(self.entries.contents) and not is_told_again:
            return
        rows = np.array(sorted(self.holders), np.int64)
        header = replace(self.header, generation=self.header.generation + 1)
        with explained(self.folder):
            stored = self._files().mapped(len(self.entries.contents))
            files = IndexFiles(self.folder, header)
            files.write_rows(stored, self.entries, rows)
            header.write(self.folder)
            del stored
            files.remove_others()

    def nearest(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        """(row, cosine) of the `count` contents most similar to a unit vector float32 [dimensions], best first."""
        with self.unchanged():
            store = self.header.vectors
            if not self.holders or self._stored is None:
                return []
            wanted = count * CANDIDATES[store.name]
            rows = np.array(self._living(self._stored[VECTORS], query, wanted), np.int64)
            cosines = store.cosines(taken(self._stored, rows), query)
        best = np.lexsort((rows, -cosines))[:count]
        return [(int(rows[each]), float(cosines[each])) for each in best]

    def vectors(self) -> np.ndarray:
        """float32 [N, dimensions] of all rows, in the order of `entries.contents`."""
        with self.unchanged():
            assert self._stored is not None
            return self.header.vectors.decode(self._stored)

    def _load(self, header: Header) -> None:
        files = IndexFiles(self.folder, header)
        identity, seen = (header, files.identity()), files.log_state()
        if identity == self._identity and seen == self._seen and self._stored is not None:
            return
        log = self._log
        if identity != self._identity or not log.follow(files.paths[LOG]):
            log = IndexLog()
            log.follow(files.paths[LOG])
        files.require_rows(len(log.entries.contents))
        self._stored = files.mapped(len(log.entries.contents))
        self._log, self._identity, self._seen = log, identity, seen

    def _living(self, stored: np.ndarray, query: np.ndarray, wanted: int) -> list[int]:
        """The rows of the `wanted` most similar vectors that have a file; those that have none are never the most."""
        dead = len(stored) - len(self.holders)
        asked = wanted if dead <= 0 else 2 * wanted
        while True:
            found = self.header.vectors.nearest(stored, query, asked).tolist()
            living = [row for row in found if row in self.holders]
            if len(living) >= wanted or len(found) == len(stored):
                return living[:wanted]
            asked *= 4

    def _files(self) -> IndexFiles:
        return IndexFiles(self.folder, self.header)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout  # of the extra `search`

        lock = FileLock(self.folder / LOCK)
        with explained(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:  # an OSError too
                raise SearchIndexError(
                    f"another process is writing to {self.folder}; wait for it, or give --index another folder."
                ) from None
        try:
            yield
        finally:
            lock.release()


def require_free(folder: Path) -> None:
    """SearchIndexError where `folder` holds something else than an index."""
    if folder.exists() and not folder.is_dir():
        raise SearchIndexError(f"{folder} is a file; give --index a folder.")
    try:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise SearchIndexError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    if foreign := sorted(name for name in names if not is_own(name) and name != FINDER):
        raise SearchIndexError(
            f"{folder} holds other things ({foreign[0]!r}) and no index; give --index a new or an empty folder."
        )
