"""How far a call has come, on standard error where that is wanted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def counting(total: int, unit: str, show: bool) -> Iterator[Callable[[int], object]]:
    """A function to be told again and again how many more are done."""
    if not show:
        # A bar that is disabled still takes tqdm's lock, one for all threads, which a fork may find held for ever.
        yield lambda count: None
        return
    with tqdm(total=total, unit=unit) as progress:
        yield progress.update
