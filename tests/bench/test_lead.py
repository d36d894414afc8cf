"""Ratios of neighboring measurements, the best rows above the floor of fidelity, and waiting for a quiet machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lead
import pytest
from lead import MEMORY, START, best_row, explain_losses, find_lead, ratio_table, ratios_of
from page import lead_sections
from report import lead_text

from siglip_onnx.bench import quiet as quiet_module
from siglip_onnx.bench import schedule
from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.quiet import QUIET_CPUS, OtherPrograms, QuietMachine
from siglip_onnx.bench.schedule import SLOW_ROUNDS, Plan, measure_rows
from siglip_onnx.bench.schema import END_TO_END, STAGES, TEXT, VISION, Document, Fidelity, Row, Start, read_document
from siglip_onnx.bench.statistics import median_ratio
from siglip_onnx.bench.tables import describe_quiet
from siglip_onnx.bench.timer import Limits
from siglip_onnx.errors import BenchmarkError

HERE = Path(__file__).parents[1] / "support"
NUM_ROUNDS = 5
DRIFT = (1.0, 1.3, 2.0, 1.1, 0.7)  # of the machine's speed, from round to round


def fidelity(cosine: float) -> Fidelity:
    return Fidelity(
        reference="PyTorch fp32", vision_cosine_min=1.0, vision_cosine_mean=1.0, text_cosine_min=cosine,
        text_cosine_mean=1.0, logit_error_mean=0.0, logit_error_max=0.0,
    )  # fmt: skip


def make_row(name: str, ms: Sequence[float], *, cosine: float = 0.9999, start_s: float = 1.0, **more: Any) -> Row:
    """Return a row whose calls take ``ms`` of each round at best."""
    facts: dict[str, Any] = {
        "name": name, "about": "", "backend": "", "variant": "int8", "threads": 2, "inputs": "photographs",
        "fidelity": fidelity(cosine), "stages": {stage: [[2 * each, each] for each in ms] for stage in STAGES},
        "starts": tuple(Start(0.1, 0.2, start_s, 100 * start_s) for _ in ms), "size_bytes": 1, "packages": {},
        "load_averages": (0.0,) * len(ms), "other_cpus": (0.0,) * len(ms),
        "baseline_rounds": tuple(range(len(ms))),
    }  # fmt: skip
    return Row(**(facts | more))


def drifting(ms: float) -> list[float]:
    return [ms * factor for factor in DRIFT]


def make_document(*rows: Row, baseline: Row | None = None) -> Document:
    towers = {tower: {"int8_ms": 5.0} for tower in (VISION, TEXT)}
    beside = baseline or make_row("siglip_onnx int8, baseline", drifting(10), baseline_rounds=())
    settings = {"rounds": NUM_ROUNDS, "min_samples": 60, "min_seconds": 10, "images": 2, "texts": 2}
    return Document("tiny", {}, settings, rows, limit={"towers": towers}, baseline=beside)


def test_a_ratio_to_the_neighbor_does_not_drift_with_the_machine() -> None:
    document = make_document(make_row("peer", drifting(12)))
    assert ratios_of(document, document.rows[0], VISION) == pytest.approx([1.2] * NUM_ROUNDS)
    # The baseline is measured more often than a row: each round has its own neighbor.
    often = make_row("baseline", [10.0, 20.0, 40.0], baseline_rounds=())
    document = make_document(make_row("peer", [20.0, 20.0], baseline_rounds=(2, 0)), baseline=often)
    assert ratios_of(document, document.rows[0], TEXT) == [0.5, 2.0]


def test_ratios_need_a_baseline_beside_each_round() -> None:
    document = make_document(make_row("peer", [1.0, 2.0], baseline_rounds=(0,)))
    with pytest.raises(BenchmarkError, match="peer was measured without a baseline beside it"):
        ratios_of(document, document.rows[0], VISION)
    with pytest.raises(BenchmarkError, match="without a baseline"):
        ratios_of(replace(document, baseline=None), document.rows[0], VISION)


def test_median_of_ratios_has_an_interval() -> None:
    ratio = median_ratio([1.0, 1.2, 1.1, 1.3, 9.0])
    assert ratio.value == 1.2
    assert 1.0 <= ratio.low < 1.2 < ratio.high <= 9.0
    steady = median_ratio([1.2] * 7)
    assert (steady.low, steady.value, steady.high) == (1.2, 1.2, 1.2)
    many = median_ratio([1.0, 1.1, 1.2, 1.3, 1.4] * 20)
    assert many.high - many.low < ratio.high - ratio.low


def test_best_rows_are_above_the_floor_of_fidelity() -> None:
    rows = [
        make_row("siglip_onnx int8", drifting(10)),
        make_row("siglip_onnx q4", drifting(5), cosine=lead.FLOOR - 1e-4),
        make_row("siglip_onnx qdq, OpenVINO", drifting(9), cosine=lead.FLOOR, start_s=3),
        make_row("OpenVINO NNCF int8", drifting(6), cosine=0.993),
        make_row("OpenVINO int8 weights", drifting(11)),
        make_row("PyTorch fp32", drifting(30), cosine=1.0, start_s=0.5),
    ]
    document = make_document(*rows)
    assert best_row(document, VISION, ours=True).name == "siglip_onnx qdq, OpenVINO"
    assert best_row(document, VISION, ours=False).name == "OpenVINO int8 weights"
    assert find_lead(document, VISION).ratio.value == pytest.approx(11 / 9)
    assert find_lead(document, START).ratio.value == pytest.approx(0.5)
    assert {find_lead(document, START).ours.name, find_lead(document, MEMORY).ours.name} == {"siglip_onnx int8"}
    assert find_lead(document, START).peer.name == "PyTorch fp32"
    text = "\n".join(lead_sections(document))
    assert "Faster, but not as faithful: siglip_onnx q4, 3.50 ms, worst cosine 0.9989; OpenVINO NNCF" in text
    assert "| vision | siglip_onnx qdq, OpenVINO, 9.90 ms | OpenVINO int8 weights, 12.1 ms | **1.22" in text
    assert "Missed:\n\n* start: siglip_onnx int8 imports for 0.10 s" in text
    assert "* peak memory: both have the files" in text
    slower = make_document(rows[0], make_row("OpenVINO int8 weights", drifting(9)))
    assert "* vision: siglip_onnx int8 takes 7.00 ms, OpenVINO int8 weights 6.30 ms. The limit of int8" in "\n".join(
        explain_losses(slower)
    )
    assert "vision 1.22 (1.22-1.22), " in lead_text(document)
    with pytest.raises(BenchmarkError, match=r"No row of a peer has a worst cosine of 0\.999"):
        best_row(make_document(*rows[:4]), VISION, ours=False)


@pytest.mark.parametrize(
    ("peer_ms", "verdict"),
    [([12.0] * 5, "met"), ([10.0, 11.5, 11.5, 11.5, 11.0], "met, but the interval reaches below"),
     ([10.5] * 5, "missed")],
)  # fmt: skip
def test_a_target_is_met_certainly_by_the_median_or_not(peer_ms: list[float], verdict: str) -> None:
    ours = make_row("siglip_onnx int8", [10.0] * 5)
    baseline = replace(ours, name="baseline", baseline_rounds=())
    lead_ = find_lead(make_document(ours, make_row("peer", peer_ms), baseline=baseline), END_TO_END)
    assert lead_.verdict == verdict


def test_a_row_of_fewer_rounds_is_compared_in_those() -> None:
    ours, peer = make_row("siglip_onnx int8", drifting(10)), make_row("torchao int8", drifting(13)[:3])
    assert find_lead(make_document(ours, peer), VISION).ratio.value == pytest.approx(1.3)


def test_a_row_is_stable_or_says_why() -> None:
    steady = make_row("steady", drifting(10))
    shaky = make_row("shaky", [10.0, 20.0, 14.0, 10.0, 10.0])
    disturbed = replace(shaky, name="disturbed", other_cpus=(0.0, 1.5, 0.0, None, 0.0))
    baseline = make_row("baseline", [10.0, 10.0, 10.0, 10.0, 10.0], baseline_rounds=())
    _, lines = ratio_table(make_document(shaky, disturbed, replace(steady, stages=baseline.stages), baseline=baseline))
    assert {line[0]: line[-1] for line in lines} == {
        "steady": "yes", "shaky": "no, vision: its rounds differ by 100%",
        "disturbed": "no, vision: other programs used up to 1.50 CPUs",
    }  # fmt: skip
    _, ((*_, reason),) = ratio_table(make_document(replace(steady, stages=baseline.stages)))
    assert reason.startswith("no, vision: the baseline beside it differs by 186%")
    _, ((*_, reason),) = ratio_table(make_document(make_row("once", [10.0])))
    assert reason == "not known after 1 rounds"


def test_a_document_with_a_baseline_survives_being_written(tmp_path: Path) -> None:
    document = make_document(make_row("peer", drifting(12), other_cpus=(0.0, None, 0.2, 0.0, 0.0)))
    path = tmp_path / "results.json"
    path.write_text(document.to_json(), encoding="utf-8")
    assert read_document(path).to_json() == document.to_json()
    assert describe_quiet(document) == " Other programs used 0.00 CPUs in the median process, 0.20 at most."


def test_without_a_baseline_there_is_no_lead() -> None:
    document = replace(make_document(make_row("peer", [1.0])), baseline=None)
    assert lead_sections(document) == []
    assert lead_text(document) == ""


def configuration(name: str) -> Configuration:
    variant = "failing" if name == "failing" else "reference"
    return Configuration(name, "sleeping", variant, bundle="", threads=1)


def test_each_configuration_is_measured_next_to_the_baseline() -> None:
    names = ["reference", "b", "failing", "c", "slow"]
    plan = Plan(
        [configuration(name) for name in names], [Path("0.jpg")], ["a"], "reference",
        limits=Limits(rounds=SLOW_ROUNDS + 1, min_samples=1, min_seconds=0.1), baseline=configuration("baseline"),
        slow=frozenset({"slow"}), search_path=(HERE,),
    )  # fmt: skip
    lines: list[str] = []
    measured = measure_rows(plan, lines.append)
    order = [line.split(": ")[1].split(" (")[0] for line in lines if line.startswith("round ")]
    assert order[:7] == ["reference", "baseline", "b", "baseline", "c", "slow", "baseline"]
    assert order[7:14] == ["slow", "baseline", "c", "baseline", "b", "baseline", "reference"]
    assert order.count("slow") == SLOW_ROUNDS
    assert order[-3:] == ["b", "baseline", "reference"]
    assert measured.baseline is not None
    assert len(measured.baseline.starts) == order.count("baseline")
    assert measured.baseline.baseline_rounds == ()
    rows = {row.name: row for row in measured.rows}
    assert rows.keys() == {"reference", "b", "c", "slow"}
    # The number of the baseline's process before or after each row.
    assert rows["reference"].baseline_rounds[:2] == rows["b"].baseline_rounds[:2] == (0, 5)
    assert rows["c"].baseline_rounds[:2] == (1, 4)
    assert rows["slow"].baseline_rounds[:2] == (2, 3)


class Clock:
    """A machine on which other programs use so many CPUs, one value for each window."""

    def __init__(self, *cpus: float | None) -> None:
        self.cpus, self.slept = list(cpus), 0.0

    def watch(self, seconds: float) -> float | None:
        self.slept += seconds
        return self.cpus.pop(0)


def test_a_quiet_machine_is_waited_for() -> None:
    clock, lines = Clock(1.2, QUIET_CPUS, 0.05, 0.9), []
    quiet = QuietMachine(100, lines.append, clock.watch)
    quiet.wait()
    assert clock.cpus == [0.9]
    assert 0 < quiet.waited_s < clock.slept  # the last window was quiet
    assert not quiet.gave_up
    assert lines == ["waiting: other programs use 1.20 CPUs", "waiting: other programs use 0.15 CPUs"]


def test_waiting_has_a_limit_in_all() -> None:
    clock, lines = Clock(*[1.0] * 50), []
    quiet = QuietMachine(10, lines.append, clock.watch)
    quiet.wait()
    slept = clock.slept
    assert 10 <= quiet.waited_s == slept < 20
    quiet.wait()  # no time is left
    assert clock.slept - slept < 10
    assert quiet.gave_up == 2
    assert lines[-1].endswith("no time is left to wait: measuring anyway")


def test_a_system_that_does_not_tell_is_not_waited_for() -> None:
    clock = Clock(None)
    QuietMachine(10, pytest.fail, clock.watch).wait()
    assert clock.cpus == []


def test_a_disturbed_process_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0, 0.8, 0.1, 0.0]
    monkeypatch.setattr(schedule.OtherPrograms, "cpus", lambda _: used.pop(0))
    plan = Plan([configuration("reference"), configuration("b")], [Path("0.jpg")], ["a"], "reference",
                limits=Limits(rounds=1, min_samples=1, min_seconds=0.1), search_path=(HERE,))  # fmt: skip
    lines: list[str] = []
    measured = measure_rows(plan, lines.append, QuietMachine(10, lines.append, lambda _: 0.0))
    assert [row.other_cpus for row in measured.rows] == [(0.0,), (0.1,)]
    assert "once more, because other programs used 0.80 CPUs: b" in lines
    assert used == [0.0]


def test_own_work_is_not_that_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own, clock = [100.0, 108.0], [10.0, 15.0], [0.0, 2.0]
    monkeypatch.setattr(quiet_module, "_busy_seconds", lambda: busy.pop(0))
    monkeypatch.setattr(quiet_module, "_own_seconds", lambda: own.pop(0))
    monkeypatch.setattr(quiet_module, "time", SimpleNamespace(perf_counter=lambda: clock.pop(0)))
    assert OtherPrograms().cpus() == 1.5
    busy[:], own[:], clock[:] = [None], [0.0], [0.0]  # type: ignore[list-item]
    busy.append(1.0)
    assert OtherPrograms().cpus() is None
