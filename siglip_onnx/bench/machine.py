"""Describe the machine, its load and its software, which a reader needs to judge a figure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..system.cpu import read_cpu
from ..system.extras import package_version
from ..system.threads import available_threads

BUSY = 0.3  # load average per CPU above which something else is running
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "fma", "asimddp", "i8mm",
    "sve",
)  # fmt: skip
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_PACKAGES = ("numpy", "pillow", "tokenizers", "onnxruntime")


def describe_machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return the CPU, its int8 and bf16 instructions, threads, memory, load, versions and commit."""
    cpu, cpus, load = read_cpu(), available_threads(), load_average()
    return {
        "cpu": cpu.name,
        "cpu_flags": [flag for flag in _FLAGS if flag in cpu.flags],
        "threads": cpus,
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not visible",
        "hypervisor": cpu.virtual,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in dict.fromkeys([*_PACKAGES, *packages])},
        "siglip_onnx": __version__,
        "commit": _commit(),
        "load_average": list(load),
        "busy": is_busy(load, cpus),
    }


def has_bf16() -> bool:
    """Say whether the CPU has instructions for bf16."""
    return not _BF16_FLAGS.isdisjoint(read_cpu().flags)


def describe_briefly(machine: Mapping[str, Any]) -> str:
    """Return the sentence on the machine below a table."""
    flags = ", ".join(flag for flag in machine["cpu_flags"] if flag not in ("fma", "avx512f"))
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return f"Machine: {machine['cpu']}, {machine['threads']} cores, {flags}; Python {machine['python']}, {packages}."


def describe_busy(machine: Mapping[str, Any]) -> str:
    """Return a sentence if other work ran before the start, from the load averages; an empty text otherwise."""
    if not is_busy(machine["load_average"], machine["threads"]):
        return ""
    return f" The machine was busy before the start: load averages {describe_load(machine)}."


def describe_load(machine: Mapping[str, Any]) -> str:
    """Return the three load averages of a machine's description, in words."""
    return ", ".join(f"{value:.2f}" for value in machine["load_average"])


def is_busy(load: Sequence[float], cpus: int) -> bool:
    """Say whether other work ran in the last 1, 5 or 15 minutes, by the load averages."""
    return max(load) > BUSY * cpus


def load_average() -> tuple[float, float, float]:
    """Return the load average of 1, 5 and 15 minutes; zeros where the system has none."""
    return os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process ever had, mapped files included; 0 where unknown.

    Not from ``getrusage``: a process that was just started counts the memory of the one that started it there.
    """
    status = _read("/proc/self/status")
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return round(int(peak) / 1024, 1)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _commit() -> str | None:
    """Return the commit of the checkout that holds this package, with a plus sign if files were changed."""
    git, root = shutil.which("git"), Path(__file__).parents[2]
    if git is None or not (root / ".git").exists():
        return None
    commands = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    head, changed = (
        subprocess.run([git, "-C", str(root), *command], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
        for command in commands
    )
    return f"{head}+" if head and changed else head or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
