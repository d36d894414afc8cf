"""What the published checkpoints cost: measured on tiny towers, estimated, and written for the package."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("onnx_ir")

import checkpoint_costs
import models
import numpy as np
import random_tower
from checkpoint_costs import Tower, find_costs, packaged_costs, towers_of

from siglip_onnx.config import SENTENCEPIECE, TEXT, TOKENIZER, VISION, NaflexVisionConfig
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.hub.published import PUBLISHED, PublishedCheckpoint, Width

TINY = PublishedCheckpoint("tiny", Width(64, 128, 2, 4), 32, 8, vocab_size=300, text_length=16)
BY_NAME = {checkpoint.name: checkpoint for checkpoint in PUBLISHED}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, and few calls."""
    monkeypatch.setattr(models, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(models, "LIMITS", models.Limits(rounds=1, min_samples=3, min_seconds=0.01))
    monkeypatch.setattr(models, "RATE_SECONDS", 0.01)


def machine(**changes: Any) -> dict[str, Any]:
    return {"cpu": "Some CPU", "cpu_flags": ["avx2", "avx512_vnni"], "threads": 2,
            "packages": {"onnxruntime": "1.32.0"}} | changes  # fmt: skip


def measured(ms: float, memory_mb: float, **more: Any) -> dict[str, Any]:
    latency = {"min": ms, "median": ms * 1.1, "samples": 9}
    return {"latency_ms": latency, "memory_mb": memory_mb, "base_memory_mb": 60.0, "disk_mb": 94.0,
            "load_average": [0.1, 0.1, 0.1], "other_cpus": 0.0} | more  # fmt: skip


def results_of(checkpoint: PublishedCheckpoint, **more: Any) -> dict[str, Any]:
    vision, text = towers_of(checkpoint)
    towers = {vision.name: measured(80, 180, per_second=12.0) | more, text.name: measured(20, 160)}
    return {"machine": machine(), "towers": towers}


def test_towers_are_shared_by_checkpoints() -> None:
    towers = [tower for checkpoint in PUBLISHED for tower in towers_of(checkpoint)]
    kinds = {kind: {tower.name for tower in towers if tower.kind == kind} for kind in (VISION, TEXT)}
    assert {kind: len(names) for kind, names in kinds.items()} == {VISION: 18, TEXT: 10}
    shapes = {(tower.name, tower.config.vision, tower.config.text) for tower in towers}
    assert len(shapes) == 28  # one name is one shape
    vision, text = towers_of(BY_NAME["siglip2-giant-opt-patch16-384"])
    assert (vision.name, text.name) == ("vision giant 384/16", "text so400m 256000x64 to 1536")


@pytest.mark.usefixtures("quick")
def test_a_run_measures_each_tower_once_and_resumes(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PUBLISHED", (TINY, TINY._replace(name="twin")))
    monkeypatch.setattr(models, "is_busy", lambda *_: False)
    out = tmp_path / "models.json"
    arguments = ["--spiece", str(small_checkpoint / SENTENCEPIECE), "--gemma", str(small_bundle / TOKENIZER), "--out",
                 str(out)]  # fmt: skip
    first = CliRunner().invoke(models.main, arguments, catch_exceptions=False)
    assert len(first.output.splitlines()) == 2, first.output
    towers = json.loads(out.read_text())["towers"]
    for result in towers.values():
        assert 0 < result["latency_ms"]["min"] <= result["latency_ms"]["median"]
        assert 0 < result["base_memory_mb"] <= result["memory_mb"] + 1, "Linux counts pages in batches"
        assert result["disk_mb"] > 0
    assert [name for name, result in towers.items() if result.get("per_second", 0) > 0] == [towers_of(TINY)[0].name]
    assert CliRunner().invoke(models.main, arguments, catch_exceptions=False).output == ""  # nothing is left to measure
    monkeypatch.setattr(models, "is_busy", lambda *_: True)
    again = CliRunner().invoke(models.main, [*arguments, "--only", "twin"], catch_exceptions=False)
    assert len(again.output.splitlines()) == 2


@pytest.mark.usefixtures("quick")
def test_naflex_is_measured_at_each_number_of_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY.config, vision=NaflexVisionConfig(64, 128, 2, 4, num_patches=9, patch_size=8), text=None)
    monkeypatch.setattr(models, "NAFLEX_PATCHES", (4, 9))
    result = models.measure(Tower("tiny", VISION, config, 1.0), tmp_path)
    assert list(result["by_patches"]) == ["4", "9"]
    assert result["by_patches"]["9"]["latency_ms"] == result["latency_ms"]


def test_results_of_another_machine_are_not_continued(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(json.dumps({"machine": models.describe_machine() | {"cpu": "Another"}}))
    with pytest.raises(BenchmarkError, match="another cpu: Another, here"):
        models.open_results(tmp_path / "models.json")


def test_random_weights_are_the_same_in_blocks_and_as_a_whole() -> None:
    weights = random_tower.RandomWeights(TINY._replace(vocab_size=3 * random_tower.ROWS_AT_ONCE + 1).config)
    name = "text_model.embeddings.token_embedding.weight"
    np.testing.assert_array_equal(np.concatenate(list(weights.blocks(name))), weights[name])


def test_a_busy_machine_is_named() -> None:
    checkpoint = BY_NAME["siglip-base-patch16-256"]
    assert packaged_costs(results_of(checkpoint))["measured_on"] == (
        "Some CPU, 2 cores, avx512_vnni, onnxruntime 1.32.0"
    )
    busy = results_of(checkpoint, other_cpus=1.5, load_average=[9.0, 8.0, 7.0])
    assert "busy with other programs (load averages 9.0 to 9.0)" in packaged_costs(busy)["measured_on"]
    assert not checkpoint_costs.is_busy(measured(1, 1, other_cpus=None), machine())


def test_shapes_without_a_measurement_are_estimated() -> None:
    costs = find_costs(results_of(BY_NAME["siglip-base-patch16-256"]))
    own = costs["siglip-base-patch16-256"]
    assert (own.vision.min_ms, own.vision.per_second, own.memory_mb, own.estimated) == (80, 12, 60 + 120 + 100, False)
    # The vision tower is shared, the text tower is not; only the table of tokens, which is not read, is larger.
    multilingual = costs["siglip-base-patch16-256-multilingual"]
    assert multilingual.vision == own.vision
    assert (multilingual.text.min_ms, multilingual.estimated) == (20, True)
    assert multilingual.memory_mb == pytest.approx(own.memory_mb, abs=1)
    assert multilingual.disk_mb - own.disk_mb > 160
    large, larger = costs["siglip-base-patch16-384"].vision, costs["siglip-base-patch16-512"].vision
    # 2.25 and 4 times the patches; attention grows with their square.
    assert 2.25 < large.min_ms / 80 < 2.25**2
    assert 4 < larger.min_ms / 80 < 16
    assert larger.per_second == pytest.approx(12 * 80 / larger.min_ms)
    assert costs["siglip2-base-patch32-256"].vision.min_ms < 80 / 4 * 1.05
    with pytest.raises(BenchmarkError, match="No text tower was measured"):
        find_costs({"towers": {"vision base 256/16": measured(1, 61)}})


def test_front_names_what_no_faster_checkpoint_surpasses() -> None:
    chosen = [BY_NAME[f"siglip2-base-patch16-{size}"] for size in (256, 224, 384)]
    assert checkpoint_costs.front(chosen) == {"siglip2-base-patch16-256", "siglip2-base-patch16-384"}


def test_text_of_the_page_marks_estimates_and_lists_the_patches_of_naflex() -> None:
    part = {"latency_ms": {"min": 41.0, "median": 42.0, "samples": 9}, "per_second": 24.0, "memory_mb": 170.0}
    results = results_of(BY_NAME["siglip2-base-patch16-naflex"], by_patches={"128": part})
    text = checkpoint_costs.costs_text(results | {"settings": {"note": "From another benchmark."}})
    assert "| siglip2-base-patch16-naflex | 128 | 41.0 / 42.0 | 24.0 |" in text
    assert "| siglip2-base-patch16-naflex | 78.5 |  | 80.0 / 88.0 | 20.0 / 22.0 | 12.0 | 280 | 188 |" in text
    assert "| siglip-base-patch16-256-multilingual | 75.1\\* | 44.1\\* | ~" in text
    assert "~: not measured" in text
    assert "From another benchmark." in text
