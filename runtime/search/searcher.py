"""Two-stage retrieval: an embedder recalls documents from an index, a reranker puts the best of them in order."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError, Qwen3VLError
from runtime.graphs.package import Skipped, require_positive
from runtime.notice import warn_caller
from runtime.prompts.inputs import CONTENT_KEYS
from runtime.reranker import Qwen3VLReranker
from runtime.search.documents import Document, read_documents
from runtime.search.index_folder import SearchIndex, require_free
from runtime.search.index_header import FORMAT_VERSION, Header
from runtime.search.indexing import Changes, Indexer
from runtime.search.paths import display_name, is_below, spelled
from runtime.search.regime import Regime
from runtime.search.vector_store import SMALLEST_BINARY, StoreName, VectorStore, require_search_extra
from runtime.vectors import require_dimensions
from runtime.version import VERSION


@dataclass(frozen=True)
class Hit:
    """A document that was found: its absolute path, its line where the file holds several, SHA-256 of its content.

    `cosine` is that to the query, as well as what is stored tells; `score` the reranker's, None without.
    """

    path: str
    line: int | None
    sha256: str
    cosine: float
    score: float | None = None

    @property
    def name(self) -> str:
        """The path from the working folder, and the line, for people."""
        return display_name(self.path, self.line)


class Searcher:
    """An index folder and the embedder that its vectors come from.

    `store` (float32, int8, binary) and `dimensions` are chosen for a new index, by default float32 and the embedder's;
    of one that is there they may be left out. Raises SearchIndexError where the index was made with another package,
    other options or another store, InputError for a store or dimensions that there are not, and MissingExtraError
    without the extra `search`. Several threads may search while one adds or forgets.
    """

    def __init__(
        self,
        embedder: Qwen3VLEmbedder,
        folder: str | os.PathLike[str],
        *,
        store: StoreName | None = None,
        dimensions: int | None = None,
        show_progress: bool = False,
    ):
        require_search_extra()
        self.embedder, self.show_progress = embedder, show_progress
        self.index = SearchIndex(Path(folder))
        there = self.index.header if self.index.exists else None
        manifest = embedder.package.manifest
        if dimensions is not None:
            require_dimensions(dimensions, manifest.text.hidden_size)
        self._header = Header(
            FORMAT_VERSION,
            f"qwen3vl-edge {VERSION}",
            f"{manifest.name}, {manifest.precision} for {manifest.target}",
            Regime.of(manifest, embedder.package.encoder.options),
            store or (there.store if there else "float32"),
            dimensions or (there.dimensions if there else embedder.dimensions),
        )
        VectorStore(self._header.store, self._header.dimensions)
        if there:
            there.require_same(self.index.folder, self._header)
        else:
            require_free(self.index.folder)

    def add(self, folder: str | os.PathLike[str]) -> Changes:
        """Embed what is new or changed below `folder`, and forget what is gone; makes the index where there is none.

        A document that cannot be used is left out and said in `skipped`. Raises InputError, SearchIndexError.
        """
        require_folder(folder)
        path = _absolute(folder)
        self._create()
        with (
            self.index.writing(),
            tqdm(disable=not self.show_progress, unit="file", desc=display_name(path, None)) as progress,
        ):
            self._require_own()
            return Indexer(self.index, self.embedder, progress.update).add(path)

    def forget(self, folder: str | os.PathLike[str]) -> Changes:
        """Take what is in `folder` or is that file out of the index. Raises InputError where nothing is."""
        path = _absolute(folder)
        if not self.index.exists:
            raise InputError(f"--forget {folder}: {self.index.folder} holds no index yet; leave it out.")
        with self.index.writing():
            self._require_own()
            files = [each for each in self.index.entries.files if is_below(each, path)]
            if not files:
                raise InputError(f"--forget {folder}: the index has nothing of it; check the path.")
            return Indexer(self.index, self.embedder, lambda _: None).forget(files)

    def search(self, query: Mapping[str, Any], count: int = 10) -> list[Hit]:
        """The documents of the `count` contents most similar to `query`, a dict as `process` takes it, best first.

        Documents of equal content stand together. Raises InputError, SearchIndexError.
        """
        require_positive("count", count)
        self.index.refresh()
        self._require_own()
        dimensions = self.index.header.dimensions
        try:
            vector = self.embedder.process([query], dimensions=dimensions)[0]
        except Qwen3VLError as error:
            raise type(error)(str(error).replace("inputs[0]", "query", 1)) from error
        with self.index.unchanged():
            self._require_own()
            found = self.index.nearest(vector, count)
            contents, holders = self.index.entries.contents, self.index.holders
            return [Hit(path, line, contents[row], cosine) for row, cosine in found for path, line in holders[row]]

    def _create(self) -> None:
        if self.index.exists:
            return
        if self._header.store == "binary" and self._header.dimensions < SMALLEST_BINARY:
            warn_caller(
                f"a binary index of {self._header.dimensions} dimensions loses much (half of the nearest at 128); "
                f"use {SMALLEST_BINARY} or more, or int8."
            )
        self.index.create(self._header)

    def _require_own(self) -> None:
        """Another process may have been faster, or have made the index anew. Raises SearchIndexError."""
        self.index.header.require_same(self.index.folder, self._header)


def require_folder(folder: str | os.PathLike[str]) -> None:
    """InputError where there is no folder to add."""
    path = _absolute(folder)
    if not os.path.isdir(path):
        reason = "is a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"--add {folder} {reason}; pass the folder that holds the pictures and texts.")


def rerank(
    reranker: Qwen3VLReranker,
    query: Mapping[str, Any],
    hits: Sequence[Hit],
    *,
    skipped: list[str] | None = None,
) -> list[Hit]:
    """The hits by the reranker's score, best first; equal contents are scored once, in one call for all.

    `query` is that of the search: text, image, video, instruction, fps, max_frames. A document that is gone, changed
    since it was indexed or cannot be used stands last, without a score, and is said in `skipped`.
    """
    problems: list[str] = [] if skipped is None else skipped
    contents = read_again(hits)
    problems += [str(each) for each in contents.values() if isinstance(each, InputError)]
    usable = {sha256: each for sha256, each in contents.items() if not isinstance(each, InputError)}
    request = {key: value for key, value in query.items() if key not in CONTENT_KEYS}
    request["query"] = {key: query[key] for key in CONTENT_KEYS if key in query}
    request["documents"] = [{key: item[key] for key in CONTENT_KEYS if key in item} for item in usable.values()]
    unusable: list[Skipped] = []
    found = reranker.process(request, on_error="skip", skipped=unusable)
    for each in unusable:
        name = next(hit.name for hit in hits if hit.sha256 == list(usable)[each.index])
        problems.append(name + str(each.error).removeprefix(f"documents[{each.index}]"))
    scores = {sha256: None if math.isnan(score) else score for sha256, score in zip(usable, found, strict=True)}
    scored = [replace(hit, score=scores.get(hit.sha256)) for hit in hits]
    return sorted(scored, key=lambda hit: -1.0 if hit.score is None else hit.score, reverse=True)


def read_again(hits: Sequence[Hit]) -> dict[str, dict[str, Any] | InputError]:
    """What `process` takes, by SHA-256 of the content; InputError for what is not any more as it was indexed."""
    files: dict[str, dict[int | None, Document] | InputError] = {}
    found: dict[str, dict[str, Any] | InputError] = {}
    lines: dict[str, set[int | None]] = {}  # what others of the file name is not read
    for hit in hits:
        lines.setdefault(hit.path, set()).add(hit.line)
    for hit in hits:
        if isinstance(found.get(hit.sha256), dict):
            continue  # another file with the same content is as good
        if hit.path not in files:
            try:
                files[hit.path] = {document.line: document for document in read_documents(hit.path, lines[hit.path])}
            except InputError as error:
                files[hit.path] = error
            except (OSError, ValueError) as error:  # a name that this process's locale has no bytes for
                reason = getattr(error, "strerror", None) or error
                files[hit.path] = InputError(f"{hit.path} cannot be read ({reason}); check that it is there.")
        file = files[hit.path]
        document = None if isinstance(file, InputError) else file.get(hit.line)
        if isinstance(file, InputError):
            found[hit.sha256] = file
        elif document is None or document.sha256 != hit.sha256:
            found[hit.sha256] = InputError(f"{hit.name} was changed since it was indexed; add its folder again.")
        else:
            found[hit.sha256] = document.item
    return found


def _absolute(folder: str | os.PathLike[str]) -> str:
    """Not resolved: a link that leads elsewhere later still stands for the same folder."""
    return spelled(os.path.abspath(os.fsdecode(folder)))
