"""What is wrong with single inputs: noted by their index where others go on, raised where none do."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import NotFiniteError, OutOfMemoryError, PackageError, Qwen3VLError

Errors = dict[int, Qwen3VLError]
OPENING = "to open it; close other programs, or pass memory='low'"
LOADING = "to load its pictures and videos; pass a lower max_pixels, total_pixels or max_frames"


@contextmanager
def noting(errors: Errors | None, index: int) -> Iterator[None]:
    """Note an error of the input `index` in `errors`, or raise it where that is None. A PackageError is no input's."""
    try:
        yield
    except PackageError:
        raise
    except Qwen3VLError as error:
        if errors is None:
            raise
        # Its traceback would keep the input's pixels in memory for as long as the error is.
        error.__cause__ = error.__context__ = None
        errors[index] = error.with_traceback(None)


@contextmanager
def blaming(where: str, needs: str) -> Iterator[None]:
    """Put the place of an input before what keeps it from being computed; it `needs` so much memory, and this helps."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{where}: {error}") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"{where}: there is not enough memory {needs}.") from error
