"""JSON lines: what `--input` and `--queries` read, and the .jsonl files of an indexed folder."""

import json
from collections.abc import Iterator
from typing import Any

from runtime.errors import InputError


def read_json_lines(name: str) -> Iterator[Any]:
    """The values of a JSON lines file, - for standard input. Raises InputError naming file and line."""
    return (value for _, value in numbered_json_lines(name, "--input "))


def numbered_json_lines(name: str, option: str = "") -> Iterator[tuple[int, Any]]:
    """As `read_json_lines`, each value with the number of its line, from 1; `option` is what named the file."""
    try:
        # -sig: Windows' tools put a byte order mark before UTF-8.
        with open(0 if name == "-" else name, encoding="utf-8-sig", closefd=name != "-") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise InputError(f"{name}, line {number}: not JSON ({error}); write one object a line.") from None
    except OSError as error:
        raise InputError(f"{option}{name} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{option}{name} is not UTF-8 ({error.reason}); convert it.") from error
