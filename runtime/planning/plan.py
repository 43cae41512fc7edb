"""What inputs of known sizes cost with a package: tokens, peak memory, and seconds on this machine."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from runtime.graphs.memory import MemoryMode, MemoryPolicy, Resident, resident
from runtime.graphs.model import Model
from runtime.graphs.package import PER_TOKEN
from runtime.graphs.probe import products_saturate
from runtime.manifest import Manifest
from runtime.planning.footprint import PROCESS, Footprint, Phase
from runtime.planning.pace import Pace, decoder_cost, vision_cost
from runtime.planning.work import Work, work_of
from runtime.planning.workload import Outline, Workload, outline, picture_workload
from runtime.prompts.encode import Encoder


@dataclass(frozen=True, eq=False)
class Setting:
    """A package and how it is to be used; manifest and tokenizer are open, the graphs are not."""

    folder: Path
    manifest: Manifest
    memory: MemoryMode
    encoder: Encoder
    policy: MemoryPolicy
    providers: Sequence[str]
    threads: int
    batch_tokens: int


@dataclass(frozen=True, eq=False)
class Planned:
    """What is known of a workload before it runs; memory is None where the runtime refuses it.

    `peak`: the most of each kind of memory; `phase`: the parts of the moment that takes most together.
    """

    name: str
    outline: Outline
    work: Work | None = None
    peak: Resident | None = None
    phase: Phase | None = None


@dataclass(frozen=True)
class Fit:
    """A picture that was looked for by the memory it takes: bytes of anonymous and mapped memory at its peak.

    `resident` is above `ram` where not even the smallest picture fits.
    """

    ram: int
    max_pixels: int
    visual_tokens: int
    resident: int


@dataclass(frozen=True)
class Measured:
    """The pace of this machine, and the seconds that opening each graph and timing both took."""

    pace: Pace
    opening: float
    opening_vision: float | None
    timing: float


class Planner:
    """Plans for one setting. `copied`: onnxruntime holds copies of int8 weights here (`runtime.graphs.probe`).

    `process`: what a process holds before a graph is opened, by default what this one does.
    """

    def __init__(self, setting: Setting, process: Resident | None = None):
        self._setting, manifest = setting, setting.manifest
        self.copied = PER_TOKEN in manifest.matrices.values() and products_saturate()
        held = process or resident() or PROCESS
        self._footprint = Footprint(manifest, setting.policy, setting.batch_tokens, held, self.copied)

    def plan(self, workload: Workload) -> Planned:
        """Tokens and memory of one workload."""
        found = outline(workload, self._setting.encoder, self._setting.manifest.task)
        if found.sequence is None:
            return Planned(workload.name, found)
        work = work_of(workload, found.sequence)
        return Planned(workload.name, found, work, self._footprint.peak(work), self._footprint.largest(work))

    def largest_picture(self, ram: int) -> Fit:
        """The largest picture within max_length whose prompt fits into `ram` bytes, or else the smallest one."""
        encoder = self._setting.encoder
        options, patch = encoder.options, encoder.patch
        side = math.isqrt(options.min_pixels)
        found = outline(picture_workload(f"{side}x{side}", encoder), encoder, self._setting.manifest.task)
        around = found.tokens - found.visual_tokens
        pixels, patches = patch.factor**2, patch.spatial_merge_size**2

        def needed(tokens: int) -> int:
            work = Work(1, around + tokens, around, ((1, tokens * patches),), tokens * pixels)
            return self._footprint.largest(work).resident

        smallest = -(-options.min_pixels // pixels)
        sizes = range(smallest, max(smallest, options.max_length - around) + 1)
        tokens = sizes[max(1, bisect_right(sizes, ram, key=needed)) - 1]
        return Fit(ram, tokens * pixels, tokens, needed(tokens))


def measure(setting: Setting, pictures: bool) -> Measured:
    """Open the package and time it, the vision encoder only where `pictures` are asked for. Raises PackageError."""
    manifest, policy = setting.manifest, setting.policy
    started = perf_counter()
    model = Model(
        setting.folder, manifest, setting.providers, setting.threads, policy.open_graph, keep_vision=policy.keep_vision
    )
    opened = perf_counter()
    pace = Pace(decoder_cost(model.decoder, manifest, setting.batch_tokens))
    timed = perf_counter()
    if not pictures:
        return Measured(pace, opened - started, None, timed - opened)
    model.vision.open()
    seeing = perf_counter()
    pace = replace(pace, vision=vision_cost(model.vision, manifest, setting.encoder.patch))
    return Measured(pace, opened - started, seeing - timed, timed - opened + perf_counter() - seeing)
