"""The log of an index as far as it was read: only what it has grown by is read the next time."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import SearchIndexError
from runtime.search.index_entries import Entries, Step

CHECKSUM = 8  # characters at the beginning of a line


class IndexLog:
    """`entries` are what the first `valid` bytes lead to, which tell of documents `told` times."""

    def __init__(self) -> None:
        self.entries, self.valid, self.told = Entries(), 0, 0
        self._lines = 0
        self._last, self._mark = 0, b""  # where the last line begins, and with what

    def take(self, step: Step, line: bytes) -> None:
        """Go on by a step, whose line stands behind the valid bytes."""
        self.entries.apply(step)
        self._last, self._mark = self.valid, line[:CHECKSUM]
        self._lines += 1
        self.valid += len(line)
        self.told += sum(len(file.parts) for file in step.files.values())

    def follow(self, path: Path) -> bool:
        """Read on; a last line that is half there is not counted. False where `path` has become another log.

        Raises OSError, and SearchIndexError where it is damaged elsewhere.
        """
        with path.open("rb") as file, _without_collection():
            file.seek(self._last)
            if os.fstat(file.fileno()).st_size < self.valid or file.read(len(self._mark)) != self._mark:
                return False
            begun = self._lines
            file.seek(self.valid)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    step = Step.parse(line[:-1])
                except (ValueError, TypeError, LookupError) as error:  # of another version, or by hand
                    # After a power cut the last step may have its length and not its content.
                    if not file.read(1):
                        break
                    if begun:  # a writer may have taken a step back: from the beginning it may be whole
                        return False
                    raise SearchIndexError(
                        f"{path}, line {self._lines + 1} is damaged ({error}); "
                        "delete the index and make it anew with --add."
                    ) from None
                self.take(step, line)
        return True


@contextmanager
def _without_collection() -> Iterator[None]:
    """Nothing that is read has cycles, and looking for them takes half of the time where there are a million files."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
