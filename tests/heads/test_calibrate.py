"""Calibration: the fit is the best one, holds on images that it has not seen, and everything that takes it agrees."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import assert_error, run
from support.drawn import NAMES_EN, NAMES_JA, draw_folders, write_csv

import siglip_onnx
from siglip_onnx.bundle.manifest import read_manifest
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import DataError, TextError
from siglip_onnx.head import Calibration, read_calibration, sigmoid
from siglip_onnx.heads.calibrate import Fit, LabelSet, calibrate, cross_validate
from siglip_onnx.heads.folds import make_folds

START = Fit(1.0, -5.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of images, and files of English and Japanese labels."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_folders(folder / "fitted", 15, seed=1, noise=0)
    draw_folders(folder / "held_out", 15, seed=2, noise=0)
    draw_folders(folder / "noisy", 15, seed=3)
    draw_folders(folder / "noisy_held_out", 15, seed=4)
    for name, words in (("en", NAMES_EN), ("ja", NAMES_JA)):
        lines = [f"{folder_name}\t{word}\n" for folder_name, word in zip(NAMES_EN, words, strict=True)]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def calibration(drawn: Path) -> Path:
    out = drawn / "calibration.json"
    result = run("calibrate", "demo", drawn / "fitted", "--labels", f"en={drawn}/en.txt",
                 "--labels", f"ja={drawn}/ja.txt", "--per", "language", "-o", out)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "calibration error" in result.stdout
    return out


def random_pairs(seed: int, images: int = 400, labels: int = 6) -> tuple[list[LabelSet], np.ndarray]:
    """Scores whose true scale is .7 and true bias 2, of two languages that differ by one logit."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(-4, 4, (images, labels))
    truth = rng.random(scores.shape) < 1 / (1 + np.exp(-(0.7 * scores + 2)))
    texts = [f"label {number}" for number in range(labels)]
    return [LabelSet("en", texts, scores), LabelSet("ja", texts, scores - 1)], truth


def log_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    probabilities = 1 / (1 + np.exp(-logits))
    return -float(np.log(np.where(truth, probabilities, 1 - probabilities)).sum())


@pytest.mark.parametrize("fit_scale", [False, True])
def test_no_other_bias_and_scale_is_better(fit_scale: bool) -> None:
    (english, _), truth = random_pairs(0)
    fit = calibrate([english], truth, START, fit_scale=fit_scale)

    def loss(scale: float, bias: float) -> float:
        prior = 0.5 * (scale - 1) ** 2 if fit_scale else 0.0
        return log_loss(scale * english.scores + bias, truth) + prior

    best = loss(fit.scale, fit.bias)
    for change in (-0.01, 0.01):
        assert loss(fit.scale, fit.bias + change) > best
        if fit_scale:
            assert loss(fit.scale * (1 + change), fit.bias) > best
            assert loss(fit.scale * (1 + change), fit.bias + change) > best
    if fit_scale:
        assert fit.scale == pytest.approx(0.7, abs=0.05)
        assert fit.bias == pytest.approx(2, abs=0.3)
    else:
        assert fit.scale == 1


def test_the_scale_of_separable_scores_stays_finite() -> None:
    scores = np.array([[10.0, 0.0]] * 20 + [[0.0, 10.0]] * 20)
    fit = calibrate([LabelSet("", ["a", "b"], scores)], scores > 5, START, fit_scale=True)
    assert 0.1 < fit.scale < 10
    assert -10 * fit.scale < fit.bias < 0
    assert sigmoid(fit.scale * scores + fit.bias)[0] == pytest.approx([1, 0], abs=0.05)


def test_a_scale_that_would_be_negative_is_refused() -> None:
    (english, _), truth = random_pairs(0)
    with pytest.raises(DataError, match="texts do not describe the classes"):
        calibrate([english], ~truth, START, fit_scale=True)


