"""One command as a process of its own: wall and processor seconds, and its peak memory as the operating system counts.

The peaks of anonymous memory and of mapped files are sampled, on Linux only; each may be at another time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """Seconds, bytes and the exit status of one process; `anonymous` and `mapped` are 0 where nobody tells."""

    wall: float
    processor: float
    resident: int
    anonymous: int
    mapped: int
    status: int


def run(command: Sequence[str]) -> Cost:
    """Run a Python command in the repository's root, its output on stderr."""
    before = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=sys.stderr)
    anonymous = mapped = ended = 0
    while not ended:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)  # the only way to one child's own peak
        now = _memory(process.pid)
        anonymous, mapped = max(anonymous, now.get("RssAnon", 0)), max(mapped, now.get("RssFile", 0))
        time.sleep(SAMPLE_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(
        wall=time.perf_counter() - before,
        processor=usage.ru_utime + usage.ru_stime,
        resident=usage.ru_maxrss * RSS_UNIT,
        anonymous=anonymous,
        mapped=mapped,
        status=process.returncode,
    )


def _memory(process: int) -> dict[str, int]:
    """Bytes by the names that Linux gives them."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
