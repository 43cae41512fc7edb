"""An export in a process of its own that kills itself at a chosen moment, or counts the moments there are.

A moment comes before every change in the file system and at every report of progress.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from export.options import ExportOptions, Reporter
from export.package import export_package

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Moments:
    """What happened so far; the process dies at number `last`."""

    last: int | None
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Note a moment, or die at it."""
        if len(self.names) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def audit(self, event: str, details: tuple[object, ...]) -> None:
        """An audit hook."""
        if event in CHANGES:
            self.add(f"{event} {os.path.basename(os.fsdecode(str(details[0])))}")
        elif event == "open" and isinstance(details[2], int) and details[2] & WRITES:
            self.add(f"write {os.path.basename(str(details[0]))}")


def export(
    folder: Path, output: Path, options: ExportOptions, last: int | None = None, record: Path | None = None
) -> None:
    """Export, and die at moment `last`; all moments are written to `record`, a line each."""
    moments = Moments(last)
    sys.addaudithook(moments.audit)
    step: Callable[[int], object] = lambda count: moments.add("step")  # noqa: E731
    export_package(folder, output, options, Reporter(moments.add, lambda total, name, unit: moments.add(name), step))
    if record:
        record.write_text("\n".join(moments.names), encoding="utf-8")