def test_each_language_has_its_bias() -> None:
    sets, truth = random_pairs(1)
    fit = calibrate(sets, truth, START, scope="language")
    assert fit.texts["ja", "label 3"] - fit.texts["en", "label 3"] == pytest.approx(1, abs=1e-6)
    assert len({fit.texts["en", f"label {number}"] for number in range(6)}) == 1


def test_each_label_has_its_bias_which_few_images_move_little() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(-1, 1, (4000, 2))
    truth = scores + np.array([0, 2]) + rng.logistic(size=scores.shape) > 0
    fit = calibrate([LabelSet("", ["plain", "often"], scores)], truth, START, scope="label")
    assert fit.texts["", "often"] - fit.texts["", "plain"] == pytest.approx(2, abs=0.2)
    few = np.zeros((5, 2))
    truth = np.array([[True, True], [False, True], [True, True], [False, True], [False, True]])
    fit = calibrate([LabelSet("", ["plain", "always"], few)], truth, START, scope="label")
    assert fit.bias < fit.texts["", "always"] < fit.bias + 1.5  # without limits it would be infinite


def test_folds_hold_each_image_out_once_and_spread_the_classes() -> None:
    labels = [(number % 4,) for number in range(40)] + [(9,)]
    folds = make_folds(labels)
    for fold in range(5):
        assert (
            np.bincount([labels[row][0] for row in np.flatnonzero(folds == fold)], minlength=4)[:4].tolist() == [2] * 4
        )
    assert folds.tolist() == make_folds(labels).tolist()


def test_cross_validation_does_not_judge_by_images_that_were_fitted() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(-3, 1, (60, 40))  # pure noise: nothing can be learned
    truth = rng.random((60, 40)) < 0.05
    report = cross_validate([LabelSet("", [str(number) for number in range(40)], scores)], truth, START, scope="label")
    fit = calibrate([LabelSet("", [str(number) for number in range(40)], scores)], truth, START, scope="label")
    labels = LabelSet("", [str(number) for number in range(40)], scores)
    seen, before = (each.scale * scores + each.biases(labels) for each in (fit, START))
    assert log_loss(seen, truth) < log_loss(before, truth)
    assert report.sets[0].after < report.sets[0].before
    assert sum(label.images for label in report.labels) == truth.sum()


def errors_of(images: Path, labels: Path, *options: object) -> tuple[float, float]:
    result = run("evaluate", "demo", images, "--labels", labels, "--variant", "int8", *options, "--json")
    scores = json.loads(result.stdout)["variants"]["int8"]["scores"]
    return scores["calibration_error"]["value"], scores["calibration_error_top1"]["value"]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_error_on_other_images_is_at_least_halved(language: str, drawn: Path, calibration: Path) -> None:
    images, labels = drawn / "held_out", drawn / f"{language}.txt"
    pairs, best = errors_of(images, labels)
    pairs_after, best_after = errors_of(images, labels, "--calibration", calibration)
    assert pairs_after < pairs / 2
    assert best_after < best / 2


@pytest.mark.parametrize("language", ["en", "ja"])
def test_noise_needs_a_scale_too(language: str, drawn: Path, tmp_path: Path) -> None:
    labels, out = drawn / f"{language}.txt", tmp_path / "x.json"
    result = run("calibrate", "demo", drawn / "noisy", "--labels", labels, "--scale", "-o", out)
    assert result.exit_code == 0
    pairs, _ = errors_of(drawn / "noisy_held_out", labels)
    pairs_after, _ = errors_of(drawn / "noisy_held_out", labels, "--calibration", out)
    assert pairs_after < 0.6 * pairs


def as_list(drawn: Path, out: Path) -> tuple[Path, Path, Path]:
    """Folders and English words in another order than the folders', Japanese ones in theirs."""
    english, japanese = out / "en.txt", out / "ja.txt"
    by_folder = dict(sorted(zip(NAMES_EN, NAMES_JA, strict=True)))
    english.write_text("\n".join(reversed(by_folder)), encoding="utf-8")
    japanese.write_text("\n".join(by_folder.values()), encoding="utf-8")
    return drawn / "fitted", english, japanese


