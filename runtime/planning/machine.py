"""The machine a measurement was taken on."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = "not known on this system"
# What decides which kernels run; the last two are ARM's.
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def machine_facts() -> dict[str, str]:
    """Processor, its relevant instructions (Linux only), cores, memory in GB, system, Python."""
    facts = {"processor": platform.processor() or platform.machine(), "instructions": UNKNOWN}
    if CPUINFO.exists():
        lines = (line.partition(":") for line in CPUINFO.read_text(encoding="utf-8").splitlines())
        known = {key.strip(): value.strip() for key, _, value in lines}
        facts["processor"] = " ".join(
            known[key] for key in ("model name", "cpu family", "model", "stepping", "CPU part") if key in known
        )
        present = known.get("flags", known.get("Features", "")).split()
        facts["instructions"] = ", ".join(flag for flag in FLAGS if flag in present)
    facts["cores"] = str(os.cpu_count())
    if hasattr(os, "sysconf"):
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    return facts | {"system": platform.platform(), "python": platform.python_version()}
