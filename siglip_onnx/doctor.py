"""Whether this machine runs the models as it should: one finding per question, and the facts behind it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bundle.folder import Bundle, open_bundle, verify_folder
from .bundle.manifest import TOWERS
from .demo import BUNDLE_PATH as DEMO_PATH
from .demo import GOLDEN_PATH
from .demo import golden as golden_module
from .demo.golden import MIN_COSINE, Agreement, read_golden
from .errors import CacheError, SiglipOnnxError
from .hub.cache import cached_models, folder_size, leftovers
from .model import SigLIP
from .session import available_providers, int8_saturates
from .system.cache_dir import cache_folder
from .system.cpu import Cpu, int8_kernels, read_cpu
from .system.packages import package_version
from .system.telemetry import telemetry_state
from .system.threads import available_threads, thread_limits

OK, WARNING, FAILURE = "ok", "warning", "failure"
PACKAGES = ("siglip_onnx", "onnxruntime", "numpy", "pillow", "tokenizers", "huggingface_hub", "click")


@dataclass(frozen=True)
class Finding:
    """The answer to one question: ``state`` is ok, warning or failure; ``advice`` says what to do, if anything."""

    question: str
    state: str
    answer: str
    advice: str
    facts: dict[str, Any]


def examine() -> Iterator[Finding]:
    """Yield all findings, the quick ones first."""
    cpu = read_cpu()
    demo = open_bundle(DEMO_PATH)
    yield versions()
    yield int8(cpu, demo)
    yield threads()
    yield providers()
    yield telemetry()
    yield installed_files()
    yield self_test(demo, cpu)
    yield cache()


def versions() -> Finding:
    """Say what is installed."""
    found = {name: package_version(name) or "not installed" for name in PACKAGES}
    facts = {"python": platform.python_version(), "system": platform.platform(), "packages": found}
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    return Finding("versions", OK, f"Python {facts['python']} on {facts['system']}; {listed}", "", facts)


def int8(cpu: Cpu, bundle: Bundle) -> Finding:
    """Say what the CPU means for int8."""
    variant = bundle.manifest.variants[bundle.choose_variant("int8")]
    safe = all(variant.within_7_bits(tower) for tower in TOWERS)
    kernels = int8_kernels(cpu, saturation_safe=safe)
    speed = "fast" if kernels.fast else "slow"
    state = OK if kernels.fast else WARNING
    saturates = int8_saturates()
    facts = {
        "cpu": asdict(cpu),
        "kernels": asdict(kernels),
        "demo_reduce_range": safe,
        "measured_saturation": saturates,
    }
    flags = ", ".join(cpu.flags) or "unknown instructions"
    measured = "saturate, and are not used where they would" if saturates else "do not saturate"
    answer_ = f"{speed} and exact on {cpu.name} ({flags}). {kernels.why} Measured: the fast instructions {measured}."
    return Finding("int8", state, answer_, "", facts)


def threads() -> Finding:
    """Say how many threads are used and why."""
    limits: dict[str, Any] = thread_limits()
    used = available_threads()
    answer_ = f"{used} of {limits['cpus']} CPUs (affinity {limits['affinity']}, cgroup quota {limits['cgroup_quota']})"
    variable = os.environ.get("OMP_NUM_THREADS")
    facts = limits | {"used": used, "OMP_NUM_THREADS": variable}
    quota = limits["cgroup_quota"]
    if quota is not None and quota < 1:
        return Finding("threads", WARNING, answer_, "Give the container a whole CPU: runs are halted meanwhile.", facts)
    return Finding("threads", OK, answer_, "", facts)


def providers() -> Finding:
    """Say which execution providers there are."""
    found = available_providers()
    return Finding("providers", OK, ", ".join(found), "", {"available": found})


def telemetry() -> Finding:
    """Say whether onnxruntime reports to its maker."""
    facts = telemetry_state()
    if facts["off"]:
        return Finding("telemetry", OK, "off (ORT_DISABLE_TELEMETRY is set, as siglip_onnx does)", "", facts)
    advice = "Set ORT_DISABLE_TELEMETRY=1 in the environment, or import siglip_onnx before onnxruntime."
    return Finding("telemetry", WARNING, "onnxruntime may report to its maker", advice, facts)


def installed_files() -> Finding:
    """Say whether the embedded model is whole."""
    problems = verify_folder(DEMO_PATH)
    if problems:
        return Finding("demo files", FAILURE, "; ".join(problems), "Install siglip_onnx again.", {"problems": problems})
    return Finding("demo files", OK, "all as their manifest says", "", {"problems": []})


def self_test(bundle: Bundle, cpu: Cpu) -> Finding:
    """Compare the demo model's answers with stored ones; where int8 is off, say which kernels are not."""
    try:
        golden = read_golden(GOLDEN_PATH)
        model = SigLIP(bundle)
        found = golden_module.self_test(model, golden)
        exact = found if found.holds else golden_module.self_test(SigLIP(bundle, exact_int8=True), golden)
    except SiglipOnnxError as error:
        return Finding("self-test", FAILURE, str(error), "Install siglip_onnx again.", {})
    facts = {"variant": model.variant, "floor": MIN_COSINE, "found": asdict(found), "exact_kernels": asdict(exact),
             "golden": golden.provenance}  # fmt: skip
    answer_ = f"cosine to the stored answers {_lowest(found):.5f}, at least {MIN_COSINE} is right"
    if found.holds:
        return Finding("self-test", OK, answer_, "", facts)
    return Finding("self-test", FAILURE, answer_, _fallback(exact, cpu), facts)


