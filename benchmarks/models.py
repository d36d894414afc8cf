"""Measure what each published checkpoint costs in int8: one image, one text, images per second, memory and disk.

    python benchmarks/models.py --spiece spiece.model --gemma tokenizer.json

Only shapes matter for these figures: each tower is built from its published shape with random weights, measured in a
fresh process and deleted before the next one. Towers that several checkpoints share are measured once. Each result is
written when it is there, so that a run that was stopped continues; a tower that was measured while other programs used
the CPUs is measured again. About 15 minutes on two quiet cores for all 28 checkpoints, with 3 GB of memory and 1.2 GB
of disk. Then run benchmarks/report.py.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from checkpoint_costs import NAFLEX_PATCHES, RESULTS_FILE, Tower, is_busy, towers_of
from fresh_process import in_fresh_process
from result_files import read_results, write_results

from siglip_onnx.bench.machine import describe_machine, load_average, peak_memory_mb
from siglip_onnx.bench.quiet import OtherPrograms
from siglip_onnx.bench.statistics import summarize
from siglip_onnx.bench.timer import Limits, time_calls
from siglip_onnx.config import TEXT, TOKENIZER, VISION, NaflexVisionConfig, VisionConfig
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.hub.published import GEMMA, PUBLISHED
from siglip_onnx.session import LazySession
from siglip_onnx.system.threads import available_threads
from siglip_onnx.system.workers import map_in_order
from siglip_onnx.text.tokenizer import Tokenizer

GRAPH = "tower.onnx"
LIMITS = Limits(rounds=1, min_samples=64, min_seconds=4.0)
RATE_SECONDS = 4.0
NUM_INPUTS = 3  # so that at least three calls are timed
TEXTS = ("a photo of a red star", "six eggs on a table", "a street at night in the rain")
_SAME = ("cpu", "cpu_flags", "threads", "packages")

Inputs = Mapping[str, np.ndarray[Any, Any]]


@click.command(help=__doc__)
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), required=True, help="SigLIP's vocabulary.")
@click.option("--gemma", type=click.Path(path_type=Path, exists=True), required=True, help="SigLIP 2's vocabulary.")
@click.option("--only", multiple=True, help="Name of a checkpoint; all if not given.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS_FILE, help="Default: benchmarks/results.")
def main(spiece: Path, gemma: Path, only: tuple[str, ...], out: Path) -> None:
    """Measure every tower that has no result yet, and write each result at once."""
    unknown = set(only) - {checkpoint.name for checkpoint in PUBLISHED}
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))} is not a published checkpoint.", param_hint="--only")
    results = open_results(out)
    chosen = [checkpoint for checkpoint in PUBLISHED if not only or checkpoint.name in only]
    towers = {tower.name: tower for checkpoint in chosen for tower in towers_of(checkpoint)}
    for number, (name, tower) in enumerate(towers.items(), 1):
        if name in results["towers"] and not is_busy(results["towers"][name], results["machine"]):
            continue
        began = time.perf_counter()
        vocabulary = gemma if tower.vocab_size == GEMMA else spiece
        result = measure(tower, vocabulary)
        results["towers"][name] = result
        write_results(out, results)
        click.echo(f"{number}/{len(towers)} {name}: {result['latency_ms']['min']:.1f} ms, "
                   f"{result['memory_mb']:.0f} MB ({time.perf_counter() - began:.0f} s)")  # fmt: skip


def open_results(out: Path) -> dict[str, Any]:
    """Return the results so far, or new ones.

    Raises:
        BenchmarkError: they are of another machine or of other versions.
    """
    machine = describe_machine()
    if not out.exists():
        return {"machine": machine, "settings": {"variant": "int8", "weights": "random"}, "towers": {}}
    results = read_results(out)
    other = [key for key in _SAME if results["machine"][key] != machine[key]]
    if other:
        raise BenchmarkError(
            f"{out} was measured with another {', '.join(other)}: {results['machine'][other[0]]}, here it is "
            f"{machine[other[0]]}. Measure all again with another --out."
        )
    return results


def measure(tower: Tower, vocabulary: Path) -> dict[str, Any]:
    """Build a tower in one process, measure it in another, and delete it."""
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as folder:
        began = time.perf_counter()
        size_bytes = in_fresh_process(build, tower, Path(folder), vocabulary)
        build_s = time.perf_counter() - began
        result: dict[str, Any] = in_fresh_process(measure_built, tower, Path(folder))
    return {"disk_mb": round(size_bytes / 1e6, 1), "build_s": round(build_s, 1)} | result


def build(tower: Tower, folder: Path, vocabulary: Path) -> int:
    """Write a tower's files; return the bytes of its graph and weights."""
    from random_tower import write_tower  # noqa: PLC0415 - the exporter; the measuring process must not load it

    return write_tower(tower.config, folder, vocabulary if tower.kind == TEXT else None)


