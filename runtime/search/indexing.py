"""A folder into an index: only contents that are new to it are embedded, a batch at a time, each kept at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError, SearchIndexError
from runtime.graphs.package import Skipped
from runtime.search.documents import Document, FoundFile, find_files, read_documents
from runtime.search.index_entries import IndexedFile, Part, Step
from runtime.search.index_folder import SearchIndex
from runtime.search.paths import is_below, one_line

BATCH = 16  # contents: what a process that is killed has embedded for nothing, at most
MOST_WAITING = 256  # files whose contents are all known, before that is written down


@dataclass
class Changes:
    """What was done to an index, in documents; `skipped` has a sentence for each that was left out."""

    embedded: int = 0
    unchanged: int = 0
    forgotten: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reading:
    """A file on its way into the index; `whole` unless a document of it was left out when it was read.

    `missing`: those of its contents that are still to be embedded.
    """

    file: FoundFile
    documents: list[Document]
    whole: bool
    missing: set[str]


class Indexer:
    """Brings an index, alone with it meanwhile, to what a folder holds."""

    def __init__(self, index: SearchIndex, embedder: Qwen3VLEmbedder, report: Callable[[int], object]):
        """`report` is told again and again how many files more have been looked at."""
        self._index, self._embedder, self._report = index, embedder, report
        self._changes = Changes()
        self._waiting: list[_Reading] = []
        self._new: dict[str, Document] = {}  # contents of waiting files that are still to be embedded
        self._failed: dict[str, str] = {}  # contents that cannot be, and why

    def add(self, folder: str) -> Changes:
        """Embed what is new below the absolute path `folder`, and forget what is gone. Raises SearchIndexError."""
        unreadable: list[tuple[str, str]] = []
        found = list(find_files(folder, unreadable))
        known = [path for path in self._index.entries.files if is_below(path, folder)]
        if known and not found and not unreadable:
            raise SearchIndexError(
                f"{folder} holds no pictures or texts now, and the index has {len(known)} files of it; mount what is "
                f"missing, or pass --forget {folder} if they are gone."
            )
        for path, reason in unreadable:
            self._skip(f"{path} cannot be read ({reason}); what the index has of it stays.")
        for file in found:
            self._look_at(file)
            self._report(1)
        self._flush()
        present = {file.path for file in found}
        places = [path for path, _ in unreadable]
        self.forget(
            [path for path in known if path not in present and not any(is_below(path, place) for place in places)]
        )
        files = self._index.entries.files
        total = sum(len(files[path].parts) for path in files if is_below(path, folder))
        self._changes.unchanged = total - self._changes.embedded
        return self._changes

    def forget(self, paths: Sequence[str]) -> Changes:
        """Leave files out from now on, then make room where that pays."""
        known = [path for path in paths if path in self._index.entries.files]
        self._changes.forgotten += sum(len(self._index.entries.files[path].parts) for path in known)
        if known:
            self._index.append(Step(gone=tuple(known)), self._no_vectors())
        self._index.settle()
        return self._changes

    def _look_at(self, file: FoundFile) -> None:
        before = self._index.entries.files.get(file.path)
        if before and before.stands(file):
            return
        try:
            documents = read_documents(file.path)
        except OSError as error:
            kept = "; what the index has of it stays" if before else ""
            self._skip(f"{file.path} cannot be read ({error.strerror or error}){kept}.")
            return
        except InputError as error:
            self._skip(str(error))
            documents = []
        for document in documents:
            if document.problem:
                self._skip(document.problem)
            elif document.sha256 not in self._index.entries.rows and document.sha256 not in self._failed:
                self._new.setdefault(document.sha256, document)
        usable = [document for document in documents if not document.problem]
        missing = {document.sha256 for document in usable if document.sha256 in self._new}
        self._waiting.append(_Reading(file, usable, bool(documents) and len(usable) == len(documents), missing))
        while len(self._new) >= BATCH:
            self._embed()
        if len(self._waiting) >= MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Have all that waits in the index."""
        while self._new or self._waiting:
            self._embed()

    def _embed(self) -> None:
        """The first batch of new contents, and the files that are complete with them, in one step."""
        batch = [self._new.pop(sha256) for sha256 in list(islice(self._new, BATCH))]
        skipped: list[Skipped] = []
        vectors = self._embedder.process(
            [document.item for document in batch],
            dimensions=self._index.header.dimensions,
            on_error="skip",
            skipped=skipped,
        )
        for each in skipped:
            self._failed[batch[each.index].sha256] = str(each.error).removeprefix(f"inputs[{each.index}]")
        states = {reading.file.path: reading.file for reading in self._waiting}
        for document in batch:
            if states[document.path].changed or any(named.changed for named in document.named):
                self._failed.setdefault(document.sha256, " was written to while it was read; run the same again.")
        for reading in self._waiting:
            reading.missing.difference_update(document.sha256 for document in batch)
        good = [n for n, document in enumerate(batch) if document.sha256 not in self._failed]
        contents = tuple(batch[n].sha256 for n in good)
        self._changes.embedded += len(contents)
        rows = {sha256: len(self._index.entries.contents) + n for n, sha256 in enumerate(contents)}
        step = self._step(contents, rows)
        if step != Step():
            self._index.append(step, vectors[good])

    def _step(self, contents: tuple[str, ...], rows: dict[str, int]) -> Step:
        """The contents, and the files for which nothing is left to be embedded."""
        waiting, self._waiting = self._waiting, []
        files, gone = {}, []
        for reading in waiting:
            if reading.missing:
                self._waiting.append(reading)
                continue
            parts = []
            for document in reading.documents:
                if document.sha256 in self._failed:
                    self._skip(_sentence(document, self._failed[document.sha256]))
                    continue
                row = rows.get(document.sha256, self._index.entries.rows.get(document.sha256))
                assert row is not None, document
                parts.append(Part(document.line, row))
            if parts:
                file, whole = reading.file, reading.whole and len(parts) == len(reading.documents)
                named = tuple(dict.fromkeys(each for document in reading.documents for each in document.named))
                indexed = IndexedFile(file.size, file.mtime_ns, whole, tuple(parts), named)
                if indexed != self._index.entries.files.get(file.path):
                    files[file.path] = indexed
            elif reading.file.path in self._index.entries.files:  # what it held before is gone
                gone.append(reading.file.path)
            held = self._index.entries.files.get(reading.file.path)
            self._changes.forgotten += max(0, len(held.parts) - len(parts)) if held else 0
        return Step(contents, files, tuple(gone))

    def _skip(self, sentence: str) -> None:
        self._changes.skipped.append(one_line(sentence))

    def _no_vectors(self) -> np.ndarray:
        return np.zeros((0, self._index.header.dimensions), np.float32)


def _sentence(document: Document, problem: str) -> str:
    """What is wrong with a document, as from behind its name, with the name."""
    plain = problem.removeprefix(": ").removeprefix("image: ")
    return plain if plain.startswith(document.path) else f"{document.name}{problem}"
