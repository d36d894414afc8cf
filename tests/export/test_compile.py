"""The compiled classifier: one file, the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.checkpoints import make_naflex_checkpoint

import siglip_onnx
from siglip_onnx.classifier import Classifier
from siglip_onnx.cli import main
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import BundleError, TextError
from siglip_onnx.export import compile as compiling
from siglip_onnx.export.compile import compile_classifier
from siglip_onnx.export.pipeline import export_bundle

LABELS = ["a cat", "赤い丸", "two dogs", "0 eggs"]
TEMPLATES = ["{}", "a photo of {}."]
EXAMPLE = Path(__file__).parents[2] / "examples" / "compiled_classifier.py"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGLIP_ONNX_MODEL", raising=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("variant", ["fp32", "int8"])
@pytest.mark.parametrize("uint8", [False, True])
def test_logits_are_those_of_the_pipeline_bit_for_bit(
    bundle: Path, tmp_path: Path, images: list[Image.Image], variant: str, uint8: bool
) -> None:
    model = siglip_onnx.load(bundle, variant=variant)
    compile_classifier(model, LABELS, tmp_path / "c.onnx", template=TEMPLATES, uint8=uint8, logit_bias=-3.5)
    labels = model.encode_labels(LABELS, template=TEMPLATES)
    classifier = Classifier(tmp_path / "c.onnx")
    for picture in images:
        expected = model.logits(model.encode_images(picture), labels, logit_bias=-3.5)[0]
        assert_array_equal(classifier.logits(picture), expected)
        for match, other in zip(
            classifier.classify(picture),
            model.classify(picture, LABELS, template=TEMPLATES, logit_bias=-3.5),
            strict=True,
        ):
            assert match == other


def test_the_graph_itself_gives_probabilities_and_takes_batches(
    small_bundle: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    model = siglip_onnx.load(small_bundle, variant="fp32")
    compile_classifier(model, LABELS, tmp_path / "c.onnx")
    pixels = np.concatenate([inputs["pixel_values"] for inputs in model.preprocess(images)])
    session = siglip_onnx.session.LazySession(tmp_path / "c.onnx")
    logits, probabilities = session.run_many(["logits", "probabilities"], {"pixel_values": pixels})
    assert logits.shape == probabilities.shape == (4, 4)
    assert_allclose(probabilities, siglip_onnx.sigmoid(logits), atol=1e-6)
    onnx.checker.check_model(onnx.load(tmp_path / "c.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]


def test_commands(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    picture = IMAGES_PATH / "red_star.png"
    out = tmp_path / "c.onnx"
    result = run("compile", small_bundle, "--labels", tmp_path / "labels.txt", "--template", "a {}", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "4 labels" in result.stdout
    found = run("classify", picture, "nowhere.png", "--model", out, "--json")
    assert found.exit_code == 3
    texts = [word for label in LABELS for word in ("--text", label)]
    expected = run("classify", picture, "nowhere.png", "--model", small_bundle, "--json", "--template", "a {}", *texts)
    assert json.loads(found.stdout) == json.loads(expected.stdout)
    mixed = run("classify", picture, "--model", out, "--text", "a cat")
    assert mixed.exit_code == 2
    assert "which contains its texts and settings; remove --text." in mixed.stderr
    assert "remove --fast-decode" in run("classify", picture, "--model", out, "--fast-decode").stderr


@pytest.mark.parametrize("uint8", [False, True])
def test_the_example_needs_nothing_of_this_package(small_bundle: Path, tmp_path: Path, uint8: bool) -> None:
    model = siglip_onnx.load(small_bundle)
    compile_classifier(model, LABELS, tmp_path / "c.onnx", uint8=uint8)
    picture = IMAGES_PATH / "red_star.png"
    output = subprocess.check_output([sys.executable, EXAMPLE, tmp_path / "c.onnx", picture], text=True)
    expected = [f"{match.text}: {match.probability:.3g}" for match in model.classify(picture, LABELS)]
    assert output.splitlines() == expected
    imports = [line for line in EXAMPLE.read_text().splitlines() if line.startswith(("import", "from"))]
    assert not [line for line in imports if "siglip_onnx" in line]


def test_what_cannot_be_compiled_is_said(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_bundle(make_naflex_checkpoint(tmp_path / "naflex"), tmp_path / "bundle", precisions=["fp32"])
    out = tmp_path / "c.onnx"
    with pytest.raises(BundleError, match="is a NaFlex model"):
        compile_classifier(siglip_onnx.load(tmp_path / "bundle"), LABELS, out)
    model = siglip_onnx.load(small_bundle)
    for labels in ([], ["a", "a"]):
        with pytest.raises(TextError, match="Labels are given twice, or not at all"):
            compile_classifier(model, labels, out)
    monkeypatch.setattr(compiling, "_LARGEST_FILE", 1000)
    with pytest.raises(BundleError, match="more than the 1,000 of one ONNX file"):
        compile_classifier(model, LABELS, out)
    assert not out.exists()
    with pytest.raises(BundleError, match="is not a compiled classifier of this version"):
        Classifier(small_bundle / "onnx" / "vision_model.onnx")
