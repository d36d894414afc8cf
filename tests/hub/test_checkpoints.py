import json
import math
from pathlib import Path

import onnx
import pytest
from support.commands import run

import describe_checkpoints
from siglip_onnx.bundle.manifest import graph_path
from siglip_onnx.config import TOWERS, read_config
from siglip_onnx.export.checkpoint import expected_shapes
from siglip_onnx.hub.published import PUBLISHED

pytestmark = pytest.mark.export
# Millions of parameters that the authors and open_clip give (model_profile.csv; README_siglip2 of big_vision).
PARAMETERS = {
    "siglip-base-patch16-224": 203.2,
    "siglip-base-patch16-256-multilingual": 370.6,
    "siglip-large-patch16-256": 652.2,
    "siglip-so400m-patch14-224": 877.4,
    "siglip2-base-patch16-224": 375,
    "siglip2-large-patch16-256": 882,
    "siglip2-so400m-patch16-256": 1136,
    "siglip2-giant-opt-patch16-256": 1870,
    "medsiglip-448": 878.3,
}


def test_published_checkpoints_are_listed_once() -> None:
    names = [checkpoint.name for checkpoint in PUBLISHED]
    assert len(names) == len(set(names)) == 28
    assert [checkpoint.family for checkpoint in PUBLISHED].count("SigLIP") == 10


@pytest.mark.parametrize("checkpoint", PUBLISHED, ids=lambda checkpoint: checkpoint.name)
def test_shapes_fit_together(checkpoint: describe_checkpoints.PublishedCheckpoint) -> None:
    config = checkpoint.config
    assert config.vision.hidden_size == config.text.embedding_dim
    if checkpoint.name in PARAMETERS:
        millions = sum(math.prod(shape) for shape in expected_shapes(config).values()) / 1e6
        assert millions == pytest.approx(PARAMETERS[checkpoint.name], rel=0.01)


def test_known_checkpoints_fit_80_columns() -> None:
    result = run("models", "list", "--known")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("siglip-base-patch16-256-multilingual"))
    assert row.split() == ["siglip-base-patch16-256-multilingual", "256", "100+", "373", "75.1*", "44.1*"]
    assert "compared with the others" in result.stderr


def test_json_of_known_checkpoints_has_everything() -> None:
    known = {row["model"]: row for row in json.loads(run("models", "list", "--known", "--json").stdout)["known"]}
    row = known["siglip2-so400m-patch14-384"]
    assert row.pop("sizes_mb")["int8"] == {"vision": 430.8, "text": 711.2}
    accuracy = {"imagenet": 84.1, "xm3600_text_to_image": 48.4, "xm3600_image_to_text": 57.5}
    assert row == {
        "model": "siglip2-so400m-patch14-384",
        "family": "SigLIP 2",
        "picture": "384 pixels",
        "repository": "google/siglip2-so400m-patch14-384",
        "image_size": 384,
        "patch_size": 14,
        "text_length": 64,
        "embedding_dim": 1152,
        "languages": "more than 100",
        "accuracy": accuracy | {"protocol": "SigLIP 2 paper"},
        "advice": "high accuracy, on a GPU or a fast CPU",
    }
    assert (known["medsiglip-448"]["family"], known["medsiglip-448"]["accuracy"]) == ("MedSigLIP", None)


@pytest.mark.slow
def test_page_of_checkpoints_is_generated_from_the_table() -> None:
    assert describe_checkpoints.SIZES.read_text(encoding="utf-8") == describe_checkpoints.sizes()
    assert describe_checkpoints.DOCUMENT.read_text(encoding="utf-8") == describe_checkpoints.document()


def test_sizes_are_those_of_an_export(bundle: Path) -> None:
    sizes = describe_checkpoints.sizes_mb(read_config(bundle / "config.json"))
    for variant in ("fp32", "int8"):
        for tower in TOWERS:
            model = onnx.load(bundle / graph_path(tower, variant))
            weights = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer) / 1e6
            assert sizes[variant][tower] == pytest.approx(weights, abs=0.001)


def test_published_configs_match_the_table(material: Path) -> None:
    by_name = {checkpoint.name: checkpoint.config for checkpoint in PUBLISHED}
    for name in ("siglip2-base-patch16-384", "siglip2-base-patch16-naflex"):
        published, listed = read_config(material / "configs" / f"{name}_config.json"), by_name[name]
        assert published.vision == listed.vision
        assert expected_shapes(published) == expected_shapes(listed)
