"""Count the CPUs that this process may use, and the workers for which its memory suffices."""

from __future__ import annotations

import logging
import math
import os

from .cgroups import cpu_quota, memory_limit

MAX_THREADS = 512
# Of a worker besides its model; measured with photos of 12 megapixels: 40 MB, and 166 MB of its decoder process.
WORKER_BYTES = 300_000_000
_log = logging.getLogger(__name__)


def available_threads() -> int:
    """Return how many CPUs this process may use: the smaller of its affinity and its cgroups' quota, rounded up.

    onnxruntime itself counts the cores of the machine, which oversubscribes a container.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def available_workers(model_bytes: int = 0) -> int:
    """Return how many workers to use by default: one per CPU, as far as the memory limit suffices, and at least one.

    Args:
        model_bytes: memory of the model in each worker; 0 for threads, which share it.
    """
    threads, limit = available_threads(), memory_bytes()
    fitting = threads if limit is None else max(1, min(threads, limit // (WORKER_BYTES + model_bytes)))
    if fitting < threads:
        _log.warning(
            "%d of %d possible workers are used, because memory is limited to %.1f GB. Raise the limit, or choose the "
            "number with --workers.", fitting, threads, (limit or 0) / 1e9,
        )  # fmt: skip
    return fitting


def thread_limits() -> dict[str, float | None]:
    """Return the limits: the CPUs of the machine, the affinity of this process, the quota of its cgroups in CPUs."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"cpus": os.cpu_count(), "affinity": affinity, "cgroup_quota": cgroup_quota()}


def memory_limits() -> dict[str, int | None]:
    """Return the memory of the machine and the limit of this process's cgroups, in bytes; None where unknown."""
    return {"machine_bytes": _machine_bytes(), "cgroup_bytes": memory_limit()}


def memory_bytes() -> int | None:
    """Return the memory that this process may use, the smaller of both limits; None where none is known."""
    return min((limit for limit in memory_limits().values() if limit is not None), default=None)


def cgroup_quota() -> float | None:
    """Return the CPU quota of this process's cgroups (v2 or v1) in CPUs, None where there is none."""
    return cpu_quota()


def _machine_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a system with sysconf
        return None
