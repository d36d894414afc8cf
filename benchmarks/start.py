"""Measure the start of commands: this version against another one, in alternating order.

    python benchmarks/start.py --bundle BUNDLE --image photo.jpg --before CHECKOUT

CHECKOUT is a git worktree of the version to compare with; BUNDLE the export of a checkpoint, for example of the random
one of suite.py. A version that cannot read it gets its own export with --before-bundle. Each command is run in a fresh
process, with the package's bytecode; files are in memory from a first run. Writes benchmarks/results/start.json: of
each command the seconds and the peak memory of both versions, and the ratio of the seconds of each pair of runs, with
its median, minimum, and a 95 % interval of the median (bootstrap).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from commands import run_command, start_commands, summarize_runs
from result_files import RESULTS, ROOT, write_results

from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.statistics import median_ratio
from siglip_onnx.bundle.folder import open_bundle

BEFORE, AFTER = "before", "after"


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="A model folder.")
@click.option("--image", type=click.Path(path_type=Path, exists=True), required=True, help="A photograph.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), required=True, help="The other checkout.")
@click.option("--before-bundle", type=click.Path(path_type=Path, exists=True), help="Default: BUNDLE.")
@click.option("--pairs", type=click.IntRange(1), default=15, show_default=True, help="Runs of each command.")
@click.option("--only", multiple=True, help="Part of the names of commands; repeat for more.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "start.json", show_default=True)
def main(
    bundle: Path,
    image: Path,
    before: Path,
    before_bundle: Path | None,
    pairs: int,
    only: tuple[str, ...],
    out: Path,
) -> None:
    """Measure, and write."""
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as work:
        versions = {BEFORE: (before, before_bundle or bundle), AFTER: (ROOT, bundle)}
        commands = {
            version: start_commands(used.absolute(), image.absolute(), Path(work) / version, checkout)
            for version, (checkout, used) in versions.items()
        }
        results = {
            name: compare([(checkout, commands[version][name]) for version, (checkout, _) in versions.items()], pairs)
            for name in commands[AFTER]
            if not only or any(part in name for part in only)
        }
    write_results(out, {
        "model": open_bundle(bundle).manifest.model_name,
        "machine": machine,
        "load_average_after": describe_machine()["load_average"],
        BEFORE: commit_of(before),
        "commands": results,
    })  # fmt: skip


def compare(commands: Sequence[tuple[Path, Sequence[str]]], pairs: int) -> dict[str, Any]:
    """Run a command in both checkouts in turns; return their times and the ratios of the pairs."""
    runs: list[list[dict[str, float]]] = [[], []]  # of the checkouts, in their order
    for checkout, arguments in commands:
        run_command(arguments, checkout)
    for turn in range(pairs):
        both = list(zip(runs, commands, strict=True))
        for results, (checkout, arguments) in both if turn % 2 == 0 else reversed(both):
            results.append(run_command(arguments, checkout))
    facts: dict[str, Any] = dict(zip((BEFORE, AFTER), map(summarize_runs, runs), strict=True))
    for measure in ("seconds", "cpu_seconds"):
        ratios = [new[measure] / old[measure] for old, new in zip(*runs, strict=True)]
        facts[f"ratio_of_{measure}"] = describe_ratios(ratios)
        click.echo(f"{' '.join(arguments[:2])}: {measure} {facts[f'ratio_of_{measure}']}", err=True)
    return facts


def describe_ratios(ratios: Sequence[float]) -> dict[str, float]:
    """Return the minimum and median of ratios, and a 95 % interval of the median."""
    ratio = median_ratio(ratios)
    numbers = {"min": min(ratios), "median": ratio.value, "low": ratio.low, "high": ratio.high}
    return {name: round(number, 3) for name, number in numbers.items()}


def commit_of(checkout: Path) -> str:
    """Return the commit that is checked out in a folder."""
    git = shutil.which("git") or "git"
    command = [git, "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603 - git


if __name__ == "__main__":
    main()
