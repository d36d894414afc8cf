import math
from pathlib import Path

import onnx
import pytest

import describe_checkpoints
from siglip_onnx.bundle.manifest import TOWERS, graph_path
from siglip_onnx.config import read_config
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
}


def test_published_checkpoints_are_listed_once() -> None:
    names = [checkpoint.name for checkpoint in PUBLISHED]
    assert len(names) == len(set(names)) == 27
    assert [checkpoint.family for checkpoint in PUBLISHED].count("SigLIP") == 10


@pytest.mark.parametrize("checkpoint", PUBLISHED, ids=lambda checkpoint: checkpoint.name)
def test_shapes_fit_together(checkpoint: describe_checkpoints.PublishedCheckpoint) -> None:
    config = checkpoint.config
    assert config.vision.hidden_size == config.text.embedding_dim
    if checkpoint.name in PARAMETERS:
        millions = sum(math.prod(shape) for shape in expected_shapes(config).values()) / 1e6
        assert millions == pytest.approx(PARAMETERS[checkpoint.name], rel=0.01)


@pytest.mark.slow
def test_page_of_checkpoints_is_generated_from_the_table() -> None:
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
