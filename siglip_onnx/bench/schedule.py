"""Measure every configuration in rounds of alternating order, a fresh process each, and build rows from the answers.

With a baseline, each configuration is measured next to it, so that their ratio compares neighbors in time.
"""

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
from .quiet import QUIET_CPUS, OtherPrograms, QuietMachine
from .schema import Fidelity, Mode, Row, Start, Throughput
from .timer import Limits
from .worker import ANSWERS

Report = Callable[[str], None]
Item = TypeVar("Item")
SLOW_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """What is measured on which inputs. ``reference`` names the configuration that the others are compared with.

    ``baseline`` is run between every two configurations; the ratios of a row are to its times beside that row.
    ``slow`` names those that are measured in the first ``SLOW_ROUNDS`` rounds only. ``repeated`` names those whose
    vision tower is also timed on one image repeatedly.
    """

    configurations: Sequence[Configuration]
    paths: Sequence[Path]
    texts: Sequence[str]
    reference: str | None
    inputs: str = "photographs"
    limits: Limits = field(default_factory=Limits)
    baseline: Configuration | None = None
    slow: frozenset[str] = frozenset()
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


@dataclass(frozen=True)
class Measured:
    """A row per configuration, the reasons why others have none, the reference's answers, and the baseline's row."""

    rows: list[Row]
    absent: dict[str, str]
    reference: Answers | None
    baseline: Row | None


class _Rounds:
    """Runs the processes of a plan; holds the result of each, by configuration, and why a configuration has none."""

    def __init__(self, plan: Plan, folder: Path, report: Report, quiet: QuietMachine | None) -> None:
        self._plan, self._folder, self._report, self._quiet = plan, folder, report, quiet
        self._num_processes = 0
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.baseline: list[dict[str, Any]] = []
        self.absent: dict[str, str] = {}

    def run(self) -> None:
        """Run every round; with a baseline, in groups of two configurations with the baseline between them.

        Raises:
            BenchmarkError: the baseline failed.
        """
        size = 1 if self._plan.baseline is None else 2
        for turn in range(self._plan.limits.rounds):
            chosen = [
                each for each in self._plan.configurations if turn < SLOW_ROUNDS or each.name not in self._plan.slow
            ]
            groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
            self._wait()
            for group in in_order(groups, turn):
                self._run_group(turn, [each for each in in_order(group, turn) if each.name not in self.absent])

    def _run_group(self, turn: int, group: Sequence[Configuration]) -> None:
        beside = len(self.baseline)  # the number of the baseline's process that is the neighbor of this group
        for number, configuration in enumerate(group):
            self._measure(turn, configuration, beside)
            if number == 0 and self._plan.baseline is not None:
                self.baseline.append(self._run(turn, self._plan.baseline))

    def _measure(self, turn: int, configuration: Configuration, beside: int) -> None:
        try:
            result = self._run(turn, configuration)
        except BenchmarkError as error:
            self.absent[configuration.name] = str(error)
            self.results.pop(configuration.name, None)
            self._report(str(error))
            return
        if self._plan.baseline is not None:
            result["baseline_round"] = beside
        self.results.setdefault(configuration.name, []).append(result)

    def _run(self, turn: int, configuration: Configuration) -> dict[str, Any]:
        """Return the result of a process; of a second one if other programs disturbed the first."""
        result = self._run_once(turn, configuration)
        cpus = result["other_cpus"] or 0.0
        if self._quiet is not None and not self._quiet.gave_up and cpus >= QUIET_CPUS:
            self._report(f"once more, because other programs used {cpus:.2f} CPUs: {configuration.name}")
            self._wait()
            result = self._run_once(turn, configuration)
        return result

    def _run_once(self, turn: int, configuration: Configuration) -> dict[str, Any]:
        plan, folder, began = self._plan, self._folder / str(self._num_processes), time.perf_counter()
        self._num_processes += 1
        job = Job(plan.paths, plan.texts, plan.limits, repeat=configuration.name in plan.repeated)
        others = OtherPrograms()
        result = run_job(configuration, job, folder, plan.search_path)
        result |= {"answers": folder / ANSWERS, "other_cpus": others.cpus()}
        self._report(f"round {turn + 1}, {plan.inputs}: {configuration.name} ({time.perf_counter() - began:.0f} s)")
        return result

    def _wait(self) -> None:
        if self._quiet is not None:
            self._quiet.wait()


def in_order(items: Sequence[Item], turn: int) -> list[Item]:
    """Return the items in the order of a round, numbered from 0: every second round is reversed."""
    return list(items) if turn % 2 == 0 else list(reversed(items))


def measure_rows(plan: Plan, report: Report, quiet: QuietMachine | None = None) -> Measured:
    """Measure a plan; with ``quiet``, wait for a quiet machine before each round, and repeat disturbed processes.

    Raises:
        BenchmarkError: the reference or the baseline failed, so that there is nothing to compare with.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_onnx_bench_") as temporary:
        rounds = _Rounds(plan, Path(temporary), report, quiet)
        rounds.run()
        reference = _find_reference(plan, rounds.results, rounds.absent)
        rows = []
        for configuration in plan.configurations:
            if results := rounds.results.get(configuration.name):
                try:
                    rows.append(_make_row(plan, configuration, results, reference))
                except BenchmarkError as error:  # its answers cannot be compared; the others' still can
                    rounds.absent[configuration.name] = str(error)
                    report(f"{configuration.name}: {error}")
        baseline = None if plan.baseline is None else _make_row(plan, plan.baseline, rounds.baseline, reference)
    return Measured(rows, rounds.absent, reference, baseline)


def measure_throughput(
    plan: Plan,
    modes: Sequence[Mode],
    reference: Answers,
    seconds: float,
    report: Report,
    quiet: QuietMachine | None = None,
) -> list[Throughput]:
    """Return images per second of every configuration in every mode, each round a fresh process.

    Failures are reported and left out.
    """
    runs = [
        RateRun(mode, replace(configuration, threads=mode.threads, workers=mode.workers))
        for configuration in plan.configurations
        for mode in modes
    ]
    for turn in range(plan.limits.rounds):
        if quiet is not None:
            quiet.wait()
        _run_rates_round(plan, turn, runs, seconds, reference, report)
    return [
        Throughput(run.configuration.name, **asdict(run.mode), rates=run.rates, reference=str(plan.reference),
                   vision_cosine_min=min(run.cosines))
        for run in runs
        if not run.failed
    ]  # fmt: skip


def _run_rates_round(
    plan: Plan, turn: int, runs: Sequence[RateRun], seconds: float, reference: Answers, report: Report
) -> None:
    for run in in_order([each for each in runs if not each.failed], turn):
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


def _make_row(
    plan: Plan, configuration: Configuration, results: Sequence[dict[str, Any]], reference: Answers | None
) -> Row:
    fidelity = _find_fidelity(plan, configuration, results, reference)
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
        other_cpus=tuple(result["other_cpus"] for result in results),
        baseline_rounds=tuple(result["baseline_round"] for result in results if "baseline_round" in result),
    )
