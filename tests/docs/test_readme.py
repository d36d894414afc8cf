"""README and docs: figures, links, and names are those of the results and of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import siglip_onnx

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_of_the_documents_are_those_of_the_results() -> None:
    import report

    documents = report.documents()
    assert {path.name for path in documents} >= {"benchmarks.md", "bulk.md"}
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

    expected = fingerprint(read_document(ROOT / "benchmarks/results/base_multilingual.json"))
    plots = ROOT / "docs/plots"
    drawn = sorted(plots.glob("*.svg"))
    assert [path.stem for path in drawn] == sorted(path.stem for path in plots.glob("*.png"))
    assert len(drawn) == 4
    for path in drawn:
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


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_changelog_and_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", siglip_onnx.__version__)
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog")
