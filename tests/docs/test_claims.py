"""Figures, links and names of the documents are those of the results, the files and the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import siglip_onnx

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short_and_begins_with_measured_figures() -> None:
    from siglip_onnx.bench.schema import read_document
    from siglip_onnx.bench.tables import start_memory_mb, start_seconds

    rows = read_document(ROOT / "benchmarks/results/base_multilingual.json").rows
    row = next(row for row in rows if row.name == "siglip_onnx int8")
    fidelity = min(row.fidelity.vision_cosine_min, row.fidelity.text_cosine_min)
    assert f"{start_seconds(row):.1f} s after the process starts" in README
    assert f"in {round(start_memory_mb(row), -1):.0f} MB of memory" in README
    assert f"at least {int(fidelity * 1e4) / 1e4:.4f}" in README.replace("\n", " ")
    assert len(README.split()) < 900


def test_every_public_name_is_documented() -> None:
    api = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    members = {name for name in vars(siglip_onnx.SigLIP) if not name.startswith("_")}
    assert [name for name in {*siglip_onnx.__all__, *members} if not re.search(rf"\b{name}\b", api)] == []


def test_files_that_the_documents_name_exist() -> None:
    for document in ("SECURITY.md", "CONTRIBUTING.md"):
        for name in re.findall(r"`([\w/]+\.py)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or (ROOT / "siglip_onnx" / name).exists(), f"{document} names {name}"


def test_tests_are_collected_without_pytorch_and_the_exporter() -> None:
    """Modules that need them are skipped, as CONTRIBUTING.md says."""
    missing = ("torch", "transformers", "onnx", "onnx_ir", "ml_dtypes", "safetensors", "sentencepiece")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "tests/image", "tests/text", "tests/runtime"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for name in ("runtime/test_model.py", "text/test_tokenizer.py", "image/test_image_guard.py"):
        assert f"tests/{name}::" in done.stdout


def test_figures_of_the_documents_are_those_of_the_results() -> None:
    import report

    documents = report.documents()
    assert {path.name for path in documents} >= {"benchmarks.md", "bulk.md", "export.md"}
    for path, text in documents.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make report"


def test_summary_is_five_rows_of_four_figures() -> None:
    import report

    from siglip_onnx.bench.schema import read_document

    table = [line for line in report.summary(read_document(report.SUITE)).splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert {line.count("|") for line in table} == {6}


def test_plots_of_the_documents_are_those_of_the_results() -> None:
    pytest.importorskip("matplotlib")
    from plots import fingerprint

    from siglip_onnx.bench.schema import read_document

    results = ROOT / "benchmarks/results"
    suite = fingerprint(read_document(results / "base_multilingual.json").to_json())
    of_models = fingerprint(json.dumps(json.loads((results / "models.json").read_text(encoding="utf-8"))))
    plots = ROOT / "docs/plots"
    drawn = sorted(plots.glob("*.svg"))
    assert [path.stem for path in drawn] == sorted(path.stem for path in plots.glob("*.png"))
    assert len(drawn) == 5
    for path in drawn:
        expected = of_models if path.stem == "checkpoints" else suite
        assert expected in path.read_text(encoding="utf-8"), "run: make report"


def test_parity_of_the_readme_is_that_of_the_results() -> None:
    checkpoints = json.loads((ROOT / "benchmarks/results/parity.json").read_text(encoding="utf-8"))["checkpoints"]
    worst = {
        stage: max(differences[stage] for differences in checkpoints.values()) for stage in ("pixels", "ids", "logits")
    }
    embeddings = max(max(stages["vision embedding"], stages["text embedding"]) for stages in checkpoints.values())
    assert len(checkpoints) == 27
    assert worst["pixels"] == worst["ids"] == 0
    assert f"most {embeddings:.1e}".replace("e-0", "e-") in README
    assert f"logits by {worst['logits']:.1e}".replace("e-0", "e-") in README
    # Base-size shapes at full depth.
    assert all(one["layers"] == [12, 12] for name, one in checkpoints.items() if "-base-" in name)


def test_quality_of_explanations_is_that_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks/results/explain.json").read_text(encoding="utf-8"))
    text = " ".join((ROOT / "docs/cli.md").read_text(encoding="utf-8").split())
    found = [f"{results['found'][language]:.1%}".replace("%", " %") for language in ("en", "ja")]
    assert f"On {results['cases']} drawn images of two objects" in text
    assert f"in {found[0]} of the cases in English, {found[1]} in Japanese" in text
    time = results["time"]
    assert f"{time['num_runs']} runs for one text" in text
    seconds, cpus = time["explain_s"]["median"], results["machine"]["threads"]
    assert f"an explanation takes {seconds:.1f} s on {cpus} CPUs (median of {time['repeats']})" in text
    assert f"{time['ratio']:.2f} times as long as its {time['num_runs']} runs alone" in text


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_changelog_and_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", siglip_onnx.__version__)
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog")


def test_few_shot_figures_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks/results/few_shot_demo.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/fit.md").read_text(encoding="utf-8")
    for row in results["rows"]:
        fit, above = (
            [100 * row[key][part] for part in ("value", "low", "high")] for key in ("fit", "fit_minus_zero_shot")
        )
        shown = "{:.1f} ({:.1f} to {:.1f})".format(*fit), "{:+.1f} ({:+.1f} to {:+.1f})".format(*above)
        (line,) = (line for line in page.splitlines() if f"| {shown[0]} |" in line)
        assert f"| {row['shots']} | {100 * row['zero_shot']['value']:.1f} |" in line
        assert f"| {shown[1]} |" in line
        assert row["fit_minus_zero_shot"]["high"] >= 0  # not below zero-shot, with any number of images
