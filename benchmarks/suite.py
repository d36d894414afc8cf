"""Measure this engine and every peer on one checkpoint and the same images, in one run.

    python benchmarks/suite.py --images FOLDER --spiece spiece.model
    python benchmarks/suite.py --images FOLDER --checkpoint CHECKPOINT --name demo

Without --checkpoint, a random one with the shapes of google/siglip-base-patch16-256-multilingual is made. Exports and
conversions are made once and kept in --work; --prepare-only ends there. Each round begins when other programs are
quiet, and each configuration is measured next to this engine's int8 variant, to which its ratios are. Writes
benchmarks/results/NAME.json, from which `make report` writes tables and plots.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from catalog import NUM_IMAGES, Catalog, choose_images, log, open_catalog, random_checkpoint
from commands import compile_package, measure_commands
from limit import measure_limit
from PIL import Image
from result_files import RESULTS

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.fidelity import Answers
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.quiet import OtherPrograms, QuietMachine
from siglip_onnx.bench.run import (
    PYTORCH_FP32,
    describe_settings,
    engine_configuration,
    engine_name,
    throughput_modes,
)
from siglip_onnx.bench.schedule import Plan, measure_rows, measure_throughput
from siglip_onnx.bench.schema import Document, Throughput
from siglip_onnx.bench.timer import Limits
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.system.files import write_atomic
from siglip_onnx.system.threads import available_threads
from siglip_onnx.verify.samples import SAMPLE_TEXTS

HERE = Path(__file__).parent
PHOTOGRAPHS, LARGE = "photographs", "12-megapixel photographs"
LARGE_SIZE, NUM_LARGE = (4000, 3000), 6
RATE_SECONDS, NUM_RATED = 1.0, 8
FULL = Limits(rounds=5, min_samples=60, min_seconds=10)
QUICK, NUM_QUICK = Limits(rounds=1, min_samples=6, min_seconds=0.3), 3
REPEATED = Limits(rounds=3, min_samples=18, min_seconds=6)  # of large images and of throughput
SLOW = ("torch.compile", "torchao", "optimum-onnx fp32")  # to start: fewer rounds, and none with --quick
# Throughput is measured too for the fastest of each runtime that starts without compiling.
RATED = ("OpenVINO bf16", "OpenVINO int8 weights", engine_name("int8"))


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Instead of a random one.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), help="A SentencePiece model, to make one.")
@click.option("--name", default="base_multilingual", show_default=True, help="Of the results.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
@click.option("--threads", type=click.IntRange(1, 512), default=available_threads, help="All this process may use.")
@click.option("--only", multiple=True, help="Part of the names of configurations; repeat for more.")
@click.option("--wait", default=600, show_default=True, help="Seconds to wait in all until other programs are quiet.")
@click.option("--quick", is_flag=True, help="1 round, few images, no throughput.")
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
    wait: int,
    quick: bool,
    prepare_only: bool,
    out: Path | None,
) -> None:
    """Prepare, measure, write."""
    compile_package()
    machine = describe_machine(("torch", "transformers", "torchao", "optimum-onnx", "openvino", "nncf"))
    folder = work / name
    checkpoint = checkpoint or random_checkpoint(folder / "checkpoint", spiece)
    paths = choose_images(images)
    catalog = open_catalog(folder, checkpoint, paths[NUM_IMAGES:], threads, only)
    if prepare_only:
        return
    num_images, limits = (NUM_QUICK, QUICK) if quick else (NUM_IMAGES, FULL)
    slow = [run for run in catalog.configurations if any(part in run.name for part in SLOW)]
    chosen = [run for run in catalog.configurations if run not in slow] + ([] if quick else slow)
    read_files(chosen)
    plan = Plan(
        chosen, paths[:num_images], SAMPLE_TEXTS[: NUM_QUICK if quick else None], PYTORCH_FP32, PHOTOGRAPHS, limits,
        baseline=catalog.baseline, slow=frozenset(run.name for run in slow),
        repeated=frozenset({engine_name("int8")}), search_path=(HERE,),
    )  # fmt: skip
    document = measure(plan, catalog, folder, machine, QuietMachine(wait, log), quick=quick)
    path = out or RESULTS / f"{name}.json"
    write_atomic(path, document.to_json().encode())
    log(f"wrote {path} after {document.seconds:.0f} s of measuring")


def read_files(configurations: Sequence[Configuration]) -> None:
    """Read every file once, so that the first round finds it in memory as later rounds do."""
    folders = {Path(folder) for run in configurations for folder in (run.bundle, run.checkpoint, run.work) if folder}
    for path in sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()}):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def large_plan(plan: Plan, catalog: Catalog, folder: Path) -> Plan:
    """Return the plan of 12-megapixel images: fast decode, exact decoding and PyTorch."""
    large = [enlarge(path, folder / "large") for path in plan.paths[:NUM_LARGE]]
    fast = replace(engine_configuration(catalog.bundle, "int8", plan.configurations[0].threads),
                   name=f"{engine_name('int8')}, fast decode", fast_decode=True,
                   about="JPEGs decoded at four times the model's size, resized with reducing_gap")  # fmt: skip
    chosen = [run for run in plan.configurations if run.name in (PYTORCH_FP32, engine_name("int8"))]
    return replace(plan, configurations=[*chosen, fast], paths=large, texts=plan.texts[:NUM_LARGE], inputs=LARGE,
                   limits=REPEATED, baseline=None, repeated=frozenset())  # fmt: skip


def enlarge(path: Path, folder: Path) -> Path:
    """Return a photograph as a 12-megapixel JPEG."""
    out = folder / f"{path.stem}.jpg"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize(LARGE_SIZE, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
        out.write_bytes(buffer.getvalue())
    return out


def measure(
    plan: Plan, catalog: Catalog, folder: Path, machine: dict[str, Any], quiet: QuietMachine, *, quick: bool
) -> Document:
    """Measure everything.

    Raises:
        BenchmarkError: the reference could not be measured.
    """
    large = None if quick else large_plan(plan, catalog, folder)
    began = time.perf_counter()
    quiet.wait()
    limit = measure_limit(catalog.bundle, plan.configurations[0].threads)
    measured = measure_rows(plan, log, quiet)
    if measured.reference is None:
        raise BenchmarkError(f"{PYTORCH_FP32}, the reference, was not measured. Measure it too.")
    rows = measured.rows if large is None else measured.rows + measure_rows(large, log, quiet).rows
    others = OtherPrograms()
    throughput = [] if quick else measure_rates(plan, measured.reference, measured.absent, quiet)
    commands = measure_commands(catalog.bundle.path, plan.paths[0], folder / "commands", 1 if quick else 5)
    return Document(
        model=f"{catalog.bundle.manifest.model_name}, {folder.name}",
        machine=machine,
        settings=describe_settings(plan) | {
            "quick": quick, "conversion_seconds": catalog.conversion_seconds, "quiet": describe_waiting(quiet),
            "other_cpus_of_throughput_and_commands": others.cpus(),
        },
        rows=tuple(rows),
        throughput=tuple(throughput),
        absent=catalog.absent | measured.absent,
        limit=limit,
        processes=commands | catalog.export,
        baseline=measured.baseline,
        seconds=round(time.perf_counter() - began, 1),
    )  # fmt: skip


def describe_waiting(quiet: QuietMachine) -> str:
    """Return a sentence on how long the run waited for a quiet machine, and whether it gave that up."""
    text = f" The run waited {quiet.waited_s:.0f} s for other programs"
    return f"{text} and then measured on the busy machine {quiet.gave_up} times." if quiet.gave_up else f"{text}."


def measure_rates(plan: Plan, reference: Answers, absent: Container[str], quiet: QuietMachine) -> list[Throughput]:
    """Measure images per second of the fastest configurations."""
    rated = [run for run in plan.configurations if run.name in RATED and run.name not in absent]
    chosen = replace(plan, configurations=rated, paths=plan.paths[:NUM_RATED], limits=REPEATED)
    return measure_throughput(chosen, throughput_modes(plan), reference, RATE_SECONDS, log, quiet)


if __name__ == "__main__":
    main()
