"""The full suite: this engine beside every peer, on one checkpoint and the same pictures, in one run.

    python benchmarks/suite.py --images FOLDER --spiece spiece.model
    python benchmarks/suite.py --images FOLDER --checkpoint CHECKPOINT --name demo

Without --checkpoint a random one of the shapes of google/siglip-base-patch16-256-multilingual is made. Exports and
conversions are made first, once, and kept in --work; --prepare-only ends there. Writes benchmarks/results/NAME.json;
`make report` turns that into tables and plots.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from backends import MODULES
from checkpoint import make_checkpoint
from fresh import RESULTS, in_fresh_process
from limit import measure_limit
from PIL import Image
from processes import measure_commands, measure_export

from siglip_onnx.bench.contestant import Configuration
from siglip_onnx.bench.engine import FAST_DECODE
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.run import (
    PYTORCH_FP32,
    QUICK,
    describe_settings,
    engine_configuration,
    engine_name,
    pytorch_configuration,
)
from siglip_onnx.bench.schedule import Mode, Plan, measure_rows, measure_throughput
from siglip_onnx.bench.schema import Document
from siglip_onnx.bench.timer import Limits
from siglip_onnx.bundle import Bundle, open_bundle
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.export.verify import SAMPLE_TEXTS
from siglip_onnx.session import available_threads

HERE = Path(__file__).parent
VARIANTS = ("fp32", "int8", "q4", "fp16")
PHOTOGRAPHS, LARGE = "photographs", "12-megapixel photographs"
LARGE_SIZE = (4000, 3000)
NUM_PICTURES, NUM_LARGE, NUM_CALIBRATION = 16, 8, 64
RATE_SECONDS = 2.0
# Whose throughput is measured too: the reference, and the fastest of each runtime.
RATED = (PYTORCH_FP32, "PyTorch bf16", "optimum-onnx int8", "OpenVINO bf16", "OpenVINO NNCF int8", engine_name("fp32"),
         engine_name("int8"))  # fmt: skip


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Instead of a random one.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), help="A SentencePiece model, to make one.")
@click.option("--name", default="base_multilingual", show_default=True, help="Of the results.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
@click.option("--threads", type=click.IntRange(1, 512), default=available_threads, help="All this process may use.")
@click.option("--only", multiple=True, help="Part of the names of configurations; repeat for more.")
@click.option("--quick", is_flag=True, help="A glance: 2 rounds, few samples, no throughput, no export.")
@click.option("--prepare-only", is_flag=True, help="Make exports and conversions, and measure nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Instead of benchmarks/results/NAME.json.")
def main(
    images: Path,
    checkpoint: Path | None,
    spiece: Path | None,
    name: str,
    work: Path,
    threads: int,
    only: tuple[str, ...],
    quick: bool,
    prepare_only: bool,
    out: Path | None,
) -> None:
    """Prepare, measure, write."""
    folder = work / name
    checkpoint = checkpoint or random_checkpoint(folder / "checkpoint", spiece)
    paths = choose_pictures(images)
    measured, calibration = paths[:NUM_PICTURES], paths[NUM_PICTURES:]
    bundle, export = prepare_bundle(checkpoint, folder / "bundle")
    configurations, absent, conversions = prepare_peers(bundle, checkpoint, folder, calibration, threads)
    configurations += [engine_configuration(bundle, variant, threads) for variant in bundle.manifest.variants]
    configurations = [one for one in configurations if wanted(one.name, only)]
    if prepare_only:
        return
    plan = Plan(
        configurations, measured, SAMPLE_TEXTS, PYTORCH_FP32, PHOTOGRAPHS, QUICK if quick else Limits(),
        repeated=frozenset({engine_name("int8")}), search_path=(HERE,),
    )  # fmt: skip
    document = measure(plan, large_plan(plan, bundle, folder), bundle, folder, quick=quick)
    document = replace(
        document,
        absent=absent | document.absent,
        processes=dict(document.processes) | export,
        settings=dict(document.settings) | {"conversion_seconds": conversions},
    )
    path = out or RESULTS / f"{name}.json"
    path.write_text(document.to_json(), encoding="utf-8")
    tell(f"wrote {path} after {document.seconds:.0f} s of measuring")


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
    bundle: Bundle, checkpoint: Path, folder: Path, calibration: Sequence[Path], threads: int
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


def large_plan(plan: Plan, bundle: Bundle, folder: Path) -> Plan:
    """Return the plan of 12-megapixel pictures: what fast decode is for, beside exact decoding and PyTorch."""
    large = [enlarge(path, folder / "large") for path in plan.paths[:NUM_LARGE]]
    fast = replace(engine_configuration(bundle, f"int8, {FAST_DECODE}", plan.configurations[0].threads),
                   about="JPEGs decoded at four times the model's size, resized with reducing_gap")  # fmt: skip
    chosen = [one for one in plan.configurations if one.name in (PYTORCH_FP32, engine_name("int8"))]
    return replace(plan, configurations=[*chosen, fast], paths=large, texts=plan.texts[:NUM_LARGE], inputs=LARGE,
                   repeated=frozenset())  # fmt: skip


def enlarge(path: Path, folder: Path) -> Path:
    """Return a photograph as a 12-megapixel JPEG."""
    out = folder / f"{path.stem}.jpg"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize(LARGE_SIZE, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
        out.write_bytes(buffer.getvalue())
    return out


def measure(plan: Plan, large: Plan, bundle: Bundle, folder: Path, *, quick: bool) -> Document:
    """Measure everything.

    Raises:
        BenchmarkError: the reference could not be measured.
    """
    began = time.perf_counter()
    machine = describe_machine(("torch", "transformers", "torchao", "optimum-onnx", "openvino", "nncf"))
    if machine["busy"]:
        tell(f"the load average is {machine['load_average'][0]:.1f}: something else is running")
    threads = plan.configurations[0].threads
    limit = measure_limit(bundle, threads)
    rows, absent, reference = measure_rows(plan, tell)
    if reference is None:
        raise BenchmarkError(f"{PYTORCH_FP32} is what everything is compared with, and was not measured.")
    throughput: list[Any] = []
    if not quick:
        large_rows, _, _ = measure_rows(large, tell)
        rows += large_rows
        rated = replace(plan, configurations=[one for one in plan.configurations if one.name in RATED])
        modes = list(dict.fromkeys([Mode(1, threads, 1), Mode(1, threads, 8), Mode(1, 1, 1), Mode(threads, 1, 1)]))
        throughput = measure_throughput(rated, modes, reference, RATE_SECONDS, tell)
    processes = measure_commands(bundle.path, plan.paths[0], folder / "commands", 3 if quick else 9)
    return Document(
        model=f"{bundle.manifest.model_name}, {folder.name}",
        machine=machine,
        settings=describe_settings(plan) | {"quick": quick},
        rows=tuple(rows),
        throughput=tuple(throughput),
        absent=absent,
        limit=limit,
        processes=processes,
        seconds=round(time.perf_counter() - began, 1),
    )


if __name__ == "__main__":
    main()
