"""The files of an open package: what is opened later belongs to the same package, what is mapped is not written to.

A mapped file that is deleted, or replaced by another under its name, lives on behind the mapping. One that is written
to in place changes the weights, and one that is cut short ends the process at the first read behind its end. Files are
looked at before and after every run; only what is cut short during one cannot be caught.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import PackageError
from runtime.graphs.forked import OwnGraph
from runtime.graphs.graph import NOWHERE, Arrays, Graph, OpenGraph
from runtime.manifest import Manifest


@dataclass(frozen=True)
class FileState:
    """Which file stands under a name (device and number), and its content as size and time of writing (ns) tell it."""

    file: tuple[int, int]
    content: tuple[int, int]


class PackageFiles:
    """The files of the package `manifest` in `folder`, as they are when this is made."""

    def __init__(self, folder: Path, manifest: Manifest):
        self._folder = folder.absolute()  # the working folder may be another one at the first picture
        self._fingerprint = manifest.fingerprint
        self._states = {file.name: _state(self._folder / file.name) for file in manifest.files}

    def watched(self, open_graph: OpenGraph) -> OpenGraph:
        """`open_graph` for graphs of this package; PackageError where another one, or nothing, has taken its place."""

        def open_watched(path: Path, providers: Sequence[str], threads: int) -> Graph:
            def open_same() -> Graph:
                self._require_same_package()
                graph = open_graph(self._folder / path.name, providers, threads)
                self._require_same_package()  # nor was it replaced meanwhile
                return graph

            stem = path.name.partition(".")[0]  # both decoders of a package read the same weights
            return MappedGraph(OwnGraph(open_same), self, [name for name in self._states if name.startswith(stem)])

        return open_watched

    def require_unwritten(self, names: Sequence[str]) -> None:
        """Raise PackageError where one of the files was written to in place."""
        for name in names:
            before, now = self._states[name], _state(self._folder / name)
            if before and now and now.file == before.file and now.content != before.content:
                raise PackageError(
                    f"{self._folder / name} was written to while it was in use, so that its weights are not what they "
                    "were; copy it again or export the package again, then open it anew."
                )

    def _require_same_package(self) -> None:
        fingerprint = Manifest.read(self._folder).fingerprint
        for name, before in self._states.items():
            now = _state(self._folder / name)
            # Not by its number: some network file systems number a file anew at will.
            if fingerprint != self._fingerprint or not before or not now or now.content != before.content:
                raise PackageError(f"{self._folder} was replaced or changed since it was opened; open it anew.")


class MappedGraph:
    """A graph whose files are looked at before and after every run."""

    def __init__(self, graph: Graph, files: PackageFiles, names: Sequence[str]):
        self._graph, self._files, self._names = graph, files, names

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """As `Graph.run`. Raises PackageError."""
        self._files.require_unwritten(self._names)
        outputs = self._graph.run(names, feeds, into)
        self._files.require_unwritten(self._names)
        return outputs


def _state(path: Path) -> FileState | None:
    """None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState((found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns))
