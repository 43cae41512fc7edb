"""What an index holds beside its vectors: contents by SHA-256, one a row, and the files that they were found in.

The log that keeps it grows by a line a step: a CRC-32 and a JSON object. A step is there whole or not at all, so that
an index can be left at any moment; its row's vectors are on the disk before it is.
"""

import json
import zlib
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Self

from runtime.json_text import parse_json
from runtime.search.documents import FoundFile

FILES_A_LINE = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One document of a file: its row among the vectors, and its line where it is one of several."""

    line: int | None
    row: int


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as it was when it was read; `whole` where each of its documents could be embedded.

    `named`: the local files that its documents name, as they were.
    """

    size: int
    mtime_ns: int
    whole: bool
    parts: tuple[Part, ...]
    named: tuple[FoundFile, ...] = ()

    def stands(self, file: FoundFile) -> bool:
        """Whether all of it was embedded and nothing has changed since, `file` being what is there now."""
        same = (self.size, self.mtime_ns) == (file.size, file.mtime_ns)
        return self.whole and same and not any(named.changed for named in self.named)


@dataclass(frozen=True)
class Step:
    """What changes at once: SHA-256 of new rows in order, files found or found changed, files that are gone."""

    contents: tuple[str, ...] = ()
    files: dict[str, IndexedFile] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    def line(self) -> bytes:
        """The step as a line of the log."""
        files = {
            path: [
                *(file.size, file.mtime_ns, file.whole),
                [[part.line, part.row] for part in file.parts],
                [[named.path, named.size, named.mtime_ns] for named in file.named],
            ]
            for path, file in self.files.items()
        }
        # ASCII: a path may hold bytes that are no characters, and those have escapes.
        text = json.dumps({"contents": self.contents, "files": files, "gone": self.gone}).encode("ascii")
        return b"%08x %s\n" % (zlib.crc32(text), text)

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """The step of a line without its end. ValueError where it is damaged."""
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            raise ValueError("its checksum does not fit")
        content = parse_json(text)
        files = {
            path: IndexedFile(
                *(size, mtime_ns, whole),
                tuple(Part(*part) for part in parts),
                tuple(FoundFile(*each) for named in rest for each in named),
            )
            for path, (size, mtime_ns, whole, parts, *rest) in content["files"].items()  # no rest in older indexes
        }
        return cls(tuple(content["contents"]), files, tuple(content["gone"]))


class Entries:
    """The state that the steps of a log lead to.

    `holders`: (path, line) of the documents of each row that has any, in the order of their names.
    """

    def __init__(self) -> None:
        self.contents: list[str] = []
        self.rows: dict[str, int] = {}
        self.files: dict[str, IndexedFile] = {}
        self.holders: dict[int, list[tuple[str, int | None]]] = {}

    def apply(self, step: Step) -> None:
        """Go one step further."""
        for sha256 in step.contents:
            self.rows[sha256] = len(self.contents)
            self.contents.append(sha256)
        self._let_go({path for path in (*step.files, *step.gone) if path in self.files})
        for path, file in step.files.items():
            self.files[path] = file
            for part in file.parts:
                holder = (path, part.line)
                if part.row in self.holders:
                    insort(self.holders[part.row], holder, key=itemgetter(0))
                else:
                    self.holders[part.row] = [holder]

    def _let_go(self, paths: set[str]) -> None:
        rows = {part.row for path in paths for part in self.files.pop(path).parts}
        for row in rows:
            kept = [holder for holder in self.holders[row] if holder[0] not in paths]
            if kept:
                self.holders[row] = kept
            else:
                del self.holders[row]

    @property
    def documents(self) -> int:
        """How many can be found."""
        return sum(len(file.parts) for file in self.files.values())

    def renumbered(self, rows: Sequence[int]) -> Iterator[Step]:
        """The steps of a log that holds only `rows`, in this order."""
        numbers = {old: new for new, old in enumerate(rows)}
        yield Step(tuple(self.contents[row] for row in rows))
        moved = {
            path: replace(file, parts=tuple(Part(part.line, numbers[part.row]) for part in file.parts))
            for path, file in self.files.items()
        }
        paths = list(moved)
        for start in range(0, len(paths), FILES_A_LINE):
            yield Step(files={path: moved[path] for path in paths[start : start + FILES_A_LINE]})
