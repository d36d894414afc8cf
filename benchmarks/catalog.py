"""Prepare what is measured: this engine's variants and every peer, exported and converted beforehand.

Everything is kept in one folder and made once: the random checkpoint, the bundle, each peer's files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from backends import MODULES
from checkpoint import make_checkpoint
from commands import measure_export
from fresh_process import in_fresh_process

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.choose import engines
from siglip_onnx.bench.machine import has_bf16
from siglip_onnx.bench.process import last_line
from siglip_onnx.bench.run import PYTORCH_FP32, engine_configuration, engine_name, pytorch_configuration
from siglip_onnx.bundle.folder import Bundle, open_bundle

VARIANTS = ("fp32", "int8", "qdq")
WITH_OPENVINO = ("int8", "qdq")
NUM_IMAGES, NUM_CALIBRATION = 12, 64
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Catalog:
    """All configurations of one checkpoint, the reference first, and the reasons why others are absent.

    ``baseline`` is this engine's default, to which the ratios are. ``conversion_seconds`` holds the time of each
    conversion, ``export`` that of the export to fp32 and int8.
    """

    bundle: Bundle
    configurations: list[Configuration]
    baseline: Configuration
    absent: dict[str, str]
    conversion_seconds: dict[str, float]
    export: dict[str, Any]


def open_catalog(
    folder: Path, checkpoint: Path, calibration: Sequence[Path], threads: int, only: Sequence[str]
) -> Catalog:
    """Prepare what is missing, and return what can be measured; ``only`` holds parts of names, empty for all."""
    bundle, export = prepare_bundle(checkpoint, folder / "bundle")
    peers, absent, seconds = prepare_peers(bundle, checkpoint, folder, calibration, threads, only)
    chosen = [configuration for configuration in list_ours(bundle, threads) if is_chosen(configuration.name, only)]
    baseline = replace(engine_configuration(bundle, "int8", threads), name=f"{engine_name('int8')}, baseline")
    return Catalog(bundle, peers + chosen, baseline, absent, seconds, export)


def list_ours(bundle: Bundle, threads: int) -> list[Configuration]:
    """Return this engine's variants, and those for OpenVINO under it, also with bf16 where the CPU has that."""
    ours = [engine_configuration(bundle, variant, threads) for variant in bundle.manifest.variants]
    _, *others = engines()
    return ours + [
        replace(engine_configuration(bundle, variant, threads, engine.provider), settings=engine.settings,
                name=engine_name(variant, engine.name), about=f"providers=[{(engine.provider, dict(engine.settings))}]")
        for engine in others for variant in WITH_OPENVINO
    ]  # fmt: skip


def log(line: str) -> None:
    """Print progress on stderr."""
    click.echo(line, err=True)


def is_chosen(name: str, only: Sequence[str]) -> bool:
    """Say whether a configuration is measured; the reference always is."""
    return not only or name == PYTORCH_FP32 or any(part in name for part in only)


def choose_images(images: Path) -> list[Path]:
    """Return images to measure, followed by others for calibration, evenly from the whole folder."""
    paths = list_images(images)
    if len(paths) < NUM_IMAGES + 1:
        raise click.UsageError(f"{images} holds {len(paths)} images; expected at least {NUM_IMAGES + 1}.")
    measured = [paths[number * len(paths) // NUM_IMAGES] for number in range(NUM_IMAGES)]
    others = [path for path in paths if path not in measured]
    step = max(1, len(others) // NUM_CALIBRATION)
    return measured + others[::step][:NUM_CALIBRATION]


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and of those inside it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def random_checkpoint(path: Path, spiece: Path | None) -> Path:
    """Return the random checkpoint, which is made if it is missing."""
    if not (path / "spiece.model").exists():
        if spiece is None:
            raise click.UsageError("Give --checkpoint, or --spiece to make a random one.")
        log(f"making {path}")
        in_fresh_process(make_checkpoint, path, spiece)
    return path


def prepare_bundle(checkpoint: Path, path: Path) -> tuple[Bundle, dict[str, Any]]:
    """Return the bundle with every variant, and the cost of exporting fp32 and int8."""
    facts = path.with_name("export.json")
    if not facts.exists():
        log("exporting fp32 and int8, measured, and then every variant")
        cost = measure_export(checkpoint, path)
        in_fresh_process(export_all, checkpoint, path)
        facts.write_text(json.dumps({"export to fp32 and int8": cost}), encoding="utf-8")
    return open_bundle(path), json.loads(facts.read_text(encoding="utf-8"))


def export_all(checkpoint: Path, path: Path) -> None:
    """Export every variant."""
    from siglip_onnx.export.pipeline import export_bundle  # noqa: PLC0415 - in a process of its own

    export_bundle(checkpoint, path, precisions=VARIANTS, min_cosine=0, overwrite=True)


def prepare_peers(
    bundle: Bundle, checkpoint: Path, folder: Path, calibration: Sequence[Path], threads: int, only: Sequence[str]
) -> tuple[list[Configuration], dict[str, str], dict[str, float]]:
    """Return the peers that can be measured here, why others cannot, and the seconds of each conversion."""
    reference = pytorch_configuration(bundle, checkpoint, threads)
    configurations, absent, seconds = [reference], {}, {}
    for module, variants in in_fresh_process(describe_backends).items():
        if isinstance(variants, str):
            absent[module] = variants
            continue
        for variant, (name, about) in variants.items():
            work = folder / f"{module}_{variant.partition(',')[0].replace(' ', '_')}"
            peer = replace(reference, name=name, backend=f"backends.{module}", variant=variant, work=str(work),
                           about=about)  # fmt: skip
            if not is_chosen(name, only):
                continue
            reason = "this CPU has no instructions for bf16" if "bf16" in name and not has_bf16() else ""
            reason = reason or prepare_peer(peer, calibration)
            if reason:
                absent[name] = reason
            else:
                configurations.append(peer)
                seconds[name] = float((work / "seconds").read_text(encoding="utf-8"))
    return configurations, absent, seconds


def describe_backends() -> dict[str, dict[str, tuple[str, str]] | str]:
    """Return the variants of every backend, or the package that it lacks; run it in a fresh process."""
    backends: dict[str, dict[str, tuple[str, str]] | str] = {}
    for name in MODULES:
        try:
            module = import_module(f"backends.{name}")
            for needed in module.NEEDS:
                import_module(needed)
            backends[name] = module.VARIANTS
        except ImportError as error:
            backends[name] = f"not installed: {error.name or error}"
    return backends


def prepare_peer(configuration: Configuration, calibration: Sequence[Path]) -> str:
    """Convert the checkpoint for a backend, unless that was done before; return the reason if it failed."""
    work = Path(configuration.work)
    if (work / "seconds").exists():
        return ""
    log(f"preparing {configuration.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    began = time.perf_counter()
    try:
        in_fresh_process(convert, configuration, calibration)
    except Exception as error:  # any failure of a peer is the reason why it is absent
        reason = f"{type(error).__name__}: {last_line(str(error))}"
        log(f"{configuration.name} cannot be prepared: {reason}")
        return reason
    (work / "seconds").write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
    return ""


def convert(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Let a backend convert the checkpoint; run it in a fresh process."""
    import_module(configuration.backend).prepare(configuration, calibration)
