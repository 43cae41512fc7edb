"""JSON from files and lines: whatever is wrong with it is a ValueError."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a file holds. Raises OSError, and ValueError where it is not UTF-8, no JSON or nested too deeply."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes, as_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a text says, objects by `as_object` of their pairs. Raises ValueError as `read_json`."""
    try:
        return json.loads(text, object_pairs_hook=as_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
