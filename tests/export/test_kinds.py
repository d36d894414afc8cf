"""Image classifiers, single towers, and the towers of vision-language models, against transformers with PyTorch."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.numpy import save_file
from support.checkpoints import (
    make_classifier,
    make_naflex_checkpoint,
    make_single_tower,
    make_vision_language_model,
)
from support.commands import assert_error, run
from support.layouts import big_vision_arrays, read_json, weights_of, write_json
from support.manifests import write_document
from transformers import PaliGemmaForConditionalGeneration

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.classifier import Classifier, FineTunedClassifier
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import BenchmarkError, BundleError, CheckpointError, OptionError, TextError
from siglip_onnx.export.compile import compile_classifier
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.sources.labels import read_labels
from siglip_onnx.head import Floats
from siglip_onnx.session import LazySession
from siglip_onnx.verify.accuracy import label_agreement

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
LABELS = ("a cat", "犬", "two dogs", "none, of these")
PROBLEMS = {SINGLE: LABELS, MULTI: LABELS, REGRESSION: ("quality",)}
STAR = IMAGES_PATH / "red_star.png"


@pytest.fixture(scope="module")
def naflex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_naflex_checkpoint(tmp_path_factory.mktemp("naflex") / "naflex")


@pytest.fixture(scope="module")
def classifier(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a classifier."""
    path = tmp_path_factory.mktemp("classifier") / "animals"
    return make_classifier(small_checkpoint, path, labels=LABELS, problem_type=SINGLE)


