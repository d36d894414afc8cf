"""Measure bulk jobs: kills, faults, memory, search, and throughput beside the vision tower and Ray.

    python benchmarks/bulk.py kills faults memory search                       # on the demo model
    python benchmarks/bulk.py throughput --bundle BUNDLE --shapes NAME --ray   # of real shapes, see checkpoint.py

Each part writes its results to benchmarks/results/bulk.json and keeps the others there; `make report` writes the
tables of docs/bulk.md, and `cost` prints the table of costs with another price.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from bulk_jobs.faults import measure_faults
from bulk_jobs.kills import measure_kills
from bulk_jobs.memory import measure_memory
from bulk_jobs.report import DOLLARS, cost_table
from bulk_jobs.search import measure_search
from bulk_jobs.throughput import measure_throughput
from result_files import RESULTS, read_results, write_results

from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.demo import NAME

OWN_RESULTS = RESULTS / "bulk.json"
PARTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "kills": measure_kills,
    "faults": measure_faults,
    "memory": measure_memory,
    "search": measure_search,
}


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, required=True, type=click.Choice([*PARTS, "throughput", "cost"]))
@click.option("--bundle", default=NAME, show_default=True, help="For throughput: a bundle of real shapes.")
@click.option("--shapes", default="the demo model", show_default=True, help="For throughput: the name of the shapes.")
@click.option("--images", default=300, show_default=True, help="For throughput: the number of images.")
@click.option("--ray", is_flag=True, help="For throughput: measure Ray too.")
@click.option("--dollars", default=DOLLARS, show_default=True, help="For cost: the price of a CPU hour.")
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="For the other parts: a share.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bulk")
@click.option("--out", type=click.Path(path_type=Path), default=OWN_RESULTS, help="JSON to write.")
def main(
    parts: tuple[str, ...],
    bundle: str,
    shapes: str,
    images: int,
    ray: bool,
    dollars: float,
    scale: float,
    work: Path,
    out: Path,
) -> None:
    """Measure, and write the results."""
    work.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part == "cost":
            click.echo(cost_table(read_results(out), dollars))
            continue
        machine = describe_machine()
        if part == "throughput":
            measured = measure_throughput(work, bundle, shapes, images, with_ray=ray)
        else:
            measured = {"scale": scale} | PARTS[part](work, scale)
        results = read_results(out) if out.exists() else {}
        write_results(out, results | {part: {"machine": machine} | measured})
        click.echo(json.dumps({part: measured}, indent=2))


if __name__ == "__main__":
    main()
