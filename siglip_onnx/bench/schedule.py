"""The rounds: every configuration in a fresh process per round, in alternating order; rows from what they answered."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.folder import open_bundle
from ..errors import BenchmarkError
from .contestant import Configuration
from .fidelity import Answers, compare_answers, cosines, fidelity_of_card
from .process import Job, run_job
from .schema import Fidelity, Row, Start, Throughput
from .timer import Limits
from .worker import ANSWERS

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured on which inputs. ``reference`` names the configuration that the others are compared with.

    ``repeated`` names those whose vision tower is also timed on one picture again and again.
    """

    configurations: Sequence[Configuration]
    paths: Sequence[Path]
    texts: Sequence[str]
    reference: str | None
    inputs: str = "photographs"
    limits: Limits = field(default_factory=Limits)
    repeated: frozenset[str] = frozenset()
    search_path: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mode:
    """So many pictures at once, each run of so many pictures together by so many threads."""

    workers: int
    threads: int
    batch: int


def in_rounds(configurations: Sequence[Configuration], rounds: int) -> list[tuple[int, Configuration]]:
    """Return round and configuration in the order of measuring: every second round goes backwards."""
    return [
        (number, configuration)
        for number in range(rounds)
        for configuration in (configurations if number % 2 == 0 else list(reversed(configurations)))
    ]


def measure_rows(plan: Plan, report: Report) -> tuple[list[Row], dict[str, str], Answers | None]:
    """Return a row per configuration, why others have none, and the reference's answers.

    Raises:
        BenchmarkError: the reference itself failed, so that there is nothing to compare with.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as temporary:
        results, absent = _run_rounds(plan, Path(temporary), report)
        reference = _find_reference(plan, results, absent)
        rows = []
        for configuration in plan.configurations:
            if found := results.get(configuration.name):
                try:
                    rows.append(
                        _make_row(plan, configuration, found, _find_fidelity(plan, configuration, found, reference))
                    )
                except BenchmarkError as error:  # its answers are no answers; the others' still are
                    absent[configuration.name] = str(error)
                    report(f"{configuration.name}: {error}")
    return rows, absent, reference


def _run_rounds(plan: Plan, folder: Path, report: Report) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Return what each process found, by configuration, and why a configuration has nothing."""
    results: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for turn, configuration in in_rounds(plan.configurations, plan.limits.rounds):
        name = configuration.name
        if name in absent:
            continue
        job = Job(plan.paths, plan.texts, plan.limits, repeat=name in plan.repeated)
        place, began = folder / f"{turn}_{plan.configurations.index(configuration)}", time.perf_counter()
        try:
            found = run_job(configuration, job, place, plan.search_path)
        except BenchmarkError as error:
            absent[name] = str(error)
            results.pop(name, None)
            report(str(error))
            continue
        results.setdefault(name, []).append(found | {"answers": place / ANSWERS})
        report(f"round {turn + 1}, {plan.inputs}: {name} ({time.perf_counter() - began:.0f} s)")
    return results, absent


def measure_throughput(
    plan: Plan, modes: Sequence[Mode], reference: Answers, seconds: float, report: Report
) -> list[Throughput]:
    """Return pictures per second of every configuration in every mode, each round a fresh process.

    What fails is reported and left out.
    """
    chosen = [
        (mode, replace(configuration, threads=mode.threads, workers=mode.workers))
        for configuration in plan.configurations
        for mode in modes
    ]
    found: dict[int, list[tuple[list[float], float]]] = {number: [] for number in range(len(chosen))}
    for turn in range(plan.limits.rounds):
        for number in sorted(found, reverse=turn % 2 == 1):
            mode, configuration = chosen[number]
            job = Job(plan.paths, plan.texts, plan.limits, batch=mode.batch, seconds=seconds)
            try:
                found[number].append(_run_rates(configuration, job, reference, plan.search_path))
            except BenchmarkError as error:
                del found[number]
                report(f"{mode}: {error}")
        report(f"round {turn + 1} of the throughput")
    return [
        Throughput(
            chosen[number][1].name,
            **asdict(chosen[number][0]),
            rates=[rates for rates, _ in rounds],
            reference=str(plan.reference),
            vision_cosine_min=min(worst for _, worst in rounds),
        )
        for number, rounds in found.items()
    ]


def _run_rates(
    configuration: Configuration, job: Job, reference: Answers, search_path: Sequence[Path]
) -> tuple[list[float], float]:
    """Return pictures per second of each pass, and the worst cosine of what was answered.

    Raises:
        BenchmarkError: the process failed, or its answers are no numbers.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as folder:
        rates = run_job(configuration, job, Path(folder), search_path)["rates"]
        with np.load(Path(folder) / ANSWERS) as file:
            worst = float(cosines(file["vision"], reference.vision[: len(job.paths)]).min())
    if not np.isfinite(worst):
        raise BenchmarkError(f"{configuration.name} gave features that are no numbers.")
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
    plan: Plan, configuration: Configuration, found: Sequence[dict[str, Any]], reference: Answers | None
) -> Fidelity:
    """Compare with the reference, or, where there is none, take the card, and see that rounds agree."""
    answers = [result["answers"] for result in found]
    if reference is not None and plan.reference is not None:
        return compare_answers(answers, reference, plan.reference)
    card = fidelity_of_card(open_bundle(Path(configuration.bundle)), configuration.variant.partition(", ")[0])
    rounds = compare_answers(answers, Answers.read(answers[0]), "its own first round")
    if rounds.cosine_min < card.cosine_min:
        raise BenchmarkError(f"{configuration.name} answers differently from round to round: {rounds}")
    return card


def _make_row(plan: Plan, configuration: Configuration, found: Sequence[dict[str, Any]], fidelity: Fidelity) -> Row:
    return Row(
        name=configuration.name,
        about=configuration.about,
        backend=configuration.backend,
        variant=configuration.variant,
        threads=configuration.threads,
        inputs=plan.inputs,
        fidelity=fidelity,
        stages={stage: [result["stages"][stage] for result in found] for stage in found[0]["stages"]},
        starts=tuple(Start(**result["start"]) for result in found),
        size_bytes=found[0]["size_bytes"],
        packages=found[0]["packages"],
        load_averages=tuple(round(result["load_average"], 2) for result in found),
    )
