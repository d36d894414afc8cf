"""The demo model that the package carries, and the world that it was trained on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import siglip_onnx
from demo_world.captions import choose_claim, describe, foil
from demo_world.drawing import draw
from demo_world.evaluation import evaluate
from demo_world.lexicon import COLORS, NEVER_SHOWN, SHAPES, TRAINED_PAIRS, WORDS
from demo_world.scene import ANY, Scene, draw_scene, match_targets
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.image.decode import load_image


def test_accuracy_on_new_images() -> None:
    """Limits are the model card's figures less the spread of so few images."""
    model = siglip_onnx.load("demo")
    accuracy = evaluate(model.encode_images, model.encode_texts, num_images=60, seed=77)
    for language in ("en", "ja"):
        assert accuracy[f"color and shape, trained, {language}"] >= 0.95
        assert accuracy[f"color and shape, never shown, {language}"] >= 0.9
        assert accuracy[f"printed word among 20, {language}"] >= 0.9
        assert accuracy[f"count 1-6, {language}"] >= 0.9


def test_package_stays_small() -> None:
    files = [path for path in (siglip_onnx.hub.DEMO_PATH.parent).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_500_000


def test_embedded_files_match_the_manifest() -> None:
    bundle = siglip_onnx.load("demo").bundle
    assert bundle.verify_files() == []
    assert set(bundle.manifest.variants) == {"fp32", "int8"}
    assert bundle.manifest.description
    assert json.loads((BUNDLE_PATH / "manifest.json").read_text(encoding="utf-8"))["source"]["model_type"] == "siglip"


@pytest.mark.slow
def test_sample_images_are_those_of_the_script(tmp_path: Path) -> None:
    from draw_samples import main

    assert CliRunner().invoke(main, [str(tmp_path)]).exit_code == 0
    shipped = {path.name: path for path in IMAGES_PATH.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == set(shipped)
    for name, path in shipped.items():
        # Another Pillow may round an edge differently.
        difference = load_image(path), load_image(tmp_path / name)
        assert np.abs(np.subtract(*(np.asarray(image, np.int16) for image in difference))).mean() < 1, name


def test_never_shown_pairs_are_neither_drawn_nor_named() -> None:
    """Two of ten shapes for each color, and two of ten colors for each shape."""
    assert len(NEVER_SHOWN) == 20
    assert {color for color, _ in NEVER_SHOWN} == set(range(len(COLORS)))
    assert {shape for _, shape in NEVER_SHOWN} == set(range(len(SHAPES)))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = draw_scene(rng)
        claim = choose_claim(scene, rng)
        for drawn in (scene, claim, foil(claim, rng)):
            assert (drawn.color, drawn.shape) not in NEVER_SHOWN
            assert (drawn.color2, drawn.shape2) not in NEVER_SHOWN


def test_claims_are_true_and_foils_are_not() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = draw_scene(rng)
        claim = choose_claim(scene, rng)
        for language in ("en", "ja"):
            said, text = describe(claim, language, rng)
            assert text
            assert match_targets([scene], [said])[0, 0] >= 0.5
        wrong = foil(claim, rng)
        assert wrong == claim or match_targets([scene], [wrong])[0, 0] == 0


@pytest.mark.parametrize(
    ("claim", "target"),
    [(Scene(shape=0), 0.625), (Scene(1, 0), 0.75), (Scene(1, 0, 3), 0.875), (Scene(1, 0, 3, dark=1), 1.0),
     (Scene(1, 0, 2), 0.0), (Scene(2, 0), 0.0), (Scene(1, 0, dark=0), 0.0), (Scene(word=0), 0.0)],
)  # fmt: skip
def test_richer_true_claims_get_higher_targets(claim: Scene, target: float) -> None:
    scene = Scene(1, 0, 3, dark=1)
    assert match_targets([scene], [claim])[0, 0] == pytest.approx(target)


def test_pairs_are_matched_from_either_side() -> None:
    scene = Scene(1, 0, 1, relation=0, color2=2, shape2=3, dark=0)
    exchanged = replace(scene, color=2, shape=3, color2=1, shape2=0, count=ANY)
    same, other_way, other_half, mixed = match_targets(
        [scene], [replace(scene, count=ANY), exchanged, Scene(2, 3, 1), Scene(1, 3)]
    )[0]
    assert same > 0.9
    assert other_half > 0.5
    assert other_way == mixed == 0


def test_every_scene_can_be_drawn() -> None:
    rng = np.random.default_rng(2)
    for color, shape in TRAINED_PAIRS:
        image = np.asarray(draw(Scene(color, shape, 6, dark=0), rng, 64))
        assert image.shape == (64, 64, 3)
        assert image.std() > 5
    for word in range(len(WORDS)):
        assert np.asarray(draw(Scene(0, word=word, dark=1), rng, 96)).max() > 100


@pytest.mark.slow
@pytest.mark.export
def test_training_stops_and_resumes(tmp_path: Path) -> None:
    """Two steps, then one more; export accepts the checkpoint."""
    from siglip_onnx.export.pipeline import export_bundle
    from train_demo import main

    settings = ["--batch-size", "4", "--num-images", "1000", "--save-every", "2", "--num-evaluated", "6"]
    for steps in ("2", "3"):
        result = CliRunner().invoke(main, [str(tmp_path / "run"), "--steps", steps, *settings], catch_exceptions=False)
        assert result.exit_code == 0
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["steps"] == 3
    assert [run["from_step"] for run in training["runs"]] == [0, 2]
    export_bundle(tmp_path / "run", tmp_path / "bundle", precisions=["int8"])
    assert siglip_onnx.load(tmp_path / "bundle").encode_texts(["赤い丸"]).shape == (1, 128)
