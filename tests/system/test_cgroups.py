"""Limits of nested cgroups of versions 1 and 2, as systemd, Slurm, Docker and Kubernetes set them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_onnx.system import threads
from siglip_onnx.system.cgroups import cpu_quota, memory_limit

V2 = "/sys/fs/cgroup cgroup2"
NONE_V1 = "9223372036854771712"


def make_system(folder: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """Write ``/proc/self`` and the files of cgroups; a mount is ``MOUNT_POINT TYPE [CONTROLLERS [ROOT]]``."""
    process = folder / "proc" / "self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(groups)
    lines = []
    for mount in mounts:
        point, kind, controllers, root = [*mount.split(" "), "", ""][:4]
        lines.append(f"30 24 0:26 {root or '/'} {point} rw,nosuid shared:4 - {kind} cgroup rw,{controllers}\n")
    (process / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(lines))
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cpus", "memory"),
    [
        pytest.param("0::/\n", [V2], {"cpu.max": "150000 100000", "memory.max": "1000"}, 1.5, 1000, id="container"),
        pytest.param("0::/\n", [V2], {"cpu.max": "max 100000", "memory.max": "max"}, None, None, id="none"),
        pytest.param(
            "0::/system.slice/siglip.service\n", [V2],
            {"system.slice/siglip.service/cpu.max": "200000 100000", "system.slice/siglip.service/memory.high": "900",
             "system.slice/siglip.service/memory.max": "1000", "system.slice/memory.max": "max"},
            2.0, 900, id="systemd",
        ),
        pytest.param(
            "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n", [V2],
            {"system.slice/slurmstepd.scope/job_7/memory.max": "5000",
             "system.slice/slurmstepd.scope/job_7/step_0/memory.max": "4000",
             "system.slice/slurmstepd.scope/job_7/cpu.max": "50000 100000",
             "system.slice/slurmstepd.scope/job_7/step_0/user/task_0/cpu.max": "max 100000"},
            0.5, 4000, id="slurm on a parent",
        ),
        pytest.param(
            "0::/kubepods.slice/pod1/c1\n", [f"{V2}  /kubepods.slice/pod1/c1"],
            {"cpu.max": "300000 100000", "memory.max": "7000"}, 3.0, 7000, id="host path, group mounted",
        ),
        pytest.param("0::/../other\n", [V2], {"cpu.max": "100000 100000"}, 1.0, None, id="outside of the namespace"),
        pytest.param(
            "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n",
            ["/sys/fs/cgroup/cpu,cpuacct cgroup cpu,cpuacct", "/sys/fs/cgroup/memory cgroup memory"],
            {"cpu,cpuacct/docker/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
             "cpu,cpuacct/docker/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/cpu.cfs_period_us": "100000",
             "memory/docker/a/memory.limit_in_bytes": "6000", "memory/memory.limit_in_bytes": NONE_V1},
            0.5, 6000, id="version 1",
        ),
        pytest.param(
            "2:memory:/docker/a\n0::/\n",
            ["/sys/fs/cgroup/memory cgroup memory /docker/a", "/sys/fs/cgroup/unified cgroup2"],
            {"memory/memory.limit_in_bytes": "6000", "unified/cpu.max": "100000 50000"}, 2.0, 6000, id="hybrid",
        ),
        pytest.param(
            "0::/a\n", [r"/sys/fs/cgroup/my\040mount cgroup2"], {"my mount/a/memory.max": "5"}, None, 5, id="space",
        ),
        pytest.param("0::/\n", [V2], {"cpu.max": "0 0", "memory.max": "\xff"}, None, None, id="nonsense"),
    ],
)  # fmt: skip
def test_smallest_limit_of_all_groups(
    tmp_path: Path, groups: str, mounts: list[str], files: dict[str, str], cpus: float | None, memory: int | None
) -> None:
    system = make_system(tmp_path, groups, mounts, files)
    assert cpu_quota(system) == cpus
    assert memory_limit(system) == memory


def test_system_without_cgroups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "model_bytes", "expected"),
    [(None, 0, 8), (10**12, 0, 8), (10**9, 0, 3), (10**9, 600_000_000, 1), (10**8, 0, 1)],
)
def test_default_workers_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: int | None,
    model_bytes: int,
    expected: int,
) -> None:
    monkeypatch.setattr(threads, "available_threads", lambda: 8)
    monkeypatch.setattr(threads, "memory_limits", lambda: {"machine_bytes": None, "cgroup_bytes": limit})
    assert threads.available_workers(model_bytes) == expected
    assert ("workers are used" in caplog.text) == (expected < 8)


@contextlib.contextmanager
def new_group(parent: Path) -> Iterator[Path]:
    """Make a cgroup of version 1; skip where this process may not."""
    group = parent / f"siglip_onnx_{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def test_limits_of_a_real_group() -> None:
    code = "from siglip_onnx.system.cgroups import cpu_quota, memory_limit; print(cpu_quota(), memory_limit())"
    groups = Path("/sys/fs/cgroup")
    with new_group(groups / "cpu") as cpu, new_group(cpu) as inner, new_group(groups / "memory") as memory:
        try:
            (cpu / "cpu.cfs_quota_us").write_text("70000")
            (memory / "memory.limit_in_bytes").write_text("500000000")
        except OSError as error:
            pytest.skip(f"no limits can be set: {error}")
        enter = f'echo $$ > {inner}/cgroup.procs && echo $$ > {memory}/cgroup.procs && exec "$0" -c "$1"'
        output = subprocess.check_output(["/bin/sh", "-c", enter, sys.executable, code], text=True)
    quota, limit = output.split()
    assert float(quota) == 0.7
    assert abs(int(limit) - 500_000_000) < 4096
