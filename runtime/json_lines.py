"""JSON lines: what `--input` and `--queries` read, and the .jsonl files of an indexed or calibrating folder."""

from collections.abc import Iterator
from typing import Any

from runtime.errors import InputError
from runtime.json_text import parse_json


def read_json_lines(name: str, option: str = "--input ") -> Iterator[Any]:
    """The values of a JSON lines file, - for standard input. Raises InputError naming file and line."""
    return (value for _, value in numbered_json_lines(name, option))


def numbered_json_lines(name: str, option: str = "") -> Iterator[tuple[int, Any]]:
    """As `read_json_lines`, each value with the number of its line, from 1; `option` is what named the file."""
    try:
        for number, line in numbered_lines(name):
            yield number, json_value(line, f"{name}, line {number}")
    except OSError as error:
        raise InputError(f"{option}{name} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{option}{name} is not UTF-8 ({error.reason}); convert it.") from error


def numbered_lines(name: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers. Raises OSError, UnicodeDecodeError."""
    # -sig: Windows' tools put a byte order mark before UTF-8.
    with open(0 if name == "-" else name, encoding="utf-8-sig", closefd=name != "-") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def json_value(line: str, where: str) -> Any:
    """What a line says. Raises InputError naming `where` it stands."""
    try:
        return parse_json(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); write one object a line.") from None


def as_item(value: Any, where: str) -> dict[str, Any]:
    """A line's text, or dict as `process` takes it, as such a dict. Raises InputError naming `where` it stands."""
    item = {"text": value} if isinstance(value, str) else value
    if not isinstance(item, dict):
        raise InputError(f'{where} is neither a text nor a dict; write {{"text": ...}}.')
    return item
