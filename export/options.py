"""What an export is asked for, and where it says what it does."""

from collections.abc import Callable
from dataclasses import dataclass

from export.calibration import BUILTIN, NONE
from quant.kernels import KERNELS
from quant.selection import UNQUANTISED, Plan
from runtime.manifest import Task


@dataclass(frozen=True)
class ExportOptions:
    """What a package is called and made for; `task` None lets the checkpoint's own files decide.

    `precision` is one that quant/kernels.py lists for the `target`.
    `calibrate`: BUILTIN, NONE or a folder of samples, for the quantised precisions; `min_cosine` refuses a package
    whose mean cosine to float32 on these samples is lower. `golden`: BUILTIN, or NONE for a package without golden
    inputs.
    """

    name: str
    precision: str = "fp32"
    target: str = "cpu"
    task: Task | None = None
    revision: str | None = None
    force: bool = False
    calibrate: str = BUILTIN
    block: int | None = None
    min_cosine: float | None = None
    golden: str = BUILTIN

    @property
    def is_calibrated(self) -> bool:
        """Whether there are samples to choose scales by."""
        return self.precision not in UNQUANTISED and self.calibrate != NONE

    @property
    def plan(self) -> Plan:
        """How matrices are stored before any sample was seen."""
        return Plan(self.precision, self.block, KERNELS[self.target])


@dataclass(frozen=True)
class Reporter:
    """Where an export says what it does: `say` gets sentences, `start` a stage (total, name, unit), `advance` steps."""

    say: Callable[[str], object]
    start: Callable[[int, str, str], object]
    advance: Callable[[int], object]


SILENT = Reporter(lambda text: None, lambda total, name, unit: None, lambda count: None)
