"""The benchmark: known times, known samples, and no speed without fidelity."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import sleeping

from siglip_onnx.bench.backend import Configuration
from siglip_onnx.bench.compare import compare_documents
from siglip_onnx.bench.fidelity import Answers, compare_answers
from siglip_onnx.bench.machine import BUSY, describe_busy, describe_machine, is_busy
from siglip_onnx.bench.process import pinned_environment
from siglip_onnx.bench.schedule import Plan, measure_rows, measure_throughput
from siglip_onnx.bench.schema import (
    SAME_IMAGE,
    STAGES,
    TEXT,
    VISION,
    Document,
    Fidelity,
    Mode,
    Row,
    Start,
    Throughput,
    read_document,
)
from siglip_onnx.bench.statistics import ratio_of, summarize
from siglip_onnx.bench.tables import document_markdown, format_measurement, speed_table
from siglip_onnx.bench.timer import Limits, time_calls
from siglip_onnx.errors import BenchmarkError

HERE = Path(__file__).parents[1] / "support"
FIDELITY = Fidelity(
    reference="PyTorch fp32", vision_cosine_min=0.9998, vision_cosine_mean=0.9999, text_cosine_min=0.9997,
    text_cosine_mean=0.9999, logit_error_mean=0.1, logit_error_max=0.4, pixel_error=0.0, ids_different=0,
)  # fmt: skip


def configuration(variant: str) -> Configuration:
    return Configuration(variant, "sleeping", variant, bundle="", threads=1, about="sleeps")


@pytest.fixture(scope="module")
def measured() -> Any:
    """Three rounds of the reference, of a backend with other answers, and of one that fails."""
    plan = Plan(
        [configuration("reference"), configuration("wrong"), configuration("failing")],
        [Path(f"{number}.jpg") for number in range(4)], ["a", "bb"], "reference",
        limits=Limits(rounds=3, min_samples=12, min_seconds=30), repeated=frozenset({"reference"}),
        search_path=(HERE,),
    )  # fmt: skip
    lines: list[str] = []
    found = measure_rows(plan, lines.append)
    return plan, {row.name: row for row in found.rows}, found.absent, found.reference, lines


def test_a_known_time_is_measured(measured: Any) -> None:
    _, rows, _, _, _ = measured
    row = rows["reference"]
    # Sleeping is never shorter, on whatever machine; how much longer it takes is not asserted.
    assert row.summary(VISION).min >= 1000 * sleeping.VISION_S
    assert row.summary(TEXT).min >= 1000 * sleeping.TEXT_S
    assert row.summary("end to end").min >= 1000 * (sleeping.VISION_S + sleeping.TEXT_S)
    assert set(row.stages) == {*STAGES, SAME_IMAGE}
    assert [len(samples) for samples in row.stages[VISION]] == [4, 4, 4]
    assert all(start.first_answer_s > start.load_s + start.import_s > 0 for start in row.starts)
    assert len(row.starts) == 3
    assert all(start.import_s > 0 for start in row.starts)  # every process imports the backend itself


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


def test_a_failing_backend_has_a_reason_instead_of_a_row(measured: Any) -> None:
    _, rows, absent, _, lines = measured
    assert rows.keys() == {"reference", "wrong"}
    assert absent == {"failing": "failing failed: RuntimeError: no such kernel"}
    assert absent["failing"] in lines
    second = [line.split(": ")[1].split(" (")[0] for line in lines if line.startswith("round 2")]
    assert second == ["wrong", "reference"]


def test_a_failing_reference_leaves_nothing_to_compare_with(measured: Any) -> None:
    plan = replace(measured[0], reference="failing", limits=Limits(rounds=1, min_samples=1))
    with pytest.raises(BenchmarkError, match=r"The reference could not be measured\. failing failed: RuntimeError"):
        measure_rows(plan, lambda _: None)


def test_answers_with_nan_get_no_row(measured: Any) -> None:
    both = [configuration("reference"), configuration("nan")]
    plan = replace(measured[0], configurations=both, limits=Limits(rounds=1, min_samples=1))
    found = measure_rows(plan, lambda _: None)
    assert [row.name for row in found.rows] == ["reference"]
    assert "vision_cosine_min is nan" in found.absent["nan"]
    assert found.reference is not None
    lines: list[str] = []
    plan = replace(plan, configurations=both[1:])
    assert measure_throughput(plan, [Mode(1, 1, 1)], found.reference, 0.1, lines.append) == []
    assert lines == ["1 thread: nan returned NaN or infinity."]


def test_throughput_of_workers_and_batches(measured: Any) -> None:
    plan = replace(measured[0], configurations=[configuration("wrong")], limits=Limits(rounds=2))
    modes = [Mode(1, 1, 1), Mode(2, 1, 1), Mode(1, 1, 4)]
    lines: list[str] = []
    results = measure_throughput(plan, modes, measured[3], 0.2, lines.append)
    assert [result.mode for result in results] == modes
    assert [len(result.rates) for result in results] == [2, 2, 2]
    # A pass of four images cannot be faster than its sleeps: four, two by two, or one.
    sleeps = (4, 2, 1)
    for result, count in zip(results, sleeps, strict=True):
        assert max(rate for rates in result.rates for rate in rates) <= 4 / (count * sleeping.VISION_S)
        assert result.vision_cosine_min == pytest.approx(measured[1]["wrong"].fidelity.vision_cosine_min)
    assert results[2].summary.median > results[0].summary.median  # 20 ms of sleep for 80
    assert lines[2:4] == [f"round {turn}, throughput: wrong, 1 thread, batches of 4" for turn in (1, 2)]


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
    # Rounds that differ widen the interval, however many samples each has.
    unsteady = ratio_of(
        [[value * factor for value in samples] for factor, samples in zip((0.8, 1, 1.2), before, strict=True)], before
    )
    assert unsteady.high - unsteady.low > 3 * (same.high - same.low)


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
    settings = {"rounds": 3, "min_samples": 64, "min_seconds": 10.0, "images": 16, "texts": 16, "reference": "PyTorch"}
    throughput = (Throughput("engine int8", 2, 1, 1, ((4.0, 4.1), (4.2,), (4.1,)), "PyTorch", 0.9998),)
    return Document("tiny", describe_machine(("torch",)), settings, rows, throughput, {"OpenVINO": "not installed"})


def test_a_row_without_fidelity_is_impossible() -> None:
    facts = {name: getattr(make_row(), name) for name in make_row().__dataclass_fields__}
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
    again = read_document(path)
    assert again.to_json() == document.to_json()
    assert again.rows[0].summary(VISION) == document.rows[0].summary(VISION)


def test_results_of_version_0_1_0_are_read() -> None:
    """They say "picture" where "image" is meant."""
    written = make_document(make_row(stages={SAME_IMAGE: [[1.0]]}))
    written = replace(written, processes={"classify, one image and two texts": {"seconds": [1.0]}})
    old = json.loads(written.to_json())
    old["settings"]["pictures"] = old["settings"].pop("images")
    old["rows"][0]["stages"] = {"vision, one picture again and again": [[1.0]]}
    old["processes"] = {"classify, one picture and two texts": {"seconds": [1.0]}}
    assert read_back(old) == read_back(json.loads(written.to_json()))


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
        ({"machine": {"cpu": float("nan")}}, "incomplete or damaged"),
    ],
)
def test_documents_of_another_format_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        read_back(json.loads(make_document(make_row()).to_json()) | change)


def test_a_change_has_an_interval() -> None:
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


def test_a_noisy_slower_run_is_not_reported_as_slower() -> None:
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
    assert "timed answers with PyTorch fp32" in text


def test_measurements_have_three_significant_digits() -> None:
    assert [format_measurement(value) for value in (0.03124, 4.149, 43.06, 335.4)] == ["0.0312", "4.15", "43.1", "335"]


def test_answers_of_another_shape_are_refused(tmp_path: Path) -> None:
    answers = Answers([np.zeros((1, 3, 2, 2))], np.ones((1, 4), np.int64), np.ones((1, 8), np.float32),
                      np.ones((1, 8), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))  # fmt: skip
    answers.save(tmp_path / "answers.npz")
    assert compare_answers([tmp_path / "answers.npz"], answers, "itself").cosine_min == pytest.approx(1)
    with pytest.raises(BenchmarkError, match=r"have shape \(1, 8\); expected \(1, 9\)"):
        compare_answers([tmp_path / "answers.npz"], replace(answers, vision=np.ones((1, 9), np.float32)), "another")


def test_a_process_gets_its_threads_and_no_network() -> None:
    environment = pinned_environment(replace(configuration("reference"), threads=3), (HERE,))
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert environment["HF_HUB_OFFLINE"] == environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["PYTHONPATH"].split(":")[0] == str(HERE)


def test_a_machine_is_busy_by_any_of_its_load_averages() -> None:
    limit = 2 * BUSY
    assert not is_busy((limit, limit, limit), 2)
    for number in range(3):
        load = [0.0, 0.0, 0.0]
        load[number] = limit + 0.01
        assert is_busy(load, 2)
    # Version 0.1.0 judged by the first average alone and recorded "busy": false here.
    old = describe_machine() | {"threads": 2, "load_average": [0.38, 1.22, 2.02], "busy": False}
    assert describe_busy(old) == " The machine was busy before the start: load averages 0.38, 1.22, 2.02."


def read_back(document: dict[str, Any]) -> Document:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        return read_document(Path(file.name))
