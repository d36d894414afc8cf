"""Instruction sets of the CPU, and how fast int8 runs on it."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

X86 = ("x86_64", "AMD64")
ARM = ("aarch64", "arm64")
# Those by which onnxruntime chooses its kernels.
FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sme",
)  # fmt: skip
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_DOT = {"asimddp", "i8mm"}


@dataclass(frozen=True)
class Cpu:
    """Architecture, name, and the instruction sets that matter; ``flags`` is empty where the system does not list them.

    ``virtual`` is true if the CPU reports a hypervisor.
    """

    architecture: str
    name: str
    flags: tuple[str, ...]
    virtual: bool = False


@dataclass(frozen=True)
class Int8Kernels:
    """Whether int8 runs fast, and why, in a sentence. It is always exact: see :func:`.int8_saturates`."""

    fast: bool
    why: str


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Return the CPU of this machine, as far as the system describes it."""
    entries: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip().lower(), value.strip())
    listed = set((entries.get("flags") or entries.get("features") or "").split())
    name = entries.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = tuple(flag for flag in FLAGS if flag in listed)
    return Cpu(platform.machine(), name, flags, virtual="hypervisor" in listed)


def int8_kernels(cpu: Cpu, *, saturation_safe: bool) -> Int8Kernels:
    """Return how a model's int8 layers run; ``saturation_safe`` if its weights are within 7 bits (``reduce_range``)."""
    if not cpu.flags:
        return Int8Kernels(fast=False, why="The system does not list the CPU's instructions.")
    if cpu.architecture in X86:
        return _x86_kernels(cpu.flags, saturation_safe)
    if cpu.architecture in ARM and not _DOT.isdisjoint(cpu.flags):
        return Int8Kernels(fast=True, why="The CPU has int8 instructions (dot product).")
    return Int8Kernels(fast=False, why="The CPU has no int8 instructions; fp32 may be as fast.")


def _x86_kernels(flags: Collection[str], saturation_safe: bool) -> Int8Kernels:
    if not _VNNI.isdisjoint(flags):
        return Int8Kernels(fast=True, why="The CPU has exact int8 instructions (VNNI).")
    if saturation_safe:
        return Int8Kernels(
            fast=True, why="No VNNI, but the weights are within 7 bits: older instructions do not saturate."
        )
    return Int8Kernels(
        fast=False,
        why="No VNNI: older instructions would saturate, so slower, exact ones are used. Faster here: a model exported "
        "with --reduce-range.",
    )
