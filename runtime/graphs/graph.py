"""One graph of a package, open: named arrays in, named arrays out, some of them written where the caller says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from runtime.graphs.allocation import allocating
from runtime.graphs.interrupt import interruptible
from runtime.graphs.session import open_session

Arrays = Mapping[str, np.ndarray]
NOWHERE: Arrays = {}


class Graph(Protocol):
    """What a model needs of an open graph; runs may overlap in several threads."""

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """The outputs `names`. Each output named in `into` is written to that contiguous array instead.

        Raises MemoryError; what was in `into` is then undefined.
        An array may be fed and written at once: on the CPU GroupQueryAttention then appends to its past without a copy.
        """


OpenGraph = Callable[[Path, Sequence[str], int], Graph]


class SessionGraph:
    """A graph in an onnxruntime session of its own.

    With `shrink` every run gives the buffers of its `arena` back to the system; so it does from the first run on that
    was refused memory, as the process then has none to spare.
    """

    def __init__(self, session: ort.InferenceSession, arena: str = "cpu:0", shrink: bool = False):
        self._session, self._arena, self._shrink = session, arena, shrink

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """As `Graph.run`. Ctrl-C ends it after the operator that is being computed."""
        options = ort.RunOptions()
        if self._shrink:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arena)
        try:
            with allocating():
                return interruptible(
                    lambda: self._run(names, feeds, into, options), lambda: setattr(options, "terminate", True)
                )
        except MemoryError:
            self._shrink = True
            raise

    def _run(self, names: Sequence[str], feeds: Arrays, into: Arrays, options: ort.RunOptions) -> list[np.ndarray]:
        if not into:
            return list(self._session.run(names, feeds, options))
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in into.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding, options)
        return [value.numpy() for value in binding.get_outputs()[len(into) :]]


def open_graph(path: Path, providers: Sequence[str], threads: int) -> SessionGraph:
    """Open a package's graph; `providers` as from `require_providers`. Raises PackageError."""
    return SessionGraph(open_session(path, providers, threads))
