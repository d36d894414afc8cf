"""What can be measured: this engine's variants and every peer, exported and converted beforehand.

Everything that is made lies in one folder and is made once: the random checkpoint, the bundle, each peer's files.
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
from fresh import in_fresh_process
from processes import measure_export

from siglip_onnx.bench.contestant import Configuration
from siglip_onnx.bench.run import PYTORCH_FP32, engine_configuration, pytorch_configuration
from siglip_onnx.bundle.folder import Bundle, open_bundle

VARIANTS = ("fp32", "int8", "q4", "fp16")
NUM_PICTURES, NUM_CALIBRATION = 12, 64


@dataclass(frozen=True)
class Catalog:
    """All configurations of one checkpoint, the reference first, and why others are absent.

    ``conversion_seconds`` says what each conversion took, ``export`` what the export to fp32 and int8 did.
    """

    bundle: Bundle
    configurations: list[Configuration]
    absent: dict[str, str]
    conversion_seconds: dict[str, float]
    export: dict[str, Any]


def open_catalog(
    folder: Path, checkpoint: Path, calibration: Sequence[Path], threads: int, only: Sequence[str]
) -> Catalog:
    """Prepare what is not there yet, and return what can be measured; ``only`` is parts of names, empty for all."""
    bundle, export = prepare_bundle(checkpoint, folder / "bundle")
    peers, absent, seconds = prepare_peers(bundle, checkpoint, folder, calibration, threads, only)
    ours = [engine_configuration(bundle, variant, threads) for variant in bundle.manifest.variants]
    return Catalog(bundle, peers + [one for one in ours if wanted(one.name, only)], absent, seconds, export)


def tell(line: str) -> None:
    """Say what happens, on stderr."""
    click.echo(line, err=True)


def wanted(name: str, only: Sequence[str]) -> bool:
    """Say whether a configuration is to be measured; the reference always is."""
    return not only or name == PYTORCH_FP32 or any(part in name for part in only)


def choose_pictures(images: Path) -> list[Path]:
    """Return pictures to measure on, and behind them others to calibrate on, evenly from the whole folder."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < NUM_PICTURES + 1:
        raise click.UsageError(f"{images} holds {len(found)} pictures; at least {NUM_PICTURES + 1} are needed.")
    measured = [found[number * len(found) // NUM_PICTURES] for number in range(NUM_PICTURES)]
    others = [path for path in found if path not in measured]
    step = max(1, len(others) // NUM_CALIBRATION)
    return measured + others[::step][:NUM_CALIBRATION]


def random_checkpoint(path: Path, spiece: Path | None) -> Path:
    """Return the random checkpoint, made if it is not there."""
    if not (path / "spiece.model").exists():
        if spiece is None:
            raise click.UsageError("Give --checkpoint, or --spiece to make a random one.")
        tell(f"making {path}")
        in_fresh_process(make_checkpoint, path, spiece)
    return path


def prepare_bundle(checkpoint: Path, path: Path) -> tuple[Bundle, dict[str, Any]]:
    """Return the bundle with every variant, and what it cost to export fp32 and int8."""
    facts = path.with_name("export.json")
    if not facts.exists():
        tell("exporting fp32 and int8, measured, and then every variant")
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
    """Return the peers that can be measured here, why others cannot, and the seconds that each conversion took."""
    reference = pytorch_configuration(bundle, checkpoint, threads)
    configurations, absent, seconds = [reference], {}, {}
    for module, found in in_fresh_process(describe_backends).items():
        if isinstance(found, str):
            absent[module] = found
            continue
        for variant, (name, about) in found.items():
            work = folder / f"{module}_{variant.replace(' ', '_')}"
            one = replace(reference, name=name, backend=f"backends.{module}", variant=variant, work=str(work),
                          about=about)  # fmt: skip
            if not wanted(name, only):
                continue
            reason = prepare_peer(one, calibration)
            if reason:
                absent[name] = reason
            else:
                configurations.append(one)
                seconds[name] = float((work / "seconds").read_text(encoding="utf-8"))
    return configurations, absent, seconds


def describe_backends() -> dict[str, dict[str, tuple[str, str]] | str]:
    """Return the variants of every backend, or what its packages lack; in a process of its own."""
    found: dict[str, dict[str, tuple[str, str]] | str] = {}
    for name in MODULES:
        try:
            module = import_module(f"backends.{name}")
            for needed in module.NEEDS:
                import_module(needed)
            found[name] = module.VARIANTS
        except ImportError as error:
            found[name] = f"not installed: {error.name or error}"
    return found


def prepare_peer(configuration: Configuration, calibration: Sequence[Path]) -> str:
    """Convert what the backend needs, if that was not done before; returns why it failed, if it did."""
    work = Path(configuration.work)
    if (work / "seconds").exists():
        return ""
    tell(f"preparing {configuration.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    began = time.perf_counter()
    try:
        in_fresh_process(convert, configuration, calibration)
    except Exception as error:  # whatever a peer raises is why it is absent
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1:] or ['']}"
        tell(f"{configuration.name} cannot be prepared: {reason}")
        return reason
    (work / "seconds").write_text(f"{time.perf_counter() - began:.1f}", encoding="utf-8")
    return ""


def convert(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Let a backend prepare, in a process of its own."""
    import_module(configuration.backend).prepare(configuration, calibration)
