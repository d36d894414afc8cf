"""Diagnose this installation: versions, CPU, threads, providers, telemetry, files, cache, and a self-test."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bundle.folder import Bundle, folder_problems, open_bundle, verify_folder
from .config import TOWERS
from .demo import BUNDLE_PATH, GOLDEN_PATH
from .demo import golden as golden_module
from .demo.golden import MIN_COSINE, Agreement, read_golden
from .errors import CacheError, SiglipOnnxError
from .hub.cache import cached_models, folder_size, leftovers
from .hub.choice import choices_folder, read_choice
from .model import SigLIP
from .session import (
    EXACT,
    FAST,
    OPENVINO,
    WITHOUT_KLEIDIAI,
    available_providers,
    import_openvino,
    int8_saturates,
    runtime_path,
    runtime_version,
)
from .session import int8_kernels as int8_kernels_here
from .system.cache_dir import cache_folder
from .system.cpu import Cpu, int8_kernels, read_cpu
from .system.extras import is_installed, owners_of, package_version
from .system.telemetry import telemetry_state
from .system.threads import available_threads, available_workers, memory_limits, thread_limits

OK, WARNING, FAILURE = "ok", "warning", "failure"
_NUMBER = re.compile(r"(\+|\.dev).*")  # what follows a version's number
REINSTALL = "Install siglip_onnx again."
PACKAGES = ("siglip_onnx", "onnxruntime", "numpy", "pillow", "tokenizers", "huggingface_hub", "click")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    ``state`` is ok, warning or failure; ``advice`` says what to do, and is empty if there is nothing to do.
    """

    question: str
    state: str
    answer: str
    advice: str
    facts: dict[str, Any]


def examine() -> Iterator[Finding]:
    """Run all checks, the quick ones first."""
    cpu = read_cpu()
    demo = open_bundle(BUNDLE_PATH)
    yield versions()
    yield runtime()
    yield int8(cpu, demo)
    yield threads()
    yield memory()
    yield providers()
    yield openvino(demo)
    yield telemetry()
    yield installed_files()
    yield self_test(demo, cpu)
    yield cache()
    yield choices()


def versions() -> Finding:
    """Report the installed versions."""
    packages = {name: package_version(name) or "not installed" for name in PACKAGES}
    facts = {"python": platform.python_version(), "system": platform.platform(), "packages": packages}
    listed = ", ".join(f"{name} {number}" for name, number in packages.items())
    return Finding("versions", OK, f"Python {facts['python']} on {facts['system']}; {listed}", "", facts)


def runtime() -> Finding:
    """Name the distributions that own the module onnxruntime, and the version that is loaded; report conflicts."""
    owners, version = owners_of("onnxruntime"), runtime_version()
    facts = {"distributions": owners, "loaded_version": version, "loaded_from": str(runtime_path())}
    listed = ", ".join(f"{name} {number}" for name, number in owners.items()) or "no distribution"
    answer = f"{version}, installed by {listed}"
    keep = next((name for name in owners if name != "onnxruntime"), "onnxruntime")
    advice = (
        f"Install only one, for example: pip uninstall -y {' '.join(owners)} && pip install --no-deps {keep} "
        "(docs/deploy.md)"
    )
    if len(owners) > 1:
        answer += ": they overwrite each other's files"
        return Finding("onnxruntime", WARNING, answer, advice, facts)
    if owners and not _same_version(version, *owners.values()):
        return Finding("onnxruntime", WARNING, f"{answer}, which is another version", advice, facts)
    return Finding("onnxruntime", OK, answer, "", facts)


def _same_version(loaded: str, recorded: str) -> bool:
    """Compare versions up to local parts and development suffixes, which modules often leave out."""
    return _NUMBER.sub("", loaded) == _NUMBER.sub("", recorded)


