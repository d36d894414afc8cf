"""Measure texts per second of many texts: this version, another one, and OpenVINO, in alternating order in one run.

    python benchmarks/texts_in_bulk.py --bundle BUNDLE --openvino FOLDER --before CHECKOUT

FOLDER holds OpenVINO's int8 weights, which suite.py converts into WORK/NAME/openvino_ir_int8_weights for the bundle
WORK/NAME/bundle; each of its settings is measured. CHECKOUT is a git worktree of the version to compare with. Each run
is a fresh process, which loads the model, embeds 16 texts, and is then timed, in batches of 16 where the engine runs
batches. All versions must return the same bits. Writes benchmarks/results/texts_in_bulk.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from result_files import RESULTS, ROOT, write_results
from start import AFTER, BEFORE, commit_of, describe_ratios

from siglip_onnx.bench.machine import describe_machine, has_bf16
from siglip_onnx.bench.quiet import OtherPrograms, QuietMachine
from siglip_onnx.bench.schedule import in_order
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.system.threads import available_threads

BATCH = 16
VARIANT = "int8 weights"  # of OpenVINO
_MEASURE = """
import json, sys, time
import numpy as np
bundle, count, variant, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
texts = [f"a photo of the {noun}, number {number}" for number in range(count) for noun in ("cat", "dog")][:count]
def measure(encode):
    encode(texts[:16])
    began, cpu_began = time.perf_counter(), time.process_time()
    vectors = encode(texts)
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu_began]))
    np.save(out, vectors)
"""
_OURS = f"""{_MEASURE}
import siglip_onnx
measure(siglip_onnx.load(bundle, variant=variant).encode_texts)
"""
_OPENVINO = f"""{_MEASURE}
from backends.openvino_ir import load
from siglip_onnx.bench.backend import Configuration
from siglip_onnx.head import l2_normalize
backend = load(Configuration("OpenVINO", "", variant, bundle, work=sys.argv[5], threads=int(sys.argv[6])))
def encode(chosen):
    batches = [chosen[start : start + {BATCH}] for start in range(0, len(chosen), {BATCH})]
    return l2_normalize(np.concatenate([backend.text(backend.model.tokenize(batch)) for batch in batches]))
measure(encode)
"""


class Contestant(NamedTuple):
    """What is measured: a program, its arguments after the number of texts, and the checkout that it runs in."""

    code: str
    variant: str
    checkout: Path
    arguments: tuple[str, ...] = ()


class Run(NamedTuple):
    """One run: seconds, those of CPUs, the vectors f32 ``(N, D)``, and the CPUs that other programs used."""

    seconds: float
    cpu_seconds: float
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    other_cpus: float | None


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="A model folder.")
@click.option("--openvino", type=click.Path(path_type=Path, exists=True), help="OpenVINO's int8 weights.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="The other checkout.")
@click.option("--variant", default="int8", show_default=True)
@click.option("--texts", "count", type=click.IntRange(BATCH), default=200, show_default=True, help="Number of texts.")
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each.")
@click.option("--wait", default=600, show_default=True, help="Seconds to wait in all until other programs are quiet.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "texts_in_bulk.json", show_default=True)
def main(
    bundle: Path, openvino: Path | None, before: Path | None, variant: str, count: int, pairs: int, wait: int, out: Path
) -> None:
    """Measure, and write.

    Raises:
        BenchmarkError: the versions return different vectors.
    """
    machine = describe_machine(("openvino", "nncf"))
    quiet = QuietMachine(wait, lambda line: click.echo(line, err=True))
    contestants = list_contestants(variant, openvino, before)
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for turn in range(pairs):
        quiet.wait()
        for name in in_order(list(contestants), turn):
            runs[name].append(run_once(contestants[name], bundle.absolute(), count))
            click.echo(f"round {turn + 1}: {name}, {count / runs[name][-1].seconds:.1f} texts per second", err=True)
    vectors = runs[AFTER][0].vectors
    if not all(np.array_equal(run.vectors, vectors) for name in runs if name in (BEFORE, AFTER) for run in runs[name]):
        raise BenchmarkError("The versions return different vectors.")
    write_results(out, {
        "model": open_bundle(bundle).manifest.model_name,
        "variant": variant,
        "texts": count,
        "machine": machine,
        "other_cpus": {name: [run.other_cpus for run in runs[name]] for name in runs},
        "waited_seconds": quiet.waited_s,
        **({BEFORE: commit_of(before)} if before else {}),
        "texts_per_second": {name: [round(count / run.seconds, 2) for run in runs[name]] for name in runs},
        "cpu_ms_per_text": {name: [round(1000 * run.cpu_seconds / count, 2) for run in runs[name]] for name in runs},
        "ratios": {name: compare(runs[name], runs[AFTER]) for name in runs if name != AFTER},
    })  # fmt: skip


def list_contestants(variant: str, openvino: Path | None, before: Path | None) -> dict[str, Contestant]:
    """Return this version, the other one, and each setting of OpenVINO's int8 weights that this CPU can run."""
    contestants = {AFTER: Contestant(_OURS, variant, ROOT)}
    if before is not None:
        contestants[BEFORE] = Contestant(_OURS, variant, before)
    if openvino is not None:
        from backends.openvino_ir import VARIANTS  # noqa: PLC0415 - needs openvino

        arguments = (str(openvino.absolute()), str(available_threads()))
        contestants |= {
            name: Contestant(_OPENVINO, setting, ROOT, arguments)
            for setting, (name, _) in VARIANTS.items()
            if setting.startswith(VARIANT) and (has_bf16() or "bf16" not in setting)
        }
    return contestants


def run_once(contestant: Contestant, bundle: Path, count: int) -> Run:
    """Return one run in a fresh process."""
    checkout, others = contestant.checkout, OtherPrograms()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "benchmarks")]), "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "vectors.npy"
        arguments = [str(bundle), str(count), contestant.variant, str(out), *contestant.arguments]
        command = [sys.executable, "-c", contestant.code, *arguments]
        output = subprocess.run(command, capture_output=True, check=True, env=environment).stdout  # noqa: S603 - ourselves
        seconds, cpu_seconds = json.loads(output)
        return Run(seconds, cpu_seconds, np.load(out), others.cpus())


def compare(runs: list[Run], ours: list[Run]) -> dict[str, Any]:
    """Return how many times as much this version does per second, CPU seconds, and the worst cosine to its vectors."""
    pairs = list(zip(runs, ours, strict=True))
    return {
        "texts_per_second": describe_ratios([other.seconds / own.seconds for other, own in pairs]),
        "cpu_seconds": describe_ratios([own.cpu_seconds / other.cpu_seconds for other, own in pairs]),
        "cosine_min": round(float((runs[0].vectors * ours[0].vectors).sum(axis=1).min()), 6),
    }


if __name__ == "__main__":
    main()
