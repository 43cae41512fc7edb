"""Memory that cannot be had: onnxruntime says so in many ways, all of them become Python's MemoryError."""

from collections.abc import Iterator
from contextlib import contextmanager

# onnxruntime's arenas, the C++ library (also Microsoft's), CUDA, the systems, and Python where it starts a thread.
SAYINGS = (
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't start new thread",
)


@contextmanager
def allocating() -> Iterator[None]:
    """Raises MemoryError where onnxruntime gives up for want of memory; its other errors pass."""
    try:
        yield
    except Exception as error:  # onnxruntime's errors share no narrower base
        if any(saying in str(error).lower() for saying in SAYINGS):
            raise MemoryError(str(error)) from error
        raise