def int8(cpu: Cpu, bundle: Bundle) -> Finding:
    """Report how fast and how exact int8 is on this CPU."""
    variant = bundle.manifest.variants[bundle.choose_variant("int8")]
    safe = all(variant.within_7_bits(tower) for tower in TOWERS)
    kernels = int8_kernels(cpu, saturation_safe=safe)
    speed = "fast" if kernels.fast else "slow"
    state = OK if kernels.fast else WARNING
    right = int8_kernels_here()
    facts = {
        "cpu": asdict(cpu),
        "kernels": asdict(kernels),
        "demo_reduce_range": safe,
        "measured_saturation": int8_saturates(),
        "correct_kernels": right,
    }
    flags = ", ".join(cpu.flags) or "unknown instructions"
    if right is None:
        answer = (
            f"incorrect on {cpu.name} ({flags}). Measured: every kernel of onnxruntime {runtime_version()} is wrong."
        )
        advice = "The variant fp32 is used by default. Report this with the --json output."
        return Finding("int8", WARNING, answer, advice, facts)
    measured = {
        FAST: "the fast instructions do not saturate",
        EXACT: "the fast instructions saturate, and are not used where that matters",
        WITHOUT_KLEIDIAI: "the kernels of KleidiAI are wrong, and are not used",
    }[right]
    answer = f"{speed} and exact on {cpu.name} ({flags}). {kernels.why} Measured: {measured}."
    return Finding("int8", state, answer, "", facts)


def threads() -> Finding:
    """Report how many threads are used, and why."""
    limits: dict[str, Any] = thread_limits()
    used = available_threads()
    answer = f"{used} of {limits['cpus']} CPUs (affinity {limits['affinity']}, cgroup quota {limits['cgroup_quota']})"
    variable = os.environ.get("OMP_NUM_THREADS")
    facts = limits | {"used": used, "OMP_NUM_THREADS": variable}
    quota = limits["cgroup_quota"]
    if quota is not None and quota < 1:
        advice = "Give the container at least one CPU: with less, it is paused while it computes."
        return Finding("threads", WARNING, answer, advice, facts)
    return Finding("threads", OK, answer, "", facts)


def memory() -> Finding:
    """Report how much memory may be used, and for how many workers it suffices."""
    facts: dict[str, Any] = dict(memory_limits())
    workers, used = available_workers(), available_threads()
    facts["default_workers"] = workers
    sizes = {name: "unknown" if size is None else f"{size / 1e9:,.1f} GB" for name, size in memory_limits().items()}
    limit = "" if facts["cgroup_bytes"] is None else f", limited to {sizes['cgroup_bytes']} by a cgroup"
    answer = f"{sizes['machine_bytes']}{limit}; workers by default: {workers}"
    if workers < used:
        advice = f"Memory suffices for {workers} of {used} workers: raise the limit of the container or the job."
        return Finding("memory", WARNING, answer, advice, facts)
    return Finding("memory", OK, answer, "", facts)


def providers() -> Finding:
    """Report the available execution providers."""
    names = available_providers()
    return Finding("providers", OK, ", ".join(names), "", {"available": names})


def openvino(bundle: Bundle) -> Finding:
    """Name OpenVINO's version and devices, and compare its answers for the demo model with the stored ones."""
    if not is_installed("openvino"):
        return Finding("openvino", OK, "not installed", "", {"version": None})
    try:
        engine = import_openvino()
        agreement = golden_module.self_test(SigLIP(bundle, providers=[OPENVINO]), read_golden(GOLDEN_PATH))
    except (SiglipOnnxError, ImportError, RuntimeError) as error:
        return Finding("openvino", WARNING, str(error), "Install openvino again, or use no provider OpenVINO.", {})
    facts = {"version": engine.version(), "devices": engine.devices(), "int8_saturates": engine.int8_saturates(),
             "floor": MIN_COSINE, "found": asdict(agreement)}  # fmt: skip
    answer = f"{facts['version']} with {', '.join(facts['devices'])}; cosine to the stored answers"
    advice = "" if agreement.holds else "Use no provider OpenVINO on this machine."
    state = OK if agreement.holds else WARNING
    return Finding("openvino", state, f"{answer} {_lowest(agreement):.5f}", advice, facts)


def telemetry() -> Finding:
    """Check that the telemetry of onnxruntime is off."""
    facts = telemetry_state()
    if facts["off"]:
        return Finding("telemetry", OK, "off (siglip_onnx sets ORT_DISABLE_TELEMETRY)", "", facts)
    advice = "Set ORT_DISABLE_TELEMETRY=1 in the environment, or import siglip_onnx before onnxruntime."
    return Finding("telemetry", WARNING, "onnxruntime may send telemetry to its vendor", advice, facts)


def installed_files() -> Finding:
    """Check the files of the embedded demo model."""
    problems = verify_folder(BUNDLE_PATH)
    if problems:
        return Finding("demo files", FAILURE, "; ".join(problems), REINSTALL, {"problems": problems})
    return Finding("demo files", OK, "all match the manifest", "", {"problems": []})


