"""Read the limits of this process's cgroups: CPUs and memory, in version 1 and version 2.

A limit of any group above the process holds too: systemd, Slurm and Kubernetes set theirs on a parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60  # version 1 writes the largest multiple of a page where there is no limit


def cpu_quota(system: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of the groups, in CPUs; None where there is none."""
    return _smallest(system, "cpu", _quota_of_group)


def memory_limit(system: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of the groups, in bytes; None where there is none."""
    limit = _smallest(system, "memory", _memory_of_group)
    return None if limit is None else int(limit)


def _smallest(system: Path, controller: str, read: Callable[[Path], Iterator[float]]) -> float | None:
    return min((limit for folder in _folders(system, controller) for limit in read(folder)), default=None)


def _quota_of_group(folder: Path) -> Iterator[float]:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # others are "max" and "-1"
        yield int(quota) / int(period)


def _memory_of_group(folder: Path) -> Iterator[float]:
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        limit = _read(folder / name)
        if limit.isdecimal() and int(limit) < _UNLIMITED_BYTES:
            yield int(limit)


def _folders(system: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups that a controller may limit, from the innermost to the root."""
    mounts = list(_mounts(system, controller))
    for line in _read(system / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version_2 = number == "0" and not controllers
        if not version_2 and controller not in controllers.split(","):
            continue
        for mount_version_2, root, mount_point in mounts:
            if mount_version_2 == version_2:
                yield from _up_to(system / mount_point.lstrip("/"), root, group)


def _up_to(mount: Path, root: str, group: str) -> Iterator[Path]:
    """Yield a group's folder and those above it, up to where the hierarchy is mounted.

    A container often sees only its own group, mounted where the root would be, while the path of the group is that of
    the host: the part below ``root``, the mounted group, counts.
    """
    path = PurePosixPath(group)
    inside = path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else PurePosixPath()
    for folder in (inside, *inside.parents):
        yield mount / folder


def _mounts(system: Path, controller: str) -> Iterator[tuple[bool, str, str]]:
    """Yield whether it is version 2, the mounted group and the mount point of each hierarchy with a controller.

    Source: proc_pid_mountinfo(5)
    """
    for line in _read(system / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        _, _, _, root, mount_point, *_ = [*mount.split(" "), "", "", "", "", ""]
        kind, _, options = [*filesystem.split(" "), "", ""][:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield kind == "cgroup2", _unescape(root), _unescape(mount_point)


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _read(path: Path) -> str:
    """Return a small file's text; empty where it does not exist or may not be read, as on other systems."""
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""