def as_table(drawn: Path, out: Path) -> tuple[Path, Path, Path]:
    """A table, and names with words in two orders."""
    english, japanese = out / "en.tsv", out / "ja.tsv"
    rows = [(str(path), path.parent.name) for path in sorted((drawn / "fitted").glob("*/*.png"))]
    table = write_csv(out / "table.csv", ("path", "label"), rows)
    pairs = list(zip(NAMES_EN, NAMES_JA, strict=True))
    english.write_text("".join(f"{name}\t{name}\n" for name, _ in pairs), encoding="utf-8")
    japanese.write_text("".join(f"{name}\t{words}\n" for name, words in reversed(pairs)), encoding="utf-8")
    return table, english, japanese


@pytest.mark.parametrize(("write", "turned"), [(as_list, False), (as_list, True), (as_table, False)])
def test_classes_are_the_same_in_each_language_whatever_the_order_of_their_files(
    write: Callable[[Path, Path], tuple[Path, Path, Path]], turned: bool, drawn: Path, tmp_path: Path
) -> None:
    data, *files = write(drawn, tmp_path)
    options = [f"--labels={name}={file}" for name, file in zip(("en", "ja"), files, strict=True)]
    out, expected = tmp_path / "x.json", tmp_path / "expected.json"
    result = run("calibrate", "demo", data, *(reversed(options) if turned else options), "--per", "label", "-o", out)
    assert result.exit_code == 0, result.stderr
    mapped = [f"--labels={name}={drawn / name}.txt" for name in ("en", "ja")]
    assert run("calibrate", "demo", drawn / "fitted", *mapped, "--per", "label", "-o", expected).exit_code == 0
    assert read_calibration(out).texts == pytest.approx(read_calibration(expected).texts, abs=1e-6)


def test_what_is_written(calibration: Path) -> None:
    document = json.loads(calibration.read_text(encoding="utf-8"))
    assert (document["model"], document["variant"], document["scale"]) == ("demo", "int8", 1.0)
    assert document["data"]["num_images"] == 120
    assert document["data"]["languages"] == ["en", "ja"]
    assert set(document["texts"]) == {*NAMES_EN, *NAMES_JA}
    assert document["texts"]["a red star"] != document["texts"]["赤い星"]
    assert all(quality["after"] < quality["before"] / 2 for quality in document["data"]["cross_validated"])