@pytest.fixture(scope="module")
def animals(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the classifier."""
    out = tmp_path_factory.mktemp("bundle") / "animals"
    export_bundle(classifier, out)
    return out


@pytest.fixture(scope="module")
def vision(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a vision tower with features."""
    out = tmp_path_factory.mktemp("bundle") / "vision"
    export_bundle(small_checkpoint, out, tower="vision", features=True)
    return out


@pytest.fixture(scope="module")
def text(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a text tower."""
    out = tmp_path_factory.mktemp("bundle") / "text"
    export_bundle(small_checkpoint, out, tower="text")
    return out


@torch.no_grad()
def reference_outputs(model: Any, checkpoint: Path, images: list[Image.Image]) -> list[Any]:
    """Return what transformers answers on each image by itself."""
    is_naflex = read_json(checkpoint / "preprocessor_config.json")["image_processor_type"] == "Siglip2ImageProcessor"
    kind: Any = transformers.Siglip2ImageProcessor if is_naflex else transformers.SiglipImageProcessor
    processor = kind.from_pretrained(checkpoint)
    return [model(**processor([image], return_tensors="pt")) for image in images]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("is_naflex", [False, True])
def test_classifiers_answer_as_transformers(
    small_checkpoint: Path, naflex: Path, tmp_path: Path, images: list[Image.Image], problem_type: str, is_naflex: bool
) -> None:
    base, labels = naflex if is_naflex else small_checkpoint, PROBLEMS[problem_type]
    checkpoint = make_classifier(base, tmp_path / "c", labels=labels, problem_type=problem_type, naflex=is_naflex)
    (fp32,) = export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"])
    assert fp32.accuracy.cosine_min > 0.999999
    model = siglip_onnx.load(tmp_path / "out")
    assert isinstance(model, FineTunedClassifier)
    assert (model.labels, model.problem_type) == (list(labels), problem_type)
    kind: Any = transformers.Siglip2ForImageClassification if is_naflex else transformers.SiglipForImageClassification
    outputs = reference_outputs(kind.from_pretrained(checkpoint).eval(), checkpoint, images)
    answers = model.classify(images)
    for matches, output in zip(answers, outputs, strict=True):
        logits = output.logits[0]
        assert [match.text for match in matches] == list(labels)
        assert_allclose([match.logit for match in matches], logits.numpy(), atol=1e-5, rtol=0)
        if problem_type == REGRESSION:
            assert np.isnan([[match.probability, match.relative] for match in matches]).all()
            continue
        expected = logits.softmax(-1) if problem_type == SINGLE else logits.sigmoid()
        assert_allclose([match.probability for match in matches], expected.numpy(), atol=1e-5, rtol=0)
        assert_allclose([match.relative for match in matches], logits.softmax(-1).numpy(), atol=1e-5, rtol=0)
    assert len({matches[0].logit for matches in answers}) == len(images), "the images are told apart"
    assert model.classify(images[0]) == answers[0]
    likely = model.classify(images[0], threshold=0.4)
    assert likely == [match for match in answers[0] if not match.probability < 0.4]


@pytest.mark.parametrize("variant", ["int8", "fp16", "q4"])
def test_card_of_a_classifier(classifier: Path, tmp_path: Path, variant: str) -> None:
    (exported,) = export_bundle(classifier, tmp_path / "out", precisions=[variant], min_cosine=0.9)
    card = open_bundle(tmp_path / "out").manifest.variants[variant].accuracy
    assert card.keys() == {
        "reference", "inputs", "vision_cosine_min", "vision_cosine_mean", "logit_error_mean", "logit_error_max",
        "num_images", "label_agreement",
    }  # fmt: skip
    assert card["label_agreement"] == exported.accuracy.label_agreement >= 0.9
    assert 0 < card["logit_error_max"] < (1.5 if variant == "q4" else 0.1)
    model = siglip_onnx.load(tmp_path / "out")
    fp32_size = (classifier / "model.safetensors").stat().st_size
    assert model.bundle.manifest.variants[variant].size_bytes < 0.8 * fp32_size
    assert sum(match.probability for match in model.classify(STAR)) == pytest.approx(1)


def test_agreement_of_labels() -> None:
    expected = np.array([[0.2, 0.1], [-1, 2]], np.float32)
    logits = np.array([[0.2, 0.3], [-1, -2]], np.float32)
    assert label_agreement(logits, expected, SINGLE) == 0
    assert label_agreement(logits, expected, MULTI) == 0.75
    assert label_agreement(logits, expected, REGRESSION) is None


@pytest.mark.parametrize("is_naflex", [False, True])
def test_vision_tower(
    small_checkpoint: Path, naflex: Path, tmp_path: Path, images: list[Image.Image], is_naflex: bool
) -> None:
    base = naflex if is_naflex else small_checkpoint
    checkpoint = make_single_tower(base, tmp_path / "c", "vision", naflex=is_naflex)
    export_bundle(checkpoint, tmp_path / "alone", precisions=["fp32", "int8"], features=True)
    export_bundle(base, tmp_path / "of_both", precisions=["fp32"], tower="vision", features=True)
    kind: Any = transformers.Siglip2VisionModel if is_naflex else transformers.SiglipVisionModel
    outputs = reference_outputs(kind.from_pretrained(checkpoint).eval(), checkpoint, images)
    pooled = torch.nn.functional.normalize(torch.cat([output.pooler_output for output in outputs])).numpy()
    for folder in ("alone", "of_both"):
        model = siglip_onnx.load(tmp_path / folder, variant="fp32")
        assert model.bundle.manifest.kind == "vision"
        assert not (tmp_path / folder / "tokenizer.json").exists()
        assert_allclose(model.encode_images(images), pooled, atol=1e-5, rtol=0)
        for features, output in zip(model.encode_features(images), outputs, strict=True):
            assert_allclose(features, output.last_hidden_state[0, : len(features)], atol=1e-5, rtol=0)
            assert is_naflex or len(features) == output.last_hidden_state.shape[1]
    card = open_bundle(tmp_path / "alone").manifest.variants["int8"].accuracy
    assert 0.999 < card["features_cosine_min"] < 1
    assert not {"text_cosine_min", "logit_error_max", "num_texts"} & card.keys()


def test_vision_tower_as_transformers_5_saves_it(
    small_checkpoint: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    """transformers 5.24 writes a single tower without the prefix that transformers 4 gives it."""
    checkpoint = make_single_tower(small_checkpoint, tmp_path / "c", "vision")
    reference = transformers.SiglipVisionModel.from_pretrained(checkpoint).eval()
    weights = {name.removeprefix("vision_model."): array for name, array in weights_of(checkpoint).items()}
    assert "head.probe" in weights
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    config = read_json(checkpoint / "config.json")
    write_json(checkpoint / "config.json", config | {"image_size": [32, 32]})
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"])
    outputs = reference_outputs(reference, checkpoint, images)
    pooled = torch.nn.functional.normalize(torch.cat([output.pooler_output for output in outputs])).numpy()
    assert_allclose(siglip_onnx.load(tmp_path / "out").encode_images(images), pooled, atol=1e-5, rtol=0)
    verified = run("verify", tmp_path / "out", "--reference", checkpoint)
    assert verified.exit_code == 0, verified.stderr
    assert "vision embedding" in verified.stdout


@pytest.mark.parametrize("precision", ["int8", "fp16", "q4"])
def test_vision_tower_without_pooling_head(
    small_checkpoint: Path, tmp_path: Path, images: list[Image.Image], precision: str
) -> None:
    checkpoint = make_single_tower(small_checkpoint, tmp_path / "c", "vision", vision_use_head=False)
    assert not any(".head." in name for name in weights_of(checkpoint))
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32", precision])
    model = siglip_onnx.load(tmp_path / "out", variant="fp32")
    reference = transformers.SiglipVisionModel.from_pretrained(checkpoint).eval()
    outputs = reference_outputs(reference, checkpoint, images)
    for features, output in zip(model.encode_features(images), outputs, strict=True):
        assert_allclose(features, output.last_hidden_state[0], atol=1e-5, rtol=0)
    with pytest.raises(BundleError, match="has no output pooler_output; it gives only last_hidden_state"):
        model.encode_images(images)
    assert_error(run("embed", STAR, "--out", tmp_path / "x.npy", "--model", tmp_path / "out"), 4, "encode_features")
    info = run("info", "--model", tmp_path / "out").stdout
    assert "none, only features" in info
    assert "min cosine features" in info
    accuracy = model.bundle.manifest.variants[precision].accuracy
    assert 0.9 < accuracy["features_cosine_min"] < 1


@torch.no_grad()
def test_text_tower(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = make_single_tower(small_checkpoint, tmp_path / "c", "text")
    export_bundle(checkpoint, tmp_path / "alone", precisions=["fp32", "int8"])
    export_bundle(small_checkpoint, tmp_path / "of_both", precisions=["fp32"], tower="text")
    texts = ["a photo of a cat", "赤い丸", ""]
    reference = transformers.SiglipTextModel.from_pretrained(checkpoint).eval()
    for folder in ("alone", "of_both"):
        model = siglip_onnx.load(tmp_path / folder, variant="fp32")
        assert model.bundle.manifest.kind == "text"
        assert not (tmp_path / folder / "preprocessor_config.json").exists()
        expected = reference(torch.from_numpy(model.tokenize(texts))).pooler_output
        assert_allclose(model.encode_texts(texts), torch.nn.functional.normalize(expected).numpy(), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("version", [4, 5])
def test_vision_tower_of_a_vision_language_model(tmp_path: Path, images: list[Image.Image], version: int) -> None:
    checkpoint = make_vision_language_model(tmp_path / "paligemma")
    config = read_json(checkpoint / "config.json")
    config["vision_config"] |= {"num_image_tokens": 16, "projector_hidden_act": "gelu_fast"}
    write_json(checkpoint / "config.json", config)
    reference = PaliGemmaForConditionalGeneration.from_pretrained(checkpoint).eval()
    if version == 5:  # it has no inner vision_model
        weights = weights_of(checkpoint)
        assert "vision_tower.vision_model.post_layernorm.weight" in weights
        renamed = {name.replace("vision_tower.vision_model.", "vision_tower."): a for name, a in weights.items()}
        save_file(renamed, checkpoint / "model.safetensors", {"format": "pt"})
    settings = read_json(checkpoint / "preprocessor_config.json")
    write_json(checkpoint / "preprocessor_config.json", settings | {"do_pad": True})
    lines: list[str] = []
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"], report=lines.append)
    assert any("of a vision-language model (paligemma): exporting its vision tower" in line for line in lines)
    assert any("Ignoring do_pad" in line for line in lines)
    model = siglip_onnx.load(tmp_path / "out")
    outputs = reference_outputs(reference.model.vision_tower, checkpoint, images)
    for features, output in zip(model.encode_features(images), outputs, strict=True):
        assert_allclose(features, output.last_hidden_state[0], atol=1e-5, rtol=0)
    assert run("verify", tmp_path / "out", "--reference", checkpoint).exit_code == 0
    config["model_type"] = "idefics3"
    config["vision_config"]["model_type"] = "idefics3"
    write_json(checkpoint / "config.json", config)
    with pytest.raises(CheckpointError, match="is of model_type 'idefics3', expected 'siglip'"):
        export_bundle(checkpoint, tmp_path / "other")


def test_features_of_a_model_with_both_towers(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    export_bundle(small_checkpoint, tmp_path / "out", precisions=["fp32"], features=True)
    model, plain = siglip_onnx.load(tmp_path / "out"), siglip_onnx.load(small_bundle, variant="fp32")
    assert model.encode_features(STAR)[0].shape == (16, 64)
    assert_allclose(model.encode_images(STAR), plain.encode_images(STAR), atol=1e-7)
    with pytest.raises(BundleError, match=r"has no output last_hidden_state; export the checkpoint again with --feat"):
        plain.encode_features(STAR)


def test_one_tower_of_other_layouts_needs_no_files_of_the_other(small_checkpoint: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", **big_vision_arrays(small_checkpoint, scan=True))
    export_bundle(tmp_path / "archive.npz", tmp_path / "out", precisions=["fp32"], tower="vision")
    alone = Path(shutil.copytree(small_checkpoint, tmp_path / "alone"))
    (alone / "spiece.model").unlink()
    (alone / "preprocessor_config.json").rename(tmp_path / "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json does not exist"):
        export_bundle(alone, tmp_path / "other", tower="vision")
    with pytest.raises(CheckpointError, match=r"has neither spiece\.model nor tokenizer\.json"):
        export_bundle(alone, tmp_path / "other", tower="text")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("id2label"), r"has no id2label, expected an object with a label for each of the 4 rows"),
        (lambda d: d.update(id2label={}), r"has id2label {}, expected an object"),
        (lambda d: d.update(id2label=["a"] * 4), r"has id2label \['a', .*, expected an object"),
        (lambda d: d["id2label"].pop("3"), r"has 3 labels in id2label, .* but classifier.weight has 4 rows"),
        (lambda d: d["id2label"].update({"4": "e"}), r"has 5 labels in id2label, from '0' to '4', but .* 4 rows"),
        (lambda d: d["id2label"].update({"7": d["id2label"].pop("3")}), 'expected the ids "0" to "3"'),
        (lambda d: d["id2label"].update({"1": "a cat"}), r"has the label 'a cat' 2 times in id2label; expected diff"),
        (lambda d: d["id2label"].update({"1": ""}), r"has the label '' in id2label, expected a text"),
        (lambda d: d["id2label"].update({"1": None}), r"has the label None in id2label, expected a text"),
        (lambda d: d.update(problem_type="ranking"), "has problem_type 'ranking', expected 'single_label_class"),
    ],
)
def test_labels_that_do_not_belong_to_the_weights(
    classifier: Path, tmp_path: Path, change: Change, message: str
) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    config = read_json(copy / "config.json")
    change(config)
    write_json(copy / "config.json", config)
    assert_error(run("export", copy, tmp_path / "out"), 4, "")
    with pytest.raises(CheckpointError, match=message):
        export_bundle(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"], "nothing was written"


@pytest.mark.parametrize(
    ("labels", "problem_type", "expected"), [(("LABEL_0", "LABEL_1"), SINGLE, SINGLE), (("LABEL_0",), None, REGRESSION)]
)
def test_what_transformers_does_not_write_is_its_default(
    small_checkpoint: Path, tmp_path: Path, labels: tuple[str, ...], problem_type: str | None, expected: str
) -> None:
    checkpoint = make_classifier(small_checkpoint, tmp_path / "c", labels=labels, problem_type=problem_type)
    config = read_json(checkpoint / "config.json")
    assert ("id2label" in config) == (len(labels) != 2)
    lines: list[str] = []
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"], report=lines.append)
    assert any("has no id2label: the labels are LABEL_0, LABEL_1" in line for line in lines) == (len(labels) == 2)
    manifest = open_bundle(tmp_path / "out").manifest
    assert (manifest.labels, manifest.problem_type) == (labels, expected)


def test_labels_may_be_numbers(classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", config | {"id2label": {str(number): number for number in range(4)}})
    export_bundle(copy, tmp_path / "out", precisions=["fp32"])
    assert open_bundle(tmp_path / "out").manifest.labels == ("0", "1", "2", "3")


def test_what_cannot_be_exported(classifier: Path, small_checkpoint: Path, naflex: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        ((classifier, out, "--tower", "text"), "has no text tower to export; leave out the option --tower text"),
        ((classifier, out, "--tokenizer", small_checkpoint / "spiece.model"), "No text tower of"),
        ((small_checkpoint, out, "--tower", "text", "--features"), "has no vision tower to give features"),
        ((small_checkpoint, out, "--tower", "vision", "--exporter", "optimum"), "Use --exporter native"),
        ((naflex, out, "--features", "--exporter", "optimum"), "only their pooled outputs"),
    ):
        assert_error(run("export", *arguments), 4, message)
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    weights = weights_of(copy)
    extra = {f"other.{name}": array for name, array in weights.items() if "embeddings" in name}
    save_file(weights | extra, copy / "model.safetensors", {"format": "pt"})
    assert_error(run("export", copy, out), 4, "' and 'vision_model.embeddings.patch_embedding.weight'; expected one")
    del weights["classifier.bias"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert_error(run("export", copy, out), 4, "lacks the weight 'classifier.bias'")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_vision_tower_of_a_classifier_is_that_of_its_base(classifier: Path, small_bundle: Path, tmp_path: Path) -> None:
    export_bundle(classifier, tmp_path / "out", precisions=["fp32"], tower="vision")
    manifest = open_bundle(tmp_path / "out").manifest
    assert (manifest.kind, manifest.labels) == ("vision", ())
    expected = siglip_onnx.load(small_bundle, variant="fp32").encode_images(STAR)
    assert_allclose(siglip_onnx.load(tmp_path / "out").encode_images(STAR), expected, atol=1e-6)


def test_models_say_what_they_cannot_do(animals: Path, vision: Path, text: Path) -> None:
    images, texts, classes = (siglip_onnx.load(path) for path in (vision, text, animals))
    no_text = "is a vision tower alone, without a text tower: texts cannot be tokenized or embedded"
    for call in (
        lambda: images.encode_texts(["a"]),
        lambda: images.encode_labels(["a"]),
        lambda: images.tokenize(["a"]),
        lambda: images.classify(STAR, ["a"]),
        lambda: images.classify(STAR),
        lambda: images.text,
    ):
        with pytest.raises(BundleError, match=no_text):
            call()
    for call in (
        lambda: texts.encode_images(STAR),
        lambda: texts.encode_features(STAR),
        lambda: texts.preprocess(STAR),
        lambda: texts.classify(STAR, ["a"]),
    ):
        with pytest.raises(BundleError, match="is a text tower alone, without a vision tower: images cannot be read"):
            call()
    with pytest.raises(BundleError, match="is a classifier, without a text tower: texts cannot be tokenized"):
        classes.encode_texts(["a"])
    for model in (images, texts, classes):
        with pytest.raises(BundleError, match="has no logit_scale and logit_bias, so images cannot be compared"):
            model.logits(np.ones((1, 64), np.float32), np.ones((1, 64), np.float32))
        assert model.providers == ["CPUExecutionProvider"]
        assert model.embedding_space.startswith("int8-")
        model.close()
    with pytest.raises(TextError, match=r"answers with its own 4 labels\. Leave out texts"):
        siglip_onnx.load(animals).classify(STAR, ["a"])
    with pytest.raises(OptionError, match="threshold is nan, expected a finite number"):
        siglip_onnx.load(animals).classify(STAR, threshold=float("nan"))
    with pytest.raises(TextError, match="Texts cannot be a NoneType"):
        siglip_onnx.load(animals).classify(STAR, None)  # type: ignore[call-overload]
    with pytest.raises(TextError, match="There are no texts to compare with"):
        siglip_onnx.load("demo").classify(STAR)


def test_bundle_of_version_0_1_is_of_both_towers() -> None:
    assert "kind" not in read_json(BUNDLE_PATH / "manifest.json")
    manifest = open_bundle(BUNDLE_PATH).manifest
    assert (manifest.kind, manifest.towers, manifest.vision_outputs) == ("dual", ("vision", "text"), ("pooler_output",))


def test_version_0_1_is_told_to_upgrade_by_other_kinds(animals: Path, vision: Path, small_bundle: Path) -> None:
    versions = [read_json(path / "manifest.json")["format_version"] for path in (animals, vision, small_bundle)]
    assert versions == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kind="triple"), "kind 'triple', expected one of dual, vision, text, classifier"),
        (lambda d: d.update(labels=[]), "0 labels, expected some, all of them different"),
        (lambda d: d.update(labels=["a", "a"]), "2 labels, expected some, all of them different"),
        (lambda d: d.update(problem_type="x"), "problem_type 'x'"),
        (lambda d: d.update(vision_outputs=["pooler_output"]), r"and vision_outputs \['pooler_output'\], expected"),
        (lambda d: d.update(vision_outputs=["attention"]), r"vision_outputs \['attention'\], expected some of"),
        (lambda d: d.update(kind="dual"), "does not list onnx/text_model"),
        (lambda d: d["files"].pop("preprocessor_config.json"), r"does not list preprocessor_config\.json"),
    ],
)
def test_bad_manifests_of_classifiers(animals: Path, tmp_path: Path, change: Change, message: str) -> None:
    copy = Path(shutil.copytree(animals, tmp_path / "copy"))
    manifest = read_json(copy / "manifest.json")
    change(manifest)
    write_document(copy, manifest)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


def logits_of(model: FineTunedClassifier, image: Image.Image) -> Floats:
    return next(model.vision.outputs("logits", image))


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("uint8", [False, True])
def test_compiled_classifier_answers_as_its_bundle(
    small_checkpoint: Path, tmp_path: Path, images: list[Image.Image], problem_type: str, uint8: bool
) -> None:
    labels = PROBLEMS[problem_type]
    checkpoint = make_classifier(small_checkpoint, tmp_path / "c", labels=labels, problem_type=problem_type)
    export_bundle(checkpoint, tmp_path / "out")
    for variant in ("fp32", "int8"):
        model = siglip_onnx.load(tmp_path / "out", variant=variant)
        assert isinstance(model, FineTunedClassifier)
        compile_classifier(model, [], tmp_path / "c.onnx", uint8=uint8)
        compiled = Classifier(tmp_path / "c.onnx")
        assert (compiled.labels, compiled.facts.problem_type) == (list(labels), problem_type)
        for image in images:
            assert_array_equal(compiled.logits(image), logits_of(model, image))
            assert repr(compiled.classify(image)) == repr(model.classify(image))
        pixels = np.concatenate([inputs["pixel_values"] for inputs in model.preprocess(images)])
        session = LazySession(tmp_path / "c.onnx")
        outputs = [output.name for output in session.load().get_outputs()]
        assert outputs == (["logits"] if problem_type == REGRESSION else ["logits", "probabilities"])
        if problem_type != REGRESSION and variant == "fp32" and not uint8:
            probabilities = session.run("probabilities", {"pixel_values": pixels})
            expected = [[match.probability for match in model.classify(image)] for image in images]
            assert_allclose(probabilities, expected, atol=1e-5)


def test_compile_and_classify_commands(animals: Path, small_bundle: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "c.onnx", tmp_path / "labels.txt"
    labels.write_text("a cat\n")
    compiled = run("compile", animals, "-o", out)
    assert compiled.exit_code == 0, compiled.stderr
    assert "4 labels" in compiled.stdout
    answers = [json.loads(run("classify", STAR, "--model", model, "--json").stdout) for model in (animals, out)]
    assert [answer["results"] for answer in answers] == [answers[0]["results"]] * 2
    assert answers[0]["problem_type"] == SINGLE
    assert_error(run("compile", animals, "--labels", labels, "-o", out), 1, "is a classifier with 4 labels of its own")
    assert_error(run("compile", small_bundle, "-o", out), 2, "has no labels of its own; give --texts-file FILE")


def test_naflex_classifiers_cannot_be_compiled(naflex: Path, tmp_path: Path) -> None:
    checkpoint = make_classifier(naflex, tmp_path / "c", labels=LABELS, problem_type=SINGLE, naflex=True)
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"])
    assert_error(run("compile", tmp_path / "out", "-o", tmp_path / "c.onnx"), 4, "is a NaFlex model")
    few, many = (
        json.loads(run("classify", STAR, "--model", tmp_path / "out", "--json", *options).stdout)
        for options in (("--max-num-patches", 6), ())
    )
    assert few["results"] != many["results"]
    assert few["embedding_space"] == f"{many['embedding_space']}-6patches"


def test_classify_command_answers_with_labels(animals: Path) -> None:
    model = siglip_onnx.load(animals)
    document = json.loads(run("classify", STAR, "nowhere.png", "--model", animals, "--json").stdout)
    best_first = sorted(model.classify(STAR), key=lambda match: -match.logit)
    assert document["results"][0]["matches"] == [match._asdict() for match in best_first]
    assert document["results"][1]["status"] == "io_error"
    assert document["templates"] == []
    table = run("classify", STAR, "--model", animals).stdout
    assert "犬" in table
    assert run("classify", STAR, "--model", animals, "--csv").stdout.count("\n") == 5
    for options, name in ((("--text", "a"), "--text"), (("--logit-bias", 1), "--logit-bias")):
        refused = run("classify", STAR, "--model", animals, *options)
        assert_error(refused, 2, f"is a classifier, which answers with its own labels; remove {name}.")
    assert run("classify", STAR, "--model", animals, "--variant", "fp32", "--workers", 2).exit_code == 0


def test_classify_command_prints_the_score_of_a_regression(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = make_classifier(small_checkpoint, tmp_path / "c", labels=("quality",), problem_type=REGRESSION)
    export_bundle(checkpoint, tmp_path / "out", precisions=["fp32"])
    (match,) = siglip_onnx.load(tmp_path / "out").classify(STAR)
    (row,) = json.loads(run("classify", STAR, "--model", tmp_path / "out", "--json").stdout)["results"]
    assert row["matches"] == [{"text": "quality", "logit": match.logit, "probability": None, "relative": None}]
    assert f"quality  {match.logit:.2f}\n" in run("classify", STAR, "--model", tmp_path / "out").stdout
    assert f"quality,{match.logit}," in run("classify", STAR, "--model", tmp_path / "out", "--csv").stdout


def test_commands_on_each_kind(
    animals: Path, classifier: Path, vision: Path, text: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    stages = {
        animals: (classifier, ["pixels", "vision embedding", "logits"]),
        vision: (small_checkpoint, ["pixels", "vision embedding", "features"]),
        text: (small_checkpoint, ["ids", "text embedding"]),
    }
    for bundle, (checkpoint, expected) in stages.items():
        verified = run("verify", bundle, "--reference", checkpoint, "--json")
        assert verified.exit_code == 0, verified.stderr
        document = json.loads(verified.stdout)
        assert [stage["stage"] for stage in document["pytorch"]["fp32"]] == expected
        assert max(stage["max_abs"] for stage in document["pytorch"]["fp32"]) <= 1e-5
        assert document["variants"].keys() == {"fp32", "int8"}
        assert "against fp32" in run("verify", bundle).stdout
        assert_error(run("verify", bundle, "--published"), 4, "the published numbers are of models with both towers")
        assert_error(run("bench", bundle, "--quick"), BenchmarkError.exit_code, "models with both towers can be meas")
        info = json.loads(run("info", "--model", bundle, "--json").stdout)
        assert info["kind"] == open_bundle(bundle).manifest.kind
        assert run("info", "--model", bundle).exit_code == 0
        assert "all files match" in run("models", "check", bundle).stdout
    assert "4 (single label classification): a cat, 犬" in run("info", "--model", animals).stdout
    written = run("verify", Path(shutil.copytree(animals, tmp_path / "copy")), "--write-card")
    assert written.exit_code == 0, written.stderr
    assert open_bundle(tmp_path / "copy").manifest.variants["int8"].accuracy["label_agreement"] > 0.9


def test_embed_and_search_by_image_need_no_text_tower(animals: Path, vision: Path, text: Path, tmp_path: Path) -> None:
    for bundle in (vision, animals):
        single, job = tmp_path / f"{bundle.name}.npy", tmp_path / bundle.name
        assert run("embed", STAR, "--out", single, "--model", bundle).exit_code == 0
        assert_allclose(np.load(single), siglip_onnx.load(bundle).encode_images(STAR), atol=1e-6)
        embedded = run("embed", IMAGES_PATH, "--out", job, "--model", bundle)
        assert embedded.exit_code == 0, embedded.stderr
        found = run("search", job, "--image", STAR, "--model", bundle, "--json", "--top", 1)
        assert found.exit_code == 0, found.stderr
        assert Path(json.loads(found.stdout)["results"][0]["path"]).name == STAR.name
        assert_error(run("search", job, "a star", "--model", bundle), 4, "without a text tower")
    assert_error(run("embed", "--text", "a", "--out", tmp_path / "x.npy", "--model", vision), 4, "without a text tower")
    assert run("embed", "--text", "a", "--out", tmp_path / "x.npy", "--model", text).exit_code == 0
    assert_error(run("embed", IMAGES_PATH, "--out", tmp_path / "y", "--model", text), 4, "without a vision tower")
    assert not (tmp_path / "y").exists()


def test_repeated_labels_are_found_in_proportional_time(tmp_path: Path) -> None:
    """Comparing each label with all others would take a thousand times as long as reading different ones."""

    def seconds(last: str) -> float:
        labels = {str(number): f"label {number}" for number in range(20_000)} | {"19999": last}
        start = time.perf_counter()
        with pytest.raises(CheckpointError) if last == "label 0" else contextlib.nullcontext():
            read_labels({"id2label": labels}, 20_000, tmp_path, lambda _line: None)
        return time.perf_counter() - start

    assert min(seconds("label 0") for _ in range(2)) < 50 * min(seconds("x") for _ in range(2))
