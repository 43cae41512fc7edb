"""JSON lines: what `--input` reads."""

import json
from collections.abc import Iterator
from typing import Any

from runtime.errors import InputError


def read_json_lines(name: str) -> Iterator[Any]:
    """The values of a JSON lines file, - for standard input. Raises InputError naming file and line."""
    try:
        # -sig: Windows' tools put a byte order mark before UTF-8.
        with open(0 if name == "-" else name, encoding="utf-8-sig", closefd=name != "-") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{name}, line {number}: not JSON ({error}); write one object a line.") from None
    except OSError as error:
        raise InputError(f"--input {name} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--input {name} is not UTF-8 ({error.reason}); convert it.") from error