def test_other_templates_than_the_fitted_ones_are_named_once(
    calibration: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = siglip_onnx.load("demo", calibration=calibration)
    model.encode_labels(["a red star"])
    assert not caplog.messages
    for _ in range(2):
        model.classify(IMAGES_PATH / "red_star.png", ["a red star"], template="a photo of {}")
    (message,) = caplog.messages
    assert "fitted to texts in ['{}'], and is used with ['a photo of {}'], so that probabilities may be off" in message


def test_everything_that_takes_a_calibration_agrees(drawn: Path, calibration: Path) -> None:
    image, texts = drawn / "held_out" / "a red star" / "0.png", ["a red star", "赤い星", "a cat"]
    plain = siglip_onnx.load("demo").classify(image, texts)
    model = siglip_onnx.load("demo", calibration=calibration)
    known = read_calibration(calibration)
    manifest_bias = model.bundle.manifest.logit_bias
    expected = [match.logit - manifest_bias + known.texts.get(match.text, known.bias) for match in plain]
    calibrated = model.classify(image, texts)
    assert [match.logit for match in calibrated] == pytest.approx(expected, abs=1e-5)
    assert model.classify(image, texts, logit_bias=manifest_bias) == plain
    options = [option for text in texts for option in ("--text", text)]
    command = run("classify", image, *options, "--calibration", calibration, "--json")
    matches = json.loads(command.stdout)["results"][0]["matches"]
    assert [match["logit"] for match in matches] == [match.logit for match in calibrated]


def test_a_compiled_classifier_has_the_bits_of_the_calibrated_model(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from siglip_onnx.classifier import Classifier

    out, texts = tmp_path / "scaled.json", ["a red star", "赤い星", "a cat"]
    result = run("calibrate", "demo", drawn / "fitted", "--scale", "--per", "label", "-o", out)
    assert result.exit_code == 0, result.stderr
    (tmp_path / "labels.txt").write_text("\n".join(texts), encoding="utf-8")
    compiled = run(
        "compile", "demo", "--labels", tmp_path / "labels.txt", "--calibration", out, "-o", tmp_path / "x.onnx"
    )
    assert compiled.exit_code == 0, compiled.stderr
    image = drawn / "held_out" / "a red star" / "0.png"
    model = siglip_onnx.load("demo", calibration=out)
    assert model.calibration is not None
    assert model.calibration.scale != 1
    assert Classifier(tmp_path / "x.onnx").classify(image) == model.classify(image, texts)


SPACES_OF_FP32 = {"fp32": read_manifest(BUNDLE_PATH).variants["fp32"].embedding_space}
SCALES = (0, -1, 1e308, 1e-300, math.inf, math.nan)


def change(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document | {key: value}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("format", "other"), "its format is not siglip_onnx.calibration/1"),
        *((change("scale", scale), "its scale is .*, expected 0.001 to 1000") for scale in SCALES),
        *((change("bias", bias), "it has the bias .*, expected -10000 to 10000") for bias in (1e308, -1e5, math.nan)),
        (change("texts", {"a": 1.0, "b": math.inf}), "it has the bias inf, expected"),
        (change("texts", [1.0]), "texts is a list, expected an object"),
        (change("bias", "x"), 'bias is "x", expected a number'),
        (change("texts", {"a": None}), "texts.a is null, expected a number"),
        (change("model", "other"), "is the calibration of other, not of demo; calibrate this model"),
        *(
            (change("spaces", spaces), "is the calibration of another model of the name demo; calibrate this model")
            for spaces in ({}, {"int8": "int8-other"}, {"int8": "int8-other"} | SPACES_OF_FP32, {"fp32": "fp32-other"})
        ),
    ],
)
def test_a_calibration_that_cannot_be_used(
    damage: Callable[[dict[str, Any]], Any], message: str, calibration: Path, tmp_path: Path
) -> None:
    document = damage(json.loads(calibration.read_text(encoding="utf-8")))
    (tmp_path / "damaged.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        siglip_onnx.load("demo", calibration=tmp_path / "damaged.json")


def test_a_calibration_is_used_for_another_variant_of_the_same_model(calibration: Path, tmp_path: Path) -> None:
    document = json.loads(calibration.read_text(encoding="utf-8"))
    assert document["spaces"] == read_manifest(BUNDLE_PATH).spaces
    (tmp_path / "one.json").write_text(json.dumps(document | {"spaces": SPACES_OF_FP32}))
    for path, variant in ((calibration, "fp32"), (tmp_path / "one.json", "int8")):
        assert siglip_onnx.load("demo", variant=variant, calibration=path).calibration is not None


def test_numbers_of_a_calibration_are_finite() -> None:
    with pytest.raises(ValueError, match="it has the bias nan"):
        Calibration("demo", "int8", 1.0, float("nan"))
    assert_error(
        run("classify", IMAGES_PATH / "red_star.png", "--text", "a", "--calibration", "/nowhere.json"),
        1,
        "cannot be read as a calib",
    )


def test_images_that_cannot_be_calibrated_with(drawn: Path, tmp_path: Path) -> None:
    image = str(drawn / "fitted" / "a red star" / "0.png")
    out = ("-o", tmp_path / "x.json")
    few = write_csv(tmp_path / "few.csv", ("path", "label"), [(image, "a"), (image + "x", "b")])
    assert_error(run("calibrate", "demo", few, *out), 1, "There are 2 images to calibrate with; give at least 5")
    missing = [(f"{image}{number}", "b") for number in range(5)]
    few = write_csv(tmp_path / "few.csv", ("path", "label"), [(image, "a"), *missing])
    assert_error(run("calibrate", "demo", few, *out), 1, "There are 1 images to calibrate with; give at least 5")
    rows = [(f"{drawn}/fitted/a red star/{number}.png", "a|b") for number in range(10)]
    all_true = write_csv(tmp_path / "all.csv", ("path", "label"), rows)
    assert_error(run("calibrate", "demo", all_true, *out), 1, "true of all images, or of none")
    captions = write_csv(tmp_path / "captions.csv", ("path", "caption"), [(image, "a")])
    assert_error(run("calibrate", "demo", captions, *out), 1, "has captions; expected images with labels")
    (tmp_path / "less.txt").write_text("a\nb\nc")
    with_less = run("calibrate", "demo", all_true, "--labels", f"en={tmp_path}/less.txt",
                    "--labels", f"en={tmp_path}/less.txt", *out)  # fmt: skip
    assert_error(with_less, 1, "names the language 'en' twice")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("labels", [["a", "b"], ["a|b"] * 9])
def test_labels_that_cannot_be_calibrated_are_refused_before_the_work(
    labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_onnx.cli.calibrate.load", None)  # nothing is computed
    rows = [(f"{number}.png", label) for number, label in enumerate(labels)]
    data = write_csv(tmp_path / "x.csv", ("path", "label"), rows)
    message = "There are 2 images to calibrate" if len(rows) < 5 else "true of all images, or of none"
    assert_error(run("calibrate", "demo", data, "-o", tmp_path / "x.json"), 1, message)


def test_labels_are_embedded_before_the_images(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TextError("a text that cannot be used")

    monkeypatch.setattr(siglip_onnx.SigLIP, "encode_labels", refuse)
    monkeypatch.setattr("siglip_onnx.cli.calibrate.embed_labelled", None)
    assert_error(run("calibrate", "demo", drawn / "fitted", "-o", tmp_path / "x.json"), 1, "a text that cannot be used")


def test_a_fold_without_a_true_pair_keeps_its_scale() -> None:
    rng = np.random.default_rng(4)
    truth = np.zeros((10, 2), bool)
    truth[3, 1] = True
    report = cross_validate([LabelSet("", ["a", "b"], rng.normal(-3, 1, (10, 2)))], truth, START, fit_scale=True)
    assert all(math.isfinite(value) for value in (report.sets[0].before, report.sets[0].after))


def test_classes_that_a_protocol_writes_otherwise_get_the_common_bias_and_are_counted(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"{name}\t{name.capitalize()}\n" for name in NAMES_EN))
    labels, out = ("--labels", tmp_path / "labels.txt"), tmp_path / "x.json"
    assert run("calibrate", "demo", drawn / "fitted", *labels, "--per", "label", "-o", out).exit_code == 0
    arguments = ("evaluate", "demo", drawn / "held_out", *labels, "--calibration", out, "--limit", 8)
    assert run(*arguments).exit_code == 0
    assert "no bias" not in caplog.text
    assert run(*arguments, "--protocol", "paper").exit_code == 0
    assert f"The calibration has no bias of 8 of the 8 classes, such as '{NAMES_EN[0]}'; the common" in caplog.text


def test_unreadable_images_are_left_out_by_name(drawn: Path, tmp_path: Path) -> None:
    rows = [(str(path), path.parent.name) for path in sorted((drawn / "fitted").rglob("*.png"))]
    path = write_csv(tmp_path / "x.csv", ("path", "label"), [*rows, ("missing.png", "a red star")])
    result = run("calibrate", "demo", path, "-o", tmp_path / "x.json", "--json")
    assert_error(result, 3, "left out: missing.png")
    assert json.loads(result.stdout)["data"]["num_images"] == 120
