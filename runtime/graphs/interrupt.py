"""Ctrl-C while onnxruntime computes.

Python looks for signals between two of its own steps, and a run of a graph is a single one that may take a minute. So
the main thread, the only one that signals reach, leaves the run to a thread beside it and waits. Once the interpreter
ends it no longer counts as alive, no thread starts any more, and what atexit calls runs in it.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

T = TypeVar("T")
# A wait without a limit cannot be interrupted on Windows.
NOTICED_WITHIN = 0.1  # seconds


def interruptible(run: Callable[[], T], stop: Callable[[], object]) -> T:
    """What `run` returns or raises; `stop` is called where an exception such as KeyboardInterrupt comes meanwhile."""
    main = threading.main_thread()
    if threading.current_thread() is not main or not main.is_alive():
        return run()
    try:
        future = _beside(os.getpid()).submit(run)
        while not future.done():
            wait([future], NOTICED_WITHIN)
    except BaseException:
        stop()
        raise
    return future.result()


@cache
def _beside(process: int) -> ThreadPoolExecutor:
    """One thread for all runs: each new one would take memory of its own. A forked process has lost its parent's."""
    return ThreadPoolExecutor(1, "onnxruntime")
