"""What `memory="normal"` and `"low"` mean for the sessions of a package, and the memory a process holds."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import InputError
from runtime.graphs.graph import SessionGraph
from runtime.graphs.session import open_session
from runtime.graphs.target import TARGETS, Target
from runtime.manifest import DECODER, VISION, VISION_UINT8

MemoryMode = Literal["normal", "low"]
VISION_MATRICES = "model.visual."
# A product in blocks (MatMulNBits) that was not prepacked dequantises its weights at every call: at 2B 0.08 s for a
# down_proj of 8 bits. A few of them cost less than a copy of all weights in anonymous memory; many do not.
IN_BLOCKS, FEW = "-block", 1 / 8
TWO_LEVEL = "-two-level-"  # unpacked at every call, with or without prepacking
UNPACKING_CALLS = 2  # so many times longer are the calls that unpack, so that there are fewer


@dataclass(frozen=True)
class GraphMemory:
    """How one session uses memory.

    `prepack`: weights are rearranged for speed when the session is opened, which copies them from the mapped file into
    anonymous memory. `shrink`: a run gives its buffers back to the system, otherwise they are kept for the next one.
    """

    prepack: bool = True
    shrink: bool = False


@dataclass(frozen=True)
class MemoryPolicy:
    """How a package uses memory: `graphs` by file name, `batch_tokens` where the caller chooses none.

    `arena` is where buffers are given back.
    """

    graphs: Mapping[str, GraphMemory]
    keep_vision: bool
    batch_tokens: int
    arena: str

    def open_graph(self, path: Path, providers: Sequence[str], threads: int) -> SessionGraph:
        """A `runtime.graphs.graph.OpenGraph`. Raises PackageError."""
        memory = self.graphs[VISION if path.name in (VISION, VISION_UINT8) else DECODER]
        session = open_session(path, providers, threads, memory.prepack)
        return SessionGraph(session, self.arena, memory.shrink)


@dataclass(frozen=True)
class Resident:
    """Memory of a process in bytes: `anonymous` is its own, `mapped` are files that the system may drop and reread."""

    anonymous: int
    mapped: int


def memory_policy(mode: str, matrices: Mapping[str, str], target: Target = TARGETS["cpu"]) -> MemoryPolicy:
    """The policy of a mode for a package with these schemes (`Manifest.matrices`). Raises InputError.

    In the low mode a graph uses its weights where they are mapped, unless more than a few are stored in blocks. Those
    few then take float activations: nearer to the float model, and not to the last digit what the normal mode gives.
    """
    if mode == "normal":
        # On the CPU a large picture's buffers would stay beside the decoder's, and taking them anew is one or two
        # hundredths of its seconds; on a device it would be much.
        fast = {DECODER: GraphMemory(), VISION: GraphMemory(shrink=target == TARGETS["cpu"])}
        unpacks = any(TWO_LEVEL in scheme for name, scheme in matrices.items() if not name.startswith(VISION_MATRICES))
        batch_tokens = target.batch_tokens * (UNPACKING_CALLS if unpacks else 1)
        return MemoryPolicy(fast, keep_vision=True, batch_tokens=batch_tokens, arena=target.arena)
    if mode != "low":
        raise InputError(f"memory is {mode!r}, expected 'normal' or 'low'.")
    graphs = {}
    for graph in (DECODER, VISION):
        schemes = [scheme for name, scheme in matrices.items() if name.startswith(VISION_MATRICES) == (graph == VISION)]
        in_blocks = sum(IN_BLOCKS in scheme and TWO_LEVEL not in scheme for scheme in schemes)
        graphs[graph] = GraphMemory(prepack=in_blocks > FEW * len(schemes), shrink=True)
    return MemoryPolicy(graphs, keep_vision=False, batch_tokens=target.low_batch_tokens, arena=target.arena)


def resident(process: int | Literal["self"] = "self") -> Resident | None:
    """What a process holds now; None where the system does not tell the two kinds apart (it is Linux that does)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    fields = (line.partition(":") for line in lines)
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in fields if name.startswith("Rss")}
    return Resident(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"]) if sizes else None


def peak_resident() -> int | None:
    """The most bytes that this process ever held, both kinds; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
