"""What a forked process cannot take over from its parent, and has for itself instead.

It has no thread but the one that forked: onnxruntime's are gone, and a lock that another thread held stays locked. So
a session of the parent is neither run there, which may wait for ever, nor destroyed, which waits for its threads.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from weakref import WeakSet

import numpy as np

from runtime.graphs.graph import NOWHERE, Arrays, Graph


class OwnLock:
    """`with lock():` keeps the other threads of this process out, and those of no other."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())


class OwnGraph:
    """A graph that is open from the start, and that each forked process opens anew at its first run."""

    def __init__(self, open_graph: Callable[[], Graph]):
        self._open_graph, self._lock = open_graph, OwnLock()
        self._opened = (os.getpid(), open_graph())
        _OPEN.add(self)

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """As `Graph.run`. Raises what opening raises."""
        process, graph = self._opened
        return (graph if process == os.getpid() else self._anew()).run(names, feeds, into)

    def keep(self) -> None:
        """Never destroy what is open now, not even at the end of the process, when all references go."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._opened))

    def _anew(self) -> Graph:
        with self._lock():
            if self._opened[0] != os.getpid():
                self._opened = (os.getpid(), self._open_graph())
            return self._opened[1]


_OPEN: WeakSet[OwnGraph] = WeakSet()


def _keep_all() -> None:
    for each in list(_OPEN):
        each.keep()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_keep_all)