def _lowest(agreement: Agreement) -> float:
    return min(agreement.image_cosine_min, agreement.text_cosine_min)


def _fallback(exact: Agreement, cpu: Cpu) -> str:
    if exact.holds:
        return (
            f"int8 saturates on {cpu.name}. onnxruntime's exact kernels are right here "
            f"(cosine {_lowest(exact):.5f}): export without --reduce-range, or use --variant fp32."
        )
    return f"int8 is wrong on {cpu.name} with every kernel: use --variant fp32, and report this with the --json output."


def cache() -> Finding:
    """Say whether the cache can be used, and whether its models are whole."""
    try:
        folder = cache_folder()
    except CacheError as error:
        return Finding("cache", WARNING, str(error), "", {})
    writable = _is_writable(folder)
    models = cached_models()
    problems = {f"{model.name}@{model.revision[:12]}": _problems(model.folder) for model in models}
    broken = {name: lines for name, lines in problems.items() if lines}
    left = leftovers()
    size_bytes = folder_size(folder) if folder.is_dir() else 0
    facts = {
        "folder": str(folder),
        "writable": writable,
        "size_bytes": size_bytes,
        "models": list(problems),
        "problems": broken,
        "leftovers": [str(path) for path in left],
    }
    if broken:
        told = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in broken.items())
        return Finding("cache", FAILURE, told, "Fetch it again: siglip-onnx models pull NAME", facts)
    if not writable:
        return Finding("cache", WARNING, f"{folder} cannot be written", "Name another with SIGLIP_ONNX_CACHE.", facts)
    answer_ = f"{folder}: {len(models)} models, {size_bytes / 1e6:,.1f} MB"
    if left:
        advice = "Remove what is left of interrupted or damaged downloads: siglip-onnx models rm NAME"
        return Finding("cache", WARNING, f"{answer_}, and {len(left)} leftovers", advice, facts)
    return Finding("cache", OK, answer_, "", facts)


def _problems(folder: Path) -> list[str]:
    try:
        return verify_folder(folder)
    except SiglipOnnxError as error:
        return [str(error)]


def _is_writable(folder: Path) -> bool:
    """Say whether files can be made there; a folder that is not there yet is asked for by its nearest parent."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
