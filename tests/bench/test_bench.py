"""The benchmark itself: known times, known samples, and no speed without fidelity."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import sleeping

from siglip_onnx.bench.compare import compare_documents
from siglip_onnx.bench.contestant import Configuration
from siglip_onnx.bench.fidelity import Answers, compare_answers
from siglip_onnx.bench.machine import describe_machine, peak_memory_mb
from siglip_onnx.bench.process import pinned_environment, run_command
from siglip_onnx.bench.schedule import Mode, Plan, in_rounds, measure_rows, measure_throughput
from siglip_onnx.bench.schema import STAGES, VISION, Document, Fidelity, Row, Start, Throughput, read_document
from siglip_onnx.bench.statistics import bootstrap_mean, ratio_of, summarize
from siglip_onnx.bench.tables import document_markdown, speed_table, three_digits, to_csv
from siglip_onnx.bench.timer import Limits, time_calls
from siglip_onnx.errors import BenchmarkError

HERE = Path(__file__).parents[1] / "support"
FIDELITY = Fidelity("PyTorch fp32", 0.9998, 0.9999, 0.9997, 0.9999, 0.1, 0.4, 0.0, 0)


def configuration(variant: str) -> Configuration:
    return Configuration(variant, "sleeping", variant, bundle="", threads=1, about="sleeps")


@pytest.fixture(scope="module")
def measured() -> Any:
    """Three rounds of the reference, of one that answers otherwise, and of one that fails."""
    plan = Plan(
        [configuration("reference"), configuration("wrong"), configuration("failing")],
        [Path(f"{number}.jpg") for number in range(4)], ["a", "bb"], "reference",
        limits=Limits(rounds=3, min_samples=12, min_seconds=30), repeated=frozenset({"reference"}),
        search_path=(HERE,),
    )  # fmt: skip
    lines: list[str] = []
    rows, absent, reference = measure_rows(plan, lines.append)
    return plan, {row.name: row for row in rows}, absent, reference, lines


def test_a_known_time_is_measured(measured: Any) -> None:
    _, rows, _, _, _ = measured
    row = rows["reference"]
    # Sleeping is never shorter; how much longer it is, is up to the machine, so only the least is compared.
    assert 1000 * sleeping.VISION_S <= row.summary(VISION).min < 2 * 1000 * sleeping.VISION_S
    assert row.summary("text").min >= 1000 * sleeping.TEXT_S
    whole = row.summary("end to end").min
    assert whole >= 1000 * (sleeping.VISION_S + sleeping.TEXT_S)
    assert row.summary("head").min < row.summary("text").min
    assert set(row.stages) == {*STAGES, "vision, one picture again and again"}
    assert [len(samples) for samples in row.stages[VISION]] == [4, 4, 4]
    assert all(start.first_answer_s > start.load_s + start.import_s > 0 for start in row.starts)
    assert len({start.first_answer_s for start in row.starts}) == 3  # three processes


def test_fidelity_is_that_of_the_timed_answers(measured: Any) -> None:
    _, rows, _, reference, _ = measured
    assert rows["reference"].fidelity.vision_cosine_min == pytest.approx(1)
    assert rows["reference"].fidelity.logit_error_max == 0
    wrong = reference.vision.copy()
    wrong[:, 0] += 1
    cosine = (
        (wrong * reference.vision).sum(1) / np.linalg.norm(wrong, axis=1) / np.linalg.norm(reference.vision, axis=1)
    )
    assert rows["wrong"].fidelity.vision_cosine_min == pytest.approx(cosine.min(), abs=1e-6)
    assert rows["wrong"].fidelity.vision_cosine_mean == pytest.approx(cosine.mean(), abs=1e-6)
    assert rows["wrong"].fidelity.text_cosine_min == pytest.approx(1)
    assert rows["wrong"].fidelity.logit_error_max > 0.1


def test_who_fails_has_no_row_but_a_reason(measured: Any) -> None:
    _, rows, absent, _, lines = measured
    assert rows.keys() == {"reference", "wrong"}
    assert absent == {"failing": "failing failed: RuntimeError: no such kernel"}
    assert absent["failing"] in lines
    assert [line.split(": ")[1].split(" (")[0] for line in lines if line.startswith("round 2")] == [
        "wrong",
        "reference",
    ]


def test_a_failing_reference_leaves_nothing_to_compare_with(measured: Any) -> None:
    plan = replace(measured[0], reference="failing", limits=Limits(rounds=1, min_samples=1))
    with pytest.raises(BenchmarkError, match=r"The reference could not be measured\. failing failed: RuntimeError"):
        measure_rows(plan, lambda _: None)


def test_answers_that_are_no_numbers_get_no_row(measured: Any) -> None:
    both = [configuration("reference"), configuration("numberless")]
    plan = replace(measured[0], configurations=both, limits=Limits(rounds=1, min_samples=1))
    rows, absent, reference = measure_rows(plan, lambda _: None)
    assert [row.name for row in rows] == ["reference"]
    assert "vision_cosine_min is nan" in absent["numberless"]
    lines: list[str] = []
    plan = replace(plan, configurations=both[1:])
    assert measure_throughput(plan, [Mode(1, 1, 1)], reference, 0.1, lines.append) == []  # type: ignore[arg-type]
    assert "numberless gave features that are no numbers" in lines[0]


def test_workers_give_twice_the_rate_of_one_that_sleeps(measured: Any) -> None:
    plan = replace(measured[0], configurations=[configuration("wrong")], limits=Limits(rounds=1))
    one, two, batch = measure_throughput(
        plan, [Mode(1, 1, 1), Mode(2, 1, 1), Mode(1, 1, 4)], measured[3], 0.2, lambda _: None
    )
    assert (one.workers, two.workers, batch.batch) == (1, 2, 4)
    assert 1.5 < two.summary.median / one.summary.median < 2.5
    assert 2.5 < batch.summary.median / one.summary.median < 5  # four pictures in one sleep
    assert one.vision_cosine_min == pytest.approx(measured[1]["wrong"].fidelity.vision_cosine_min)


def test_rounds_alternate() -> None:
    one, two = configuration("one"), configuration("two")
    assert [(turn, found.name) for turn, found in in_rounds([one, two], 3)] == [
        (0, "one"), (0, "two"), (1, "two"), (1, "one"), (2, "one"), (2, "two"),
    ]  # fmt: skip


def test_the_timer_uses_every_input_and_keeps_its_last_output() -> None:
    asked: list[int] = []

    def double(number: int) -> int:
        asked.append(number)
        return 2 * number

    samples, outputs = time_calls(double, [1, 2, 3], Limits(rounds=2, min_samples=8))
    assert len(samples) == 4
    assert outputs == [2, 4, 6]
    assert asked[-4:] == [1, 2, 3, 1]
    assert len(time_calls(double, [1, 2, 3], Limits(rounds=2, min_samples=2))[0]) == 3


def test_summary_of_known_samples() -> None:
    summary = summarize([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]])
    assert (summary.min, summary.median, summary.p90, summary.num_samples) == (1.0, 6.0, 10.0, 11)
    assert summary.spread == pytest.approx(7.5 / 2)
    assert summary.unstable


@pytest.mark.parametrize(("last", "unstable"), [(109.0, False), (111.0, True), (89.0, True)])
def test_rounds_that_differ_by_more_than_a_tenth_are_unstable(last: float, unstable: bool) -> None:
    assert summarize([[100.0, 100.0, 100.0], [100.0] * 3, [last, last, 1000.0]]).unstable == unstable


def test_interval_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    before = [list(10 + rng.normal(0, 0.2, 40)) for _ in range(3)]
    after = [list(12 + rng.normal(0, 0.2, 40)) for _ in range(3)]
    ratio = ratio_of(after, before)
    assert ratio.value == pytest.approx(1.2, abs=0.02)
    assert 1.17 < ratio.low < ratio.value < ratio.high < 1.23
    same = ratio_of([list(10 + rng.normal(0, 0.2, 40)) for _ in range(3)], before)
    assert same.low < 1 < same.high
    # Rounds that disagree say less, however many samples each has.
    moody = ratio_of(
        [[value * mood for value in samples] for mood, samples in zip((0.8, 1, 1.2), before, strict=True)], before
    )
    assert moody.high - moody.low > 3 * (same.high - same.low)


def test_interval_of_a_mean_covers_it() -> None:
    loss = bootstrap_mean(np.array([0.0] * 90 + [1.0] * 10))
    assert loss.value == pytest.approx(0.1)
    assert 0.03 < loss.low < 0.1 < loss.high < 0.18


def make_row(name: str = "engine int8", scale: float = 1.0, **changes: Any) -> Row:
    rng = np.random.default_rng(1)
    stages = {stage: [list(scale * (10 + rng.normal(0, 0.1, 20)).round(4)) for _ in range(3)] for stage in STAGES}
    facts: dict[str, Any] = {
        "name": name, "about": "as documented", "backend": "sleeping", "variant": "int8", "threads": 2,
        "inputs": "photographs", "fidelity": FIDELITY, "stages": stages,
        "starts": (Start(0.1, 0.2, 0.5, 150.0), Start(0.1, 0.2, 0.7, 151.0)), "size_bytes": 379_000_000,
        "packages": {"onnxruntime": "1.2"}, "load_averages": (0.1, 0.2, 0.1),
    }  # fmt: skip
    return Row(**(facts | changes))


def make_document(*rows: Row) -> Document:
    settings = {
        "rounds": 3,
        "min_samples": 64,
        "min_seconds": 10.0,
        "pictures": 16,
        "texts": 16,
        "reference": "PyTorch",
    }
    throughput = (Throughput("engine int8", 2, 1, 1, ((4.0, 4.1), (4.2,), (4.1,)), "PyTorch", 0.9998),)
    return Document("tiny", describe_machine(("torch",)), settings, rows, throughput, {"OpenVINO": "not installed"})


def test_a_row_without_fidelity_is_impossible() -> None:
    facts = {one: getattr(make_row(), one) for one in make_row().__dataclass_fields__}
    with pytest.raises(TypeError, match="fidelity"):
        Row(**{key: value for key, value in facts.items() if key != "fidelity"})
    with pytest.raises(BenchmarkError, match="has no fidelity"):
        make_row(fidelity=None)
    with pytest.raises(BenchmarkError, match="no fidelity"):
        Throughput("engine", 1, 1, 1, ((1.0,),), "", 0.99)
    for worse in ({"vision_cosine_min": float("nan")}, {"reference": ""}, {"text_cosine_min": 1.1}):
        with pytest.raises(BenchmarkError):
            replace(FIDELITY, **worse)
    document = json.loads(make_document(make_row()).to_json())
    del document["rows"][0]["fidelity"]
    with pytest.raises(BenchmarkError, match="incomplete or damaged"):
        read_back(document)


@pytest.mark.parametrize("stages", [{VISION: []}, {VISION: [[]]}, {VISION: [[1.0], [0.0]]}, {VISION: [[float("nan")]]}])
def test_a_row_without_times_is_impossible(stages: dict[str, list[list[float]]]) -> None:
    with pytest.raises(BenchmarkError, match="a round without samples"):
        make_row(stages=stages)


def test_a_document_survives_being_written(tmp_path: Path) -> None:
    document = make_document(make_row(), make_row("PyTorch fp32"))
    path = tmp_path / "results.json"
    path.write_text(document.to_json(), encoding="utf-8")
    found = read_document(path)
    assert found.to_json() == document.to_json()
    assert found.rows[0].summary(VISION) == document.rows[0].summary(VISION)


def test_committed_results_are_whole() -> None:
    results = HERE.parents[1] / "benchmarks" / "results" / "base_multilingual.json"
    assert results.stat().st_size < 1_000_000
    document = read_document(results)
    assert all(len(rounds) >= 3 for row in document.rows for rounds in row.stages.values())
    assert {row.fidelity.reference for row in document.rows} == {"PyTorch fp32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "holds no results of format"),
        ({"schema_version": 99}, "schema version 99, this siglip_onnx reads 1"),
        ({"rows": [{}]}, "incomplete or damaged"),
        ({"machine": None, "surplus": 1}, "incomplete or damaged"),
    ],
)
def test_documents_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        read_back(json.loads(make_document(make_row()).to_json()) | change)


def test_a_change_is_told_with_its_interval() -> None:
    before, after = make_document(make_row()), make_document(make_row(scale=1.2))
    changes = {change.stage: change for change in compare_documents(before, after)}
    assert changes.keys() == {"vision", "text", "end to end"}
    assert changes[VISION].ratio.value == pytest.approx(1.2)
    assert changes[VISION].certain
    assert changes[VISION].slower_than(0.1)
    assert not changes[VISION].slower_than(0.3)
    assert not any(change.slower_than(0) for change in compare_documents(before, before))
    with pytest.raises(BenchmarkError, match="share no configuration"):
        compare_documents(before, make_document(make_row("other")))
    with pytest.raises(BenchmarkError, match="ran on 2 threads before and on 4 after"):
        compare_documents(before, make_document(make_row(threads=4)))


def test_a_noisy_slower_run_is_not_surely_slower() -> None:
    noisy = [[9.0, 15.0, 9.5, 14.0], [8.0, 16.0, 8.5, 12.0], [15.0, 9.0, 13.0, 9.0]]
    row = make_row()
    change = compare_documents(
        make_document(row), make_document(replace(row, stages=dict.fromkeys(row.stages, noisy)))
    )[0]
    assert change.ratio.value > 1.1
    assert not change.slower_than(0.1)


def test_tables_mark_what_is_unstable_and_name_what_is_absent() -> None:
    row = make_row()
    shaky = replace(row, name="shaky", stages=row.stages | {VISION: [[10.0, 10.0], [13.0, 13.0]]})
    _, (steady_cells, shaky_cells) = speed_table(make_document(row, shaky))
    assert "unstable" not in steady_cells[1]
    assert shaky_cells[1] == "10.0 / 11.5 / 13.0 unstable"
    assert steady_cells[4:] == ["0.99980 / 0.99970", "0.4", "0.60", "151", "379"]
    text = document_markdown(make_document(row))
    assert "* OpenVINO: not installed" in text
    assert "to PyTorch fp32" in text
    assert [three_digits(value) for value in (0.03124, 4.149, 43.06, 335.4)] == ["0.0312", "4.15", "43.1", "335"]


def test_csv_has_every_sample_with_its_fidelity() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(make_document(make_row())))))
    assert len(lines) == len(STAGES) * 60
    assert {line["vision_cosine_min"] for line in lines} == {"0.9998"}
    assert {line["round"] for line in lines} == {"1", "2", "3"}


def test_answers_of_another_shape_are_refused(tmp_path: Path) -> None:
    answers = Answers([np.zeros((1, 3, 2, 2))], np.ones((1, 4), np.int64), np.ones((1, 8), np.float32),
                      np.ones((1, 8), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))  # fmt: skip
    answers.save(tmp_path / "answers.npz")
    assert compare_answers([tmp_path / "answers.npz"], answers, "itself").cosine_min == pytest.approx(1)
    with pytest.raises(BenchmarkError, match="another model"):
        compare_answers([tmp_path / "answers.npz"], replace(answers, vision=np.ones((1, 9), np.float32)), "another")


def test_a_process_gets_its_threads_and_no_network() -> None:
    environment = pinned_environment(replace(configuration("reference"), threads=3), (HERE,))
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert environment["HF_HUB_OFFLINE"] == environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["PYTHONPATH"].split(":")[0] == str(HERE)


def test_a_command_has_its_own_memory() -> None:
    ballast = np.ones(30_000_000)  # 240 MB, which a child must not be charged for
    found = run_command(["--help"])
    assert ballast.sum() == len(ballast)
    assert 5 < found["peak_memory_mb"] < 100
    assert found["seconds"] > 0
    assert peak_memory_mb() > 240
    with pytest.raises(BenchmarkError, match=r"siglip-onnx info --model /nowhere failed: .*was not found"):
        run_command(["info", "--model", "/nowhere"])


def read_back(document: dict[str, Any]) -> Document:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        return read_document(Path(file.name))
