"""What JSON holds as the dataclass that it stands for, or a sentence that says where it does not fit."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runtime.errors import PackageError


def decoded(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as `kind` (a dataclass, tuple, dict, literal or scalar); PackageError names the place."""
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else decoded(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(decoded(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: decoded(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    expected = " or ".join(map(str, arguments)) if origin is Literal else getattr(kind, "__name__", kind)
    raise PackageError(f"{where} is {value!r}, expected {expected}; export the package again.")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping) or set(value) != set(names):
        found = sorted(value) if isinstance(value, Mapping) else value
        raise PackageError(f"{where} holds {found}, expected the keys {sorted(names)}; export the package again.")
    hints = get_type_hints(kind)
    return kind(**{name: decoded(hints[name], value[name], f"{where}: {name}") for name in names})
