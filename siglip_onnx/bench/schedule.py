"""Measure every configuration in rounds of alternating order, a fresh process each, and build rows from the answers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..bundle.folder import open_bundle
from ..errors import BenchmarkError
from .backend import Configuration
from .fidelity import Answers, compare_answers, cosines, fidelity_of_card
from .process import Job, run_job
from .schema import Fidelity, Mode, Row, Start, Throughput
from .timer import Limits
from .worker import ANSWERS

Report = Callable[[str], None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Plan:
    """What is measured on which inputs. ``reference`` names the configuration that the others are compared with.

    ``repeated`` names those whose vision tower is also timed on one image repeatedly.
    """

    configurations: Sequence[Configuration]
    paths: Sequence[Path]
    texts: Sequence[str]
    reference: str | None
    inputs: str = "photographs"
    limits: Limits = field(default_factory=Limits)
    repeated: frozenset[str] = frozenset()
    search_path: tuple[Path, ...] = ()


@dataclass
class RateRun:
    """One configuration in one mode: images per second of each pass and the worst cosine, a list entry per round."""

    mode: Mode
    configuration: Configuration
    rates: list[list[float]] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    failed: bool = False


def in_rounds(items: Sequence[Item], rounds: int) -> list[tuple[int, Item]]:
    """Return round and item in the order of measuring: every second round is reversed."""
    return [
        (number, item)
        for number in range(rounds)
        for item in (items if number % 2 == 0 else list(reversed(items)))
    ]  # fmt: skip


def measure_rows(plan: Plan, report: Report) -> tuple[list[Row], dict[str, str], Answers | None]:
    """Return a row per configuration, the reasons why others have none, and the reference's answers.

    Raises:
        BenchmarkError: the reference itself failed, so that there is nothing to compare with.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as temporary:
        results, absent = _run_rounds(plan, Path(temporary), report)
        reference = _find_reference(plan, results, absent)
        rows = []
        for configuration in plan.configurations:
            if rounds := results.get(configuration.name):
                try:
                    fidelity = _find_fidelity(plan, configuration, rounds, reference)
                    rows.append(_make_row(plan, configuration, rounds, fidelity))
                except BenchmarkError as error:  # its answers cannot be compared; the others' still can
                    absent[configuration.name] = str(error)
                    report(f"{configuration.name}: {error}")
    return rows, absent, reference


def _run_rounds(plan: Plan, folder: Path, report: Report) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Return the result of each process, by configuration, and the reason why a configuration has none."""
    results: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for turn, configuration in in_rounds(plan.configurations, plan.limits.rounds):
        name = configuration.name
        if name in absent:
            continue
        job = Job(plan.paths, plan.texts, plan.limits, repeat=name in plan.repeated)
        job_folder, began = folder / f"{turn}_{plan.configurations.index(configuration)}", time.perf_counter()
        try:
            result = run_job(configuration, job, job_folder, plan.search_path)
        except BenchmarkError as error:
            absent[name] = str(error)
            results.pop(name, None)
            report(str(error))
            continue
        results.setdefault(name, []).append(result | {"answers": job_folder / ANSWERS})
        report(f"round {turn + 1}, {plan.inputs}: {name} ({time.perf_counter() - began:.0f} s)")
    return results, absent


def measure_throughput(
    plan: Plan, modes: Sequence[Mode], reference: Answers, seconds: float, report: Report
) -> list[Throughput]:
    """Return images per second of every configuration in every mode, each round a fresh process.

    Failures are reported and left out.
    """
    runs = [
        RateRun(mode, replace(configuration, threads=mode.threads, workers=mode.workers))
        for configuration in plan.configurations
        for mode in modes
    ]
    for turn, run in in_rounds(runs, plan.limits.rounds):
        if run.failed:
            continue
        job = Job(plan.paths, plan.texts, plan.limits, batch=run.mode.batch, seconds=seconds)
        try:
            rates, cosine = _run_rates(run.configuration, job, reference, plan.search_path)
        except BenchmarkError as error:
            run.failed = True
            report(f"{run.mode}: {error}")
            continue
        run.rates.append(rates)
        run.cosines.append(cosine)
        report(f"round {turn + 1}, throughput: {run.configuration.name}, {run.mode}")
    return [
        Throughput(run.configuration.name, **asdict(run.mode), rates=run.rates, reference=str(plan.reference),
                   vision_cosine_min=min(run.cosines))
        for run in runs
        if not run.failed
    ]  # fmt: skip


def _run_rates(
    configuration: Configuration, job: Job, reference: Answers, search_path: Sequence[Path]
) -> tuple[list[float], float]:
    """Return images per second of each pass, and the worst cosine of the answers.

    Raises:
        BenchmarkError: the process failed, or returned NaN or infinity.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as folder:
        rates = run_job(configuration, job, Path(folder), search_path)["rates"]
        with np.load(Path(folder) / ANSWERS) as file:
            worst = float(cosines(file["vision"], reference.vision[: len(job.paths)]).min())
    if not np.isfinite(worst):
        raise BenchmarkError(f"{configuration.name} returned NaN or infinity.")
    return rates, worst


def _find_reference(
    plan: Plan, results: Mapping[str, list[dict[str, Any]]], absent: Mapping[str, str]
) -> Answers | None:
    if plan.reference is None:
        return None
    if plan.reference not in results:
        raise BenchmarkError(f"The reference could not be measured. {absent.get(plan.reference, plan.reference)}")
    return Answers.read(results[plan.reference][0]["answers"])


def _find_fidelity(
    plan: Plan, configuration: Configuration, results: Sequence[dict[str, Any]], reference: Answers | None
) -> Fidelity:
    """Compare with the reference, or, without one, take the accuracy card and check that the rounds agree."""
    answers = [result["answers"] for result in results]
    if reference is not None and plan.reference is not None:
        return compare_answers(answers, reference, plan.reference)
    card = fidelity_of_card(open_bundle(Path(configuration.bundle)), configuration.variant)
    rounds = compare_answers(answers, Answers.read(answers[0]), "its own first round")
    if rounds.cosine_min < card.cosine_min:
        raise BenchmarkError(f"{configuration.name} answers differently from round to round: {rounds}")
    return card


def _make_row(plan: Plan, configuration: Configuration, results: Sequence[dict[str, Any]], fidelity: Fidelity) -> Row:
    return Row(
        name=configuration.name,
        about=configuration.about,
        backend=configuration.backend,
        variant=configuration.variant,
        threads=configuration.threads,
        inputs=plan.inputs,
        fidelity=fidelity,
        stages={stage: [result["stages"][stage] for result in results] for stage in results[0]["stages"]},
        starts=tuple(Start(**result["start"]) for result in results),
        size_bytes=results[0]["size_bytes"],
        packages=results[0]["packages"],
        load_averages=tuple(round(result["load_average"], 2) for result in results),
    )
