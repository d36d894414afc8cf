"""``siglip-onnx bench`` as a user types it, on the demo model and on a small checkpoint beside PyTorch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import assert_error, run

from siglip_onnx.bench.schema import VISION, Throughput, read_document
from siglip_onnx.bundle import read_manifest
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH


@pytest.fixture(scope="module")
def results(small_bundle: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both variants beside PyTorch, measured quickly."""
    out = tmp_path_factory.mktemp("bench") / "results.json"
    done = run("bench", small_bundle, "--reference", small_checkpoint, "--quick", "--threads", 1, "--images",
                 IMAGES_PATH, "-o", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "siglip_onnx int8" in done.stdout
    assert "round 2, photographs: PyTorch fp32" in done.stderr
    return out


def test_every_variant_is_compared_with_pytorch(results: Path) -> None:
    rows = {row.name: row for row in read_document(results).rows}
    assert rows.keys() == {"PyTorch fp32", "siglip_onnx fp32", "siglip_onnx int8"}
    assert {row.fidelity.reference for row in rows.values()} == {"PyTorch fp32"}
    assert rows["siglip_onnx fp32"].fidelity.vision_cosine_min > 1 - 1e-6
    assert rows["siglip_onnx fp32"].fidelity.logit_error_max < 1e-3
    assert 0.9 < rows["siglip_onnx int8"].fidelity.cosine_min < 1
    assert all(row.fidelity.pixel_error == row.fidelity.ids_different == 0 for row in rows.values())
    assert rows["siglip_onnx int8"].size_bytes < rows["PyTorch fp32"].size_bytes
    assert rows["PyTorch fp32"].packages["torch"].startswith("2.")
    # A process that loads PyTorch takes more memory and time, by far more than chance.
    memory = {name: row.starts[0].peak_memory_mb for name, row in rows.items()}
    assert memory["PyTorch fp32"] > 2 * memory["siglip_onnx int8"] > 0


def test_throughput_is_measured_for_workers_and_batches(small_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = run("bench", small_bundle, "--variant", "int8", "--rounds", 1, "--threads", 1, "-o", out)
    assert done.exit_code == 0, done.output
    document = read_document(out)
    assert {row.fidelity.reference for row in document.rows} == {"siglip_onnx fp32"}
    found = document.throughput
    assert {(one.workers, one.threads, one.batch) for one in found} == {(1, 1, 1), (1, 1, 8)}
    assert all(one.vision_cosine_min > 0.9 and one.summary.median > 0 for one in found)


def test_a_model_without_fp32_has_only_its_card_to_compare_with(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "demo"))
    manifest = read_manifest(folder)
    only_int8 = replace(manifest, variants={"int8": manifest.variants["int8"]})
    (folder / "manifest.json").write_text(only_int8.to_json(), encoding="utf-8")
    done = run("bench", folder, "--quick", "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert {row["fidelity"]["reference"] for row in document["rows"]} == {"fp32, by the model's accuracy card"}
    assert document["schema_version"] == 1


def test_the_same_results_are_no_change(results: Path) -> None:
    done = run("bench", "compare", results, results, "--fail-if-slower", "10%", "--json")
    assert done.exit_code == 0, done.output
    changes = json.loads(done.stdout)["changes"]
    assert len(changes) == 9
    assert all(change["ratio"]["value"] == 1 and not change["certain"] for change in changes)


def test_a_slower_run_fails(results: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.json"
    document = read_document(results)
    rows = [
        replace(row, stages=dict(row.stages) | {VISION: [[2 * ms for ms in one] for one in row.stages[VISION]]})
        for row in document.rows
    ]
    slow.write_text(replace(document, rows=tuple(rows)).to_json(), encoding="utf-8")
    done = run("bench", "compare", results, slow, "--fail-if-slower", "10%")
    assert_error(done, 1, "siglip-onnx: siglip_onnx int8, vision: 100% slower.")
    assert "slower" in done.stdout
    assert run("bench", "compare", results, slow).exit_code == 0
    assert run("bench", "compare", results, slow, "--fail-if-slower", "150%").exit_code == 0
    assert run("bench", "compare", slow, results, "--fail-if-slower", "10%").exit_code == 0


@pytest.mark.parametrize(("option", "sign"), [("--json", "schema_version"), ("--markdown", "|---")])
def test_results_are_reported_in_every_form(results: Path, option: str, sign: str) -> None:
    done = run("bench", "report", results, option)
    assert done.exit_code == 0
    assert sign in done.stdout.replace("| --- |", "|---|")


@pytest.mark.parametrize("option", ["--markdown", None])
def test_results_of_others_print_no_escapes(results: Path, tmp_path: Path, option: str | None) -> None:
    content = (
        results.read_text()
        .replace("PyTorch fp32", "\\u001b[31mPyTorch\\n fp32")
        .replace('"cpu": "', '"cpu": "\\u001b]0;x')
    )
    (tmp_path / "evil.json").write_text(content)
    done = run("bench", "report", tmp_path / "evil.json", *([option] if option else []))
    assert done.exit_code == 0, done.stderr
    assert "\x1b" not in done.output
    assert "\\x1b[31mPyTorch\\n fp32" in done.stdout


def test_plots_are_drawn_for_both_backgrounds(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from click.testing import CliRunner
    from PIL import Image
    from plots import draw_plots, main

    done = CliRunner().invoke(main, [str(results), str(tmp_path)])
    assert done.exit_code == 0, done.output
    names = {"speed_and_fidelity", "latency_by_stage", "start_and_memory"}
    assert {path.stem for path in tmp_path.glob("*.svg")} == {path.stem for path in tmp_path.glob("*.png")} == names
    rates = [Throughput("siglip_onnx int8", workers, 1, 1, ((4.0,),), "PyTorch", 0.9998) for workers in (1, 2)]
    drawn = draw_plots(replace(read_document(results), throughput=tuple(rates)), tmp_path)
    assert {path.stem for path in drawn} == names | {"throughput"}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == 0  # type: ignore[index] # transparent


def test_names_in_the_plot_do_not_overlap(results: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation, Text
    from plots import draw_pareto

    document = read_document(results)
    rows = [
        replace(document.rows[number % 3], name=f"{document.rows[number % 3].name} {number}") for number in range(12)
    ]
    figure = draw_pareto(replace(document, rows=tuple(rows)))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [Text.get_window_extent(word) for word in figure.axes[0].texts if isinstance(word, Annotation)]
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["/nowhere"], 4, "Model '/nowhere' was not found"),
        (["demo", "--variant", "q9"], 4, "has no variant 'q9'"),
        (["compare", "/nowhere.json", "/nowhere.json"], 1, "cannot be read as JSON"),
        (["report", __file__], 1, "cannot be read as JSON"),
        (["report", __file__, "--csv"], 2, "--csv was removed. Use --json, which has every sample."),
        (["demo", "--csv"], 2, "--csv was removed"),
        (["report", __file__, "--plots", "out"], 2, "run there: python benchmarks/plots.py"),
        (["compare", "a", "b", "--fail-if-slower", "much"], 2, "is not a percentage"),
        (["compare", "a", "b", "--fail-if-slower", "nan"], 2, "is not a percentage"),
        ([], 2, "Usage"),
    ],
)
def test_errors_are_reported(arguments: list[str], code: int, message: str) -> None:
    done = run("bench", *arguments)
    assert_error(done, code, message)
    assert not isinstance(done.exception, AttributeError | TypeError)
