"""The compiled classifier: one file that gives the pipeline's logits bit for bit."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.checkpoints import make_naflex_checkpoint
from support.commands import assert_error
from support.examples import EXAMPLES, run_example

import siglip_onnx
from siglip_onnx.classifier import Classifier, ClassifierFacts
from siglip_onnx.cli import main
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import BundleError, TextError
from siglip_onnx.export import compile as compile_module
from siglip_onnx.export.compile import compile_classifier
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.model import SigLIP

LABELS = ["a cat", "赤い丸", "two dogs", "0 eggs"]
TEMPLATES = ["{}", "a photo of {}."]
EXAMPLE = EXAMPLES / "compiled_classifier.py"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGLIP_ONNX_MODEL", raising=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_file_that_was_replaced_is_not_loaded_with_the_old_labels(
    small_bundle: Path, tmp_path: Path, image: Image.Image
) -> None:
    """As in a process that is forked afterwards, which loads the graph for itself."""
    model, path = siglip_onnx.load(small_bundle), tmp_path / "c.onnx"
    compile_classifier(model, ["a red star", "six eggs"], path)
    classifier = Classifier(path)
    expected, pickled = classifier.classify(image), pickle.dumps(classifier)
    classifier._session.unload()
    assert classifier.classify(image) == pickle.loads(pickled).classify(image) == expected  # noqa: S301
    os.utime(path, (0, 0))
    path.write_bytes(path.read_bytes())  # the same file is not another one
    classifier._session.unload()
    assert classifier.classify(image) == expected
    compile_classifier(model, ["six eggs", "a red star"], path)
    assert classifier.classify(image) == expected
    classifier._session.unload()
    with pytest.raises(BundleError, match="was replaced or changed after it was opened"):
        classifier.classify(image)
    with pytest.raises(BundleError, match="holds another classifier than the pickled one"):
        pickle.loads(pickled)  # noqa: S301


def test_a_relative_path_keeps_its_meaning_when_the_current_folder_changes(
    small_bundle: Path, tmp_path: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_classifier(siglip_onnx.load(small_bundle), ["a red star", "six eggs"], tmp_path / "c.onnx")
    monkeypatch.chdir(tmp_path)
    classifier = Classifier("c.onnx")
    expected = classifier.classify(image)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    classifier._session.unload()
    assert classifier.classify(image) == expected


@pytest.mark.parametrize("variant", ["fp32", "int8"])
@pytest.mark.parametrize("uint8", [False, True])
def test_compiled_logits_are_those_of_the_pipeline_bit_for_bit(
    bundle: Path, tmp_path: Path, images: list[Image.Image], variant: str, uint8: bool
) -> None:
    model = siglip_onnx.load(bundle, variant=variant)
    compile_classifier(model, LABELS, tmp_path / "c.onnx", template=TEMPLATES, uint8=uint8, logit_bias=-3.5)
    labels = model.encode_labels(LABELS, template=TEMPLATES)
    classifier = Classifier(tmp_path / "c.onnx")
    for image in images:
        expected = model.logits(model.encode_images(image), labels, logit_bias=-3.5)[0]
        assert_array_equal(classifier.logits(image), expected)
        matches = model.classify(image, LABELS, template=TEMPLATES, logit_bias=-3.5)
        assert classifier.classify(image) == matches
    assert classifier.classify(images) == [classifier.classify(image) for image in images]
    assert classifier.classify([]) == []


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


@pytest.mark.parametrize("uint8", [False, True])
def test_names_of_a_foreign_tower_may_be_those_of_the_head(
    small_bundle: Path, tmp_path: Path, uint8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, taken = (
        compile_module._read_tower,
        ["labels", "exp_logit_scale", "levels", "logits", "normalized_pixel_values"],
    )

    def read_renamed(model: SigLIP) -> ir.Model:
        tower = read(model)
        outputs = [node.outputs[0] for node in list(tower.graph)[:2]]
        for name, value in zip(taken, [*list(tower.graph.initializers.values())[:3], *outputs], strict=True):
            value.name = name
        return tower

    monkeypatch.setattr(compile_module, "_read_tower", read_renamed)
    model = siglip_onnx.load(small_bundle)
    compile_classifier(model, ["a", "b"], tmp_path / "c.onnx", uint8=uint8)
    image = IMAGES_PATH / "red_star.png"
    assert Classifier(str(tmp_path / "c.onnx")).classify(image) == model.classify(image, ["a", "b"])


def test_metadata_of_version_0_1_can_be_read() -> None:
    metadata = (
        '{"format": "siglip_onnx.classifier/1", "model": "m", "variant": "int8", "embedding_space": "int8-0", '
        '"labels": ["a cat", "猫"], "templates": ["{}"], "input": "uint8", "height": 32, "width": 48, "resample": 3, '
        '"rescale_factor": 0.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.6]}'
    )
    facts = ClassifierFacts.from_json(metadata)
    assert facts.to_json() == metadata
    assert ClassifierFacts.from_json(metadata[:-1] + ', "later": 1}') == facts
    assert (facts.preprocessor.width, facts.preprocessor.levels.image_std) == (48, (0.5, 0.5, 0.6))
    for damaged in (
        "[]",
        "{",
        metadata.replace("classifier/1", "classifier/2"),
        metadata.replace('"labels"', '"lables"'),
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            ClassifierFacts.from_json(damaged)


def test_compile_and_classify_commands(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    image = IMAGES_PATH / "red_star.png"
    out = tmp_path / "c.onnx"
    result = run("compile", small_bundle, "--labels", tmp_path / "labels.txt", "--template", "a {}", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "4 labels" in result.stdout
    compiled = run("classify", image, "nowhere.png", "--model", out, "--json")
    assert compiled.exit_code == 3
    texts = [word for label in LABELS for word in ("--text", label)]
    expected = run("classify", image, "nowhere.png", "--model", small_bundle, "--json", "--template", "a {}", *texts)
    assert json.loads(compiled.stdout) == json.loads(expected.stdout)
    mixed = run("classify", image, "--model", out, "--text", "a cat")
    assert mixed.exit_code == 2
    assert "which contains its texts and settings; remove --text." in mixed.stderr
    assert "remove --fast-decode" in run("classify", image, "--model", out, "--fast-decode").stderr


@pytest.mark.parametrize("uint8", [False, True])
def test_the_example_runs_without_this_package(small_bundle: Path, tmp_path: Path, uint8: bool) -> None:
    model = siglip_onnx.load(small_bundle)
    compile_classifier(model, LABELS, tmp_path / "c.onnx", uint8=uint8)
    image = IMAGES_PATH / "red_star.png"
    clear = tmp_path / "clear.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 4), np.uint8)).save(clear)
    for path in (image, clear):
        output = run_example(EXAMPLE, tmp_path / "c.onnx", path).stdout
        expected = [f"{match.text}: {match.probability:.3g}" for match in model.classify(path, LABELS)]
        assert output.splitlines() == expected
    white, black = (
        Classifier(tmp_path / "c.onnx", siglip_onnx.RuntimeOptions(background=background)).classify(clear)
        for background in ("white", "black")
    )
    assert white == model.classify(clear, LABELS) != black
    imports = [line for line in EXAMPLE.read_text().splitlines() if line.startswith(("import", "from"))]
    assert not [line for line in imports if "siglip_onnx" in line]


def test_compile_refuses_what_cannot_be_compiled(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(make_naflex_checkpoint(tmp_path / "naflex"), tmp_path / "bundle", precisions=["fp32"])
    out = tmp_path / "c.onnx"
    with pytest.raises(BundleError, match="is a NaFlex model"):
        compile_classifier(siglip_onnx.load(tmp_path / "bundle"), LABELS, out)
    model = siglip_onnx.load(small_bundle)
    for labels, message in (([], "There are 0 labels"), (["a", "a"], "2 labels, 1 of them different")):
        with pytest.raises(TextError, match=message):
            compile_classifier(model, labels, out)
    files = model.bundle.manifest.variants[model.variant].files
    tower_bytes = sum(facts.size_bytes for name, facts in files.items() if "vision_model" in name)
    room = tower_bytes + 8 * model.embedding_dim * 2
    monkeypatch.setattr(compile_module, "_MAX_FILE_BYTES", room)
    monkeypatch.setattr(model, "encode_labels", None)  # what cannot be written is refused before it is embedded
    with pytest.raises(TextError, match=r"3 labels are too many .* room for 2 beside the"):
        compile_classifier(model, ["a", "b", "c"], out)
    monkeypatch.setattr(compile_module, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match="more than the 1,000 of one ONNX file"):
        compile_classifier(model, LABELS, out)
    assert not out.exists()
    with pytest.raises(BundleError, match="is not a compiled classifier of this version"):
        Classifier(small_bundle / "onnx" / "vision_model.onnx")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("compiled") / "c.onnx"
    compile_classifier(siglip_onnx.load("demo"), ["a red star", "six eggs"], path)
    return onnx.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": []}, {"labels": [1, 2]}, {"labels": "ab"}, {"labels": None}, {"labels": ["a"]},
        {"labels": ["a"] * 3},
        {"image_std": [1.0]}, {"image_std": [0.0, 0.0, 0.0]}, {"image_mean": "abc"}, {"image_mean": [1e308, 0.0, 0.0]},
        {"rescale_factor": math.nan}, {"rescale_factor": -1.0}, {"rescale_factor": "1"}, {"input": "int3"},
        {"variant": [1]}, {"model": 5}, {"resample": 99}, {"resample": "x"}, {"height": 0}, {"width": True},
        {"problem_type": "foo", "format": "siglip_onnx.classifier/2"}, {"format": "siglip_onnx.classifier/2"},
        "[" * 100_000,
        "5", "", "NaN",
    ],
)  # fmt: skip
def test_changed_metadata_is_one_message(change: Any, compiled: onnx.ModelProto, tmp_path: Path) -> None:
    entry = next(entry for entry in compiled.metadata_props if entry.key == "siglip_onnx")
    original = entry.value
    try:
        entry.value = change if isinstance(change, str) else json.dumps(json.loads(original) | change)
        (tmp_path / "c.onnx").write_bytes(compiled.SerializeToString())
    finally:
        entry.value = original
    result = run("classify", IMAGES_PATH / "red_star.png", "--model", tmp_path / "c.onnx")
    assert_error(result, 4, "siglip-onnx compile")