def self_test(bundle: Bundle, cpu: Cpu) -> Finding:
    """Compare the answers of the demo model with stored ones; if int8 is wrong, report which kernels are right."""
    try:
        golden = read_golden(GOLDEN_PATH)
        model = SigLIP(bundle)
        agreement = golden_module.self_test(model, golden)
        exact = agreement if agreement.holds else golden_module.self_test(SigLIP(bundle, exact_int8=True), golden)
    except SiglipOnnxError as error:
        return Finding("self-test", FAILURE, str(error), REINSTALL, {})
    facts = {"variant": model.variant, "floor": MIN_COSINE, "found": asdict(agreement), "exact_kernels": asdict(exact),
             "golden": golden.provenance}  # fmt: skip
    answer = f"cosine to the stored answers {_lowest(agreement):.5f}, expected at least {MIN_COSINE}"
    if agreement.holds:
        return Finding("self-test", OK, answer, "", facts)
    return Finding("self-test", FAILURE, answer, _fallback(exact, cpu), facts)


def _lowest(agreement: Agreement) -> float:
    return min(agreement.image_cosine_min, agreement.text_cosine_min)


def _fallback(exact: Agreement, cpu: Cpu) -> str:
    if exact.holds:
        return (
            f"int8 saturates on {cpu.name}. The exact kernels of onnxruntime are right on it "
            f"(cosine {_lowest(exact):.5f}): export without --reduce-range, or use --variant fp32."
        )
    return f"int8 is wrong on {cpu.name} with every kernel: use --variant fp32, and report this with the --json output."


def cache() -> Finding:
    """Check that the cache can be written and that its models are not damaged."""
    try:
        folder = cache_folder()
    except CacheError as error:
        return Finding("cache", WARNING, str(error), "", {})
    writable = _is_writable(folder)
    models = cached_models()
    problems = {f"{model.name}@{model.revision[:12]}": folder_problems(model.folder) for model in models}
    damaged = {name: lines for name, lines in problems.items() if lines}
    left = leftovers()
    size_bytes = folder_size(folder) if folder.is_dir() else 0
    facts = {
        "folder": str(folder),
        "writable": writable,
        "size_bytes": size_bytes,
        "models": list(problems),
        "problems": damaged,
        "leftovers": [str(path) for path in left],
    }
    if damaged:
        answer = "; ".join(f"{name}: {', '.join(lines)}" for name, lines in damaged.items())
        return Finding("cache", FAILURE, answer, "Download again: siglip-onnx models pull NAME", facts)
    if not writable:
        advice = "Choose another folder with SIGLIP_ONNX_CACHE."
        return Finding("cache", WARNING, f"{folder} cannot be written", advice, facts)
    answer = f"{folder}; models: {len(models)}, size: {size_bytes / 1e6:,.1f} MB"
    if left:
        advice = "Remove the remains of interrupted or damaged downloads: siglip-onnx models rm NAME"
        return Finding("cache", WARNING, f"{answer}, leftovers: {len(left)}", advice, facts)
    return Finding("cache", OK, answer, "", facts)


def choices() -> Finding:
    """Name the choices of ``bench --choose``, and those that do not hold for this machine and its packages."""
    try:
        paths = sorted(choices_folder().glob("*.json"))
    except CacheError:
        paths = []
    lines, stale = [], {}
    for path in paths:
        try:
            choice = read_choice(path)
        except (OSError, ValueError) as error:
            stale[str(path)] = f"it cannot be read ({error})"
            continue
        if problem := choice.stale():
            stale[str(path)] = problem
        how = f"{choice.variant} with {choice.provider}, threads: {choice.threads}, workers: {choice.workers}"
        lines.append(f"{choice.model}: {how}")
    facts = {"files": list(map(str, paths)), "ignored": stale}
    answer = "; ".join(lines) or "none; one is made by: siglip-onnx bench MODEL --choose"
    if stale:
        advice = "Measure again with siglip-onnx bench MODEL --choose, or delete the file."
        ignored = "; ".join(f"{path} is ignored: {problem}" for path, problem in stale.items())
        return Finding("choices", WARNING, f"{answer}; {ignored}" if lines else ignored, advice, facts)
    return Finding("choices", OK, answer, "", facts)


def _is_writable(folder: Path) -> bool:
    """Say whether files can be created in a folder, or, if it does not exist yet, in its nearest existing parent."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
