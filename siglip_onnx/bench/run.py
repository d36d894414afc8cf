"""Plan and run ``siglip-onnx bench``: every variant of a model, and PyTorch if its checkpoint is given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..bundle.folder import Bundle
from ..config import DUAL
from ..errors import BenchmarkError
from ..system.extras import check_extra
from ..verify.accuracy import REFERENCE as FP32
from .backend import Configuration
from .machine import describe_load, describe_machine
from .schedule import Plan, Report, measure_rows, measure_throughput
from .schema import Document, Mode
from .timer import Limits

ENGINE, PYTORCH = "siglip_onnx.bench.engine", "siglip_onnx.bench.pytorch"
PYTORCH_FP32 = "PyTorch fp32"
QUICK = Limits(rounds=2, min_samples=16, min_seconds=1.0)
RATE_SECONDS = 1.0


def engine_name(variant: str, provider: str = "") -> str:
    """Return the name of a variant of this engine in tables."""
    return f"siglip_onnx {variant}, {provider}" if provider else f"siglip_onnx {variant}"


def engine_configuration(bundle: Bundle, variant: str, threads: int, provider: str = "") -> Configuration:
    """Return one variant of this engine."""
    return Configuration(
        engine_name(variant, provider), ENGINE, variant, str(bundle.path.resolve()), threads=threads,
        about="as the commands run it", provider=provider,
    )  # fmt: skip


def pytorch_configuration(bundle: Bundle, checkpoint: Path, threads: int) -> Configuration:
    """Return the reference.

    Raises:
        MissingExtraError: torch or transformers is not installed.
    """
    check_extra("train", "--reference", ("torch", "transformers"))
    return Configuration(
        PYTORCH_FP32, PYTORCH, "fp32", str(bundle.path.resolve()), checkpoint=str(checkpoint.resolve()),
        threads=threads, about="transformers, slow processors, scaled dot product attention, inference mode",
    )  # fmt: skip


def plan_bundle(
    bundle: Bundle,
    variants: Sequence[str],
    paths: Sequence[Path],
    texts: Sequence[str],
    *,
    checkpoint: Path | None,
    threads: int,
    limits: Limits,
    providers: Sequence[str] = ("",),
) -> Plan:
    """Return the plan for a bundle; the reference is PyTorch, or the fp32 variant, or else the accuracy card.

    Each variant runs with each of the ``providers``, of which an empty name is the default.

    Raises:
        BenchmarkError: the bundle does not have both towers.
    """
    if bundle.manifest.kind != DUAL:
        raise BenchmarkError(
            f"{bundle.path} is of kind {bundle.manifest.kind!r}; models with both towers can be measured. Compare its "
            "variants with: siglip-onnx verify"
        )
    configurations = [
        engine_configuration(bundle, variant, threads, provider) for variant in variants for provider in providers
    ]
    names = [configuration.name for configuration in configurations]
    reference = engine_name(FP32) if engine_name(FP32) in names else None
    if checkpoint is not None:
        configurations.insert(0, pytorch_configuration(bundle, checkpoint, threads))
        reference = PYTORCH_FP32
    elif reference is None and FP32 in bundle.manifest.variants:
        configurations.insert(0, engine_configuration(bundle, FP32, threads))
        reference = engine_name(FP32)
    return Plan(configurations, paths, texts, reference, limits=limits, repeated=frozenset(names))


def run_plan(plan: Plan, bundle: Bundle, report: Report) -> Document:
    """Measure a plan and return its document.

    Raises:
        BenchmarkError: nothing could be measured.
    """
    began = time.perf_counter()
    machine = describe_machine(("torch", "transformers"))
    if machine["busy"]:
        report(f"the load averages are {describe_load(machine)}: other work disturbs the measurement")
    measured = measure_rows(plan, report)
    if not measured.rows:
        raise BenchmarkError(f"Nothing could be measured: {'; '.join(measured.absent.values())}")
    throughput = []
    if measured.reference is not None and plan.limits != QUICK:
        throughput = measure_throughput(plan, throughput_modes(plan), measured.reference, RATE_SECONDS, report)
    return Document(
        model=bundle.manifest.model_name,
        machine=machine,
        settings=describe_settings(plan),
        rows=tuple(measured.rows),
        throughput=tuple(throughput),
        absent=measured.absent,
        seconds=round(time.perf_counter() - began, 1),
    )


def describe_settings(plan: Plan) -> dict[str, object]:
    """Return the settings of the measurement."""
    return {
        "rounds": plan.limits.rounds,
        "min_samples": plan.limits.min_samples,
        "min_seconds": plan.limits.min_seconds,
        "images": len(plan.paths),
        "texts": len(plan.texts),
        "reference": plan.reference,
    }


def throughput_modes(plan: Plan) -> list[Mode]:
    """Return the ways to use the threads: all for one image or a batch, one alone, and a worker each."""
    threads = plan.configurations[0].threads
    return list(dict.fromkeys([Mode(1, threads, 1), Mode(1, threads, 8), Mode(1, 1, 1), Mode(threads, 1, 1)]))
