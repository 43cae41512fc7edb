"""What an index holds beside its vectors: contents by SHA-256, one a row, and the files that they were found in.

The log that keeps it grows by a line a step: a CRC-32 and a JSON object. A step is there whole or not at all, so that
an index can be left at any moment; its row's vectors are on the disk before it is.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from runtime.errors import SearchIndexError
from runtime.json_text import parse_json
from runtime.search.documents import FoundFile

FILES_A_LINE = 1000


@dataclass(frozen=True)
class Part:
    """One document of a file: its row among the vectors, and its line where it is one of several."""

    line: int | None
    row: int


@dataclass(frozen=True)
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
    """The state that the steps of a log lead to."""

    def __init__(self, steps: Sequence[Step] = ()):
        self.contents: list[str] = []
        self.rows: dict[str, int] = {}
        self.files: dict[str, IndexedFile] = {}
        for step in steps:
            self.apply(step)

    def apply(self, step: Step) -> None:
        """Go one step further."""
        for sha256 in step.contents:
            self.rows[sha256] = len(self.contents)
            self.contents.append(sha256)
        self.files.update(step.files)
        for path in step.gone:
            self.files.pop(path, None)

    @property
    def documents(self) -> int:
        """How many can be found."""
        return sum(len(file.parts) for file in self.files.values())

    def holders(self) -> dict[int, list[tuple[str, int | None]]]:
        """(path, line) of the documents of each row that has any, in the order of their names."""
        found: dict[int, list[tuple[str, int | None]]] = {}
        for path in sorted(self.files):
            for part in self.files[path].parts:
                found.setdefault(part.row, []).append((path, part.line))
        return found

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


def read_log(path: Path) -> tuple[Entries, int]:
    """The state that a log leads to, and how many of its bytes do: a last line that is half there is not counted.

    Raises OSError, and SearchIndexError where it is damaged elsewhere.
    """
    entries, valid = Entries(), 0
    lines = path.read_bytes().split(b"\n")
    unfinished = lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            step = Step.parse(line)
        except (ValueError, TypeError, LookupError) as error:  # of another version, or by hand
            # After a power cut the last step may have its length and not its content.
            if number == len(lines) and not unfinished:
                break
            raise SearchIndexError(
                f"{path}, line {number} is damaged ({error}); delete the index and make it anew with --add."
            ) from None
        entries.apply(step)
        valid += len(line) + 1
    return entries, valid