def measure_built(tower: Tower, folder: Path) -> dict[str, Any]:
    """Measure a tower that was built in ``folder``, in a process that has done nothing before."""
    base_memory_mb, load, others = peak_memory_mb(), load_average(), OtherPrograms()
    session = LazySession(folder / GRAPH)
    began = time.perf_counter()
    session.load()
    load_s = time.perf_counter() - began
    sizes = make_inputs(tower, folder)
    latencies, memory = {}, {}
    for size, (prepare, items) in sizes.items():
        samples, _ = time_calls(lambda item: session.embed(prepare(item)), items, LIMITS)  # noqa: B023 - called here
        summary = summarize([samples])
        latencies[size] = {
            "min": round(summary.min, 2), "median": round(summary.median, 2), "samples": summary.num_samples
        }  # fmt: skip
        memory[size] = peak_memory_mb()
    session.close()
    rates = {}
    if tower.kind == VISION:
        rates = {size: images_per_second(folder / GRAPH, items) for size, (_, items) in sizes.items()}
    default = str(tower.default_size)
    result = {
        "latency_ms": latencies[default],
        "memory_mb": memory[default],
        "base_memory_mb": base_memory_mb,
        "load_s": round(load_s, 2),
        "load_average": [round(value, 2) for value in load],
        "other_cpus": others.cpus(),
    }
    if rates:
        result["per_second"] = rates[default]
    if len(sizes) > 1:
        result["by_patches"] = {
            size: {"latency_ms": latencies[size], "per_second": rates[size], "memory_mb": memory[size]}
            for size in sizes
        }
    return result


def make_inputs(
    tower: Tower, folder: Path
) -> dict[str, tuple[Callable[[Any], Inputs], Sequence[Any]]]:  # fmt: skip
    """Return for each size of the input how an item becomes the tower's inputs, and the items.

    Texts are tokenized in the measurement; images are tensors already, because their decoding depends on the file.
    """
    vision, text = tower.config.vision, tower.config.text
    rng = np.random.default_rng(0)
    if text is not None:
        tokenize = Tokenizer(folder / TOKENIZER, text.max_position_embeddings)
        return {str(tower.default_size): (lambda item: {"input_ids": tokenize([item])}, TEXTS)}
    if isinstance(vision, NaflexVisionConfig):
        patch = vision.num_channels * vision.patch_size**2
        sizes: dict[str, list[Inputs]] = {
            str(patches): [
                {
                    "pixel_values": rng.uniform(-1, 1, (1, patches, patch)).astype(np.float32),
                    "pixel_attention_mask": np.ones((1, patches), np.int32),
                    "position_embeddings": rng.normal(0, 0.02, (1, patches, vision.hidden_size)).astype(np.float32),
                }
                for _ in range(NUM_INPUTS)
            ]
            for patches in NAFLEX_PATCHES
        }
    else:
        assert isinstance(vision, VisionConfig)
        shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        images: list[Inputs] = [
            {"pixel_values": rng.uniform(-1, 1, shape).astype(np.float32)} for _ in range(NUM_INPUTS)
        ]
        sizes = {str(tower.default_size): images}
    return {size: (lambda item: item, items) for size, items in sizes.items()}


def images_per_second(graph: Path, inputs: Sequence[Inputs]) -> float:
    """Return the images per second with one thread on each CPU, as ``workers="auto"`` runs many images."""
    workers = available_threads()
    session = LazySession(graph, threads=1)
    session.embed(inputs[0])
    done, began = 0, time.perf_counter()
    results = map_in_order(session.embed, itertools.cycle(inputs), workers)
    for _ in results:
        done += 1
        seconds = time.perf_counter() - began
        if done % workers == 0 and done >= 2 * workers and seconds > RATE_SECONDS:
            break
    session.close()
    return float(f"{done / seconds:.3g}")


if __name__ == "__main__":
    main()
