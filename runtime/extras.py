"""Libraries that only some need, each installed by one of the package's extras."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import MissingExtraError


@contextmanager
def needing_extra(extra: str, what: str = "") -> Iterator[None]:
    """For imports of what `extra` installs; `what` says who needs which library. Raises MissingExtraError."""
    try:
        yield
    except ImportError as error:
        needed = what or f"this needs {error.name or 'a library'}"
        is_missing = isinstance(error, ModuleNotFoundError)
        problem = "is not installed" if is_missing else f"cannot be imported ({error})"  # too old, or broken
        raise MissingExtraError(f'{needed}, which {problem}; run pip install "qwen3vl-edge[{extra}]".') from error
