"""Count the CPUs that this process may use: its affinity and the quota of its cgroup."""

from __future__ import annotations

import math
import os
from pathlib import Path

MAX_THREADS = 512


def available_threads() -> int:
    """Return how many CPUs this process may use: the smaller of its affinity and its cgroup's quota, rounded up.

    onnxruntime itself counts the cores of the machine, which oversubscribes a container.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def thread_limits() -> dict[str, float | None]:
    """Return the limits: the CPUs of the machine, the affinity of this process, the quota of its cgroup in CPUs."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"cpus": os.cpu_count(), "affinity": affinity, "cgroup_quota": cgroup_quota()}


def cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU quota of this process's cgroup (v2 or v1) in CPUs, None where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None
