"""README and docs: figures, links, and names are those of the results and of the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import siglip_onnx

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.xfail(reason="benchmarks/report.py is being changed to the README's one table", strict=False)
def test_figures_of_the_documents_are_those_of_the_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import report

    from siglip_onnx.bench.schema import read_document

    document = read_document(report.SUITE)
    assert report.with_tables(README) == README, "run: make report"
    assert report.details(document) == report.DETAILS.read_text(encoding="utf-8"), "run: make report"


def test_plots_of_the_documents_are_those_of_the_results() -> None:
    pytest.importorskip("matplotlib")
    from siglip_onnx.bench.plots import fingerprint
    from siglip_onnx.bench.schema import read_document

    expected = fingerprint(read_document(ROOT / "benchmarks/results/base_multilingual.json"))
    plots = ROOT / "docs/plots"
    drawn = sorted(plots.glob("*.svg"))
    assert [path.stem for path in drawn] == sorted(path.stem for path in plots.glob("*.png"))
    assert len(drawn) == 4
    for path in drawn:
        assert expected in path.read_text(encoding="utf-8"), "run: make report"


def test_tables_of_the_bulk_page_are_those_of_the_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import bulk

    page, results = bulk.DOCUMENT.read_text(encoding="utf-8"), json.loads(bulk.RESULTS.read_text(encoding="utf-8"))
    assert bulk.cost_table(results, bulk.DOLLARS) in page
    assert bulk.results_table(results) in page


def test_parity_of_the_readme_is_that_of_the_results() -> None:
    checkpoints = json.loads((ROOT / "benchmarks/results/parity.json").read_text(encoding="utf-8"))["checkpoints"]
    worst = {stage: max(one[stage] for one in checkpoints.values()) for stage in ("pixels", "ids", "logits")}
    embeddings = max(max(one["vision embedding"], one["text embedding"]) for one in checkpoints.values())
    assert len(checkpoints) == 27
    assert worst["pixels"] == worst["ids"] == 0
    assert f"most {embeddings:.1e}".replace("e-0", "e-") in README
    assert f"logits by {worst['logits']:.1e}".replace("e-0", "e-") in README
    # Base-size shapes at full depth.
    assert all(one["layers"] == [12, 12] for name, one in checkpoints.items() if "-base-" in name)


@pytest.mark.xfail(reason="docs/web.md and docs/export.md are being written", strict=False)
def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_changelog_and_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", siglip_onnx.__version__)
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog")


def test_experiments_print_every_table() -> None:
    output = subprocess.check_output([sys.executable, str(ROOT / "examples" / "experiments.py")], text=True)
    assert [line for line in output.splitlines() if line.startswith("==")] == [
        f"== {title}"
        for language in ("English", "Japanese")
        for title in (
            f"A richer description, {language}: probability",
            f"Counting, {language}: probability of each number of eggs",
            f"Reading, {language}: probability of each word",
        )
    ]
