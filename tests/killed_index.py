"""Indexes that are written by processes of their own, each of which kills itself one moment later than the one before.

    python killed_index.py FOLDER     writes FOLDER/0, FOLDER/1, ... until one gets through

A moment comes before everything that changes a file, and half-way through everything that is written.
"""

import os
import signal
import sys
from pathlib import Path

from search_index import header, put

from runtime.search import index_files
from runtime.search.index_entries import Step
from runtime.search.index_folder import SearchIndex


class Moments:
    """The process dies at number `last`."""

    def __init__(self, last: int):
        self.last, self.count = last, 0

    def add(self) -> None:
        """A moment goes by, or is the last."""
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def write_index(folder: Path, moments: Moments) -> None:
    """Make an index of 4 contents, forget 3 of them, which rewrites it, and add another."""
    extend = index_files._extend

    def in_halves(path: Path, position: int, content: bytes) -> None:
        moments.add()
        with path.open("r+b") as file:
            file.seek(position)
            file.write(content[: len(content) // 2])
        moments.add()
        extend(path, position, content)

    def audit(event: str, details: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir"):
            moments.add()

    index_files._extend = in_halves
    sys.addaudithook(audit)
    index = SearchIndex(folder)
    index.create(header("float32"))
    with index.writing():
        for number in range(4):
            put(index, number)
    with index.writing():
        index.append(Step(gone=("/0", "/1", "/2")), index.vectors()[:0])
        index.settle()
    with index.writing():
        put(index, 9)


def main(folder: Path) -> None:
    """A process a moment, forked from this one, which has everything imported."""
    status, last = 1, 0
    while status:
        process = os.fork()
        if not process:
            write_index(folder / str(last), Moments(last))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL)
        last += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
