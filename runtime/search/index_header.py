"""`index.json`: what an index was made with, and which of its files count. It is replaced in one step."""

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from runtime.errors import InputError, SearchIndexError
from runtime.json_text import read_json
from runtime.replacing import patiently, sync_folder
from runtime.search.regime import Regime, difference
from runtime.search.vector_store import StoreName, VectorStore

FORMAT_VERSION = 1
HEADER = "index.json"
CHECKSUM = "checksum"  # of the other fields: another number of dimensions would be other vectors


@dataclass(frozen=True)
class Header:
    """`package` says which one it was, for people; `generation` grows each time the index is written anew."""

    format_version: int
    generator: str
    package: str
    regime: Regime
    store: StoreName
    dimensions: int
    generation: int = 0

    @property
    def vectors(self) -> VectorStore:
        """How vectors are stored."""
        return VectorStore(self.store, self.dimensions)

    def write(self, folder: Path) -> None:
        """Put it in place of the one before. Raises OSError."""
        partial = folder / f"{HEADER}.partial"
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            facts = asdict(self)
            file.write(json.dumps(facts | {CHECKSUM: _checksum(facts)}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: partial.replace(folder / HEADER))
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The header of the index in `folder`, None where there is no index. Raises SearchIndexError."""
        path = folder / HEADER
        try:
            content = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SearchIndexError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
        except ValueError as error:
            raise _unreadable(path, error) from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise SearchIndexError(f"{path} is not that of an index; give --index another folder.")
        if version != FORMAT_VERSION:
            raise SearchIndexError(
                f"{path} has index format {version}, this runtime reads format {FORMAT_VERSION}; "
                "make the index anew with --add in another folder."
            )
        if (checksum := content.pop(CHECKSUM, None)) not in (None, _checksum(content)):  # none in older indexes
            raise _unreadable(path, ValueError(f"its checksum {checksum!r:.20} does not fit"))
        try:
            header = cls(**(content | {"regime": Regime(**content["regime"])}))
            numbers = (header.dimensions, header.generation)
            if not all(isinstance(number, int) for number in numbers) or header.dimensions < 1:
                raise ValueError(f"dimensions {header.dimensions}, generation {header.generation}")
            VectorStore(header.store, header.dimensions)
        except (TypeError, KeyError, ValueError, InputError) as error:
            raise _unreadable(path, error) from error
        return header

    def require_same(self, folder: Path, here: "Header") -> None:
        """SearchIndexError that names each difference to `here`, what this run would make."""
        differing = self.regime.differences(here.regime)
        differing += [
            difference(name, getattr(self, name), getattr(here, name))
            for name in ("dimensions", "store")
            if getattr(self, name) != getattr(here, name)
        ]
        if differing:
            raise SearchIndexError(
                f"{folder} was made with something else, and vectors of both cannot be compared: "
                f"{'; '.join(differing)}; use the package ({self.package}) and options that it was made with, or give "
                "--index another folder."
            )


def _checksum(facts: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(facts).encode('ascii')):08x}"


def _unreadable(path: Path, error: Exception) -> SearchIndexError:
    return SearchIndexError(f"{path} cannot be read ({error}); delete the index and make it anew with --add.")
