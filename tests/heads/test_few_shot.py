"""Few-shot classifiers: the optimum is checked, more images help, none hurts, and the file runs like any classifier."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_error, run
from support.drawn import draw_folders, write_csv, write_json_lines

import siglip_onnx
import siglip_onnx.classifier
from demo_world.drawing import draw
from demo_world.scene import Scene
from demo_world.styles import STYLED_SHAPES, STYLES, class_names, draw_style_folders, draw_styled
from siglip_onnx.errors import DataError
from siglip_onnx.head import l2_normalize
from siglip_onnx.heads.few_shot import Head, fit_few_shot
from siglip_onnx.heads.regression import fit_regression, sigmoid_loss, softmax_loss

EXAMPLE = Path(__file__).parents[2] / "examples" / "compiled_classifier.py"
SHOTS, TEST_IMAGES = 16, 30


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    truth = np.eye(4, dtype=bool)[(features[:, :4] + rng.normal(0, 0.2, (60, 4))).argmax(axis=1)]
    return features, rng.normal(0, 2, (60, 4)), truth


@pytest.mark.parametrize("one_label", [True, False])
@pytest.mark.parametrize("strength", [0.5, 30])
def test_no_other_weights_are_better(one_label: bool, strength: float) -> None:
    features, offsets, truth = problem()
    changes = fit_regression(features, offsets, truth, strength, one_label=one_label)

    def objective(changes: np.ndarray) -> float:
        logits = offsets + features @ changes[:, :-1].T + changes[:, -1]
        if one_label:
            loss = -np.log((np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[truth]).sum()
        else:
            loss = -np.log(1 / (1 + np.exp(np.where(truth, -logits, logits)))).sum()
        return float(loss + (changes**2).sum() / (2 * strength))

    best = objective(changes)
    rng = np.random.default_rng(1)
    for _ in range(200):
        assert objective(changes + rng.normal(0, 0.03, changes.shape)) > best
    for place in np.ndindex(changes.shape):
        step = np.zeros_like(changes)
        step[place] = 1e-5
        assert abs(objective(changes + step) - objective(changes - step)) / 2e-5 < 5e-3  # the gradient is zero


@pytest.mark.parametrize("loss_of", [softmax_loss, sigmoid_loss])
def test_gradients_of_losses(loss_of) -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 3, (5, 3)), np.eye(3, dtype=bool)[[0, 1, 2, 0, 1]]
    _, gradient = loss_of(logits, truth)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        slope = (loss_of(logits + step, truth)[0] - loss_of(logits - step, truth)[0]) / 2e-6
        assert gradient[place] == pytest.approx(slope, abs=1e-6)
    extreme = loss_of(np.array([[1000.0, -1000, 0]]), np.array([[True, False, False]]))
    assert np.isfinite(extreme[0])


def test_the_optimum_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, _, truth = problem()
    changes = fit_regression(features, np.zeros(truth.shape), truth, 3.0, one_label=True)
    with_ones = np.concatenate([features, np.ones((60, 1))], axis=1)  # its intercept would not be regularized
    other = linear_model.LogisticRegression(C=3.0, fit_intercept=False, tol=1e-8, max_iter=1000)
    np.testing.assert_allclose(changes, other.fit(with_ones, truth.argmax(axis=1)).coef_, atol=2e-3)


@pytest.fixture(scope="module")
def styled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of images in styles ``(classes, images, D)`` to fit and to test, and of the class names."""
    model, rng = siglip_onnx.load("demo"), np.random.default_rng(0)
    vectors = np.array([
        model.encode_images([draw_styled(style, shape, rng) for _ in range(SHOTS + TEST_IMAGES)])
        for style in STYLES for shape in STYLED_SHAPES
    ])  # fmt: skip
    return vectors[:, :SHOTS], vectors[:, SHOTS:], model.encode_texts(class_names())


def accuracies(styled: tuple[np.ndarray, ...], shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which test images zero-shot and few-shot classify rightly."""
    fitted, tested, texts = styled
    model = siglip_onnx.load("demo")
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rows[rng.choice(SHOTS, shots, replace=False)] for rows in fitted])
    truth = np.repeat(np.eye(len(texts), dtype=bool), shots, axis=0)
    zero_shot = Head(texts.astype(np.float64), model.biases(class_names()), float(np.exp(model.logit_scale)))
    few_shot = fit_few_shot(chosen, truth, zero_shot, one_label=True)
    right = np.repeat(np.arange(len(texts)), TEST_IMAGES)
    both = [head.logits(tested.reshape(len(right), -1)).argmax(axis=1) == right for head in (zero_shot, few_shot.head)]
    return both[0], both[1]


def test_more_images_help_with_classes_that_texts_cannot_name(styled: tuple[np.ndarray, ...]) -> None:
    means = []
    for shots in (1, 2, 4, 8, 16):
        results = [accuracies(styled, shots, seed) for seed in range(2)]
        differences = np.concatenate([few.astype(float) - zero for zero, few in results])
        low = differences.mean() - 1.96 * differences.std() / np.sqrt(len(differences))
        means.append(np.mean([few.mean() for _, few in results]))
        assert low >= 0 if shots > 1 else differences.mean() > 0
    assert means == sorted(means)
    assert means[-1] > 0.6
    assert np.mean([zero.mean() for zero, _ in results]) < 0.2


def test_one_image_does_not_hurt_classes_that_texts_name(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    draw_folders(tmp_path / "fitted", 1, seed=5)
    draw_folders(tmp_path / "test", 20, seed=6)
    result = run("fit", "demo", tmp_path / "fitted", "--test", tmp_path / "test", "-o", tmp_path / "x.onnx", "--json")
    facts = json.loads(result.stdout)
    assert facts["few_shot"]["value"] >= facts["zero_shot"]["value"]
    assert facts["difference"]["high"] >= 0
    alone = run("fit", "demo", tmp_path / "fitted", "-o", tmp_path / "x.onnx")
    assert "no image could be held out" in alone.stderr
    none = run("fit", "demo", tmp_path / "fitted", "--none-of-these", "else", "-o", tmp_path / "x.onnx")
    assert_error(none, 1, "every class has one image; give at least two")


@pytest.fixture(scope="module", params=[("--none-of-these", "None of these"), ("--multi-label",)])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx_ir")
    folder = tmp_path_factory.mktemp("fit")
    draw_style_folders(folder / "set", 2, seed=1)
    result = run("fit", "demo", folder / "set", "-o", folder / "classifier.onnx", *request.param)
    assert result.exit_code == 0, result.stderr
    assert "few-shot" in result.stdout
    return folder / "classifier.onnx"


def test_the_file_runs_in_the_api_the_command_and_the_example(
    classifier: Path, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    options = request.node.callspec.params["classifier"]
    from siglip_onnx.classifier import Classifier

    image = classifier.parent / "set" / "a striped star" / "0.png"
    matches = Classifier(classifier).classify(image)
    assert [match.text for match in matches] == [*sorted(class_names()), *options[1:]]
    command = json.loads(run("classify", image, "--model", classifier, "--json").stdout)
    answered = {match["text"]: match["logit"] for match in command["results"][0]["matches"]}
    assert answered == {match.text: match.logit for match in matches}
    done = subprocess.run([sys.executable, EXAMPLE, classifier, image], capture_output=True, text=True, check=True)
    printed = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert {text: float(value) for text, value in printed.items()} == pytest.approx(
        {match.text: match.probability for match in matches}, rel=0.01
    )


def test_none_of_these_wins_for_other_images_and_rarely_for_these(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from siglip_onnx.classifier import Classifier

    draw_folders(tmp_path / "set", 8, seed=7, noise=0)
    known = draw_folders(tmp_path / "known", 10, seed=8, noise=0)
    out = tmp_path / "x.onnx"
    assert run("fit", "demo", tmp_path / "set", "--none-of-these", "none of these", "-o", out).exit_code == 0
    rng = np.random.default_rng(9)
    words = [
        draw(Scene(int(rng.integers(10)), word=number % 20, dark=number % 2), rng, canvas=96) for number in range(40)
    ]
    blank = [Image.new("RGB", (64, 64), (level,) * 3) for level in range(0, 256, 8)]
    shares = []
    for images in (known, words, blank):
        best = [max(matches, key=lambda match: match.logit) for matches in Classifier(out).classify(images)]
        shares.append(np.mean([match.text == "none of these" for match in best]))
    assert shares[0] < 0.15
    assert min(shares[1:]) > 0.5


def test_several_labels_per_image(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    paths = sorted(draw_style_folders(tmp_path / "set", 6, seed=2).rglob("*.png"))
    rows = [{"path": str(path), "labels": path.parent.name.split()[1:]} for path in paths]
    data = write_json_lines(tmp_path / "set.jsonl", rows)
    result = run("fit", "demo", data, "-o", tmp_path / "x.onnx", "--json")
    facts = json.loads(result.stdout)
    assert facts["score"] == "mean average precision"
    assert facts["labels"] == sorted({*STYLES, "circle", "square", "star", "heart", "diamond"})
    assert facts["difference"]["low"] > 0


def test_probabilities_of_held_out_images_are_frequencies(styled: tuple[np.ndarray, ...]) -> None:
    fitted, _, texts = styled
    model = siglip_onnx.load("demo")
    zero_shot = Head(texts.astype(np.float64), model.biases(class_names()), float(np.exp(model.logit_scale)))
    truth = np.repeat(np.eye(len(texts), dtype=bool), SHOTS, axis=0)
    result = fit_few_shot(fitted.reshape(len(truth), -1), truth, zero_shot, one_label=True)
    assert result.held_out is not None
    probabilities = 1 / (1 + np.exp(-result.held_out))
    assert probabilities.sum() == pytest.approx(truth.sum(), rel=0.02)


def test_data_that_cannot_be_fitted(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    paths = draw_folders(tmp_path / "set", 2, seed=3)
    out = ("-o", tmp_path / "x.onnx")
    rows = [(str(path), path.parent.name) for path in paths]
    bad = write_csv(tmp_path / "x.csv", ("path", "label"), [*rows, ("missing.png", "a red star")])
    assert_error(run("fit", "demo", bad, *out), 3, "left out: missing.png: ")
    assert (tmp_path / "x.onnx").exists()
    (tmp_path / "labels.txt").write_text("\n".join([*sorted({label for _, label in rows}), "a cat"]))
    result = run("fit", "demo", bad, "--labels", tmp_path / "labels.txt", *out)
    assert "1 label without images, which only the text describes: a cat" in result.stderr
    other = run("fit", "demo", tmp_path / "set", "--test", bad, "--labels", tmp_path / "labels.txt", *out)
    assert other.exit_code in (0, 3)
    (tmp_path / "run=3").mkdir()
    named = shutil.copy(tmp_path / "labels.txt", tmp_path / "run=3" / "labels.txt")
    assert run("fit", "demo", tmp_path / "set", "--labels", named, *out).exit_code == 0
    shutil.copytree(tmp_path / "set", tmp_path / "test set")
    first = min((tmp_path / "test set").iterdir())
    first.rename(first.with_name("zebra"))  # as many folders, so that a list of words has other meanings
    (tmp_path / "words.txt").write_text("".join(f"class {number}\n" for number in range(8)))
    words = ("--labels", tmp_path / "words.txt")
    shifted = run("fit", "demo", tmp_path / "set", "--test", tmp_path / "test set", *words, *out)
    assert_error(shifted, 1, "has other classes than")
    (tmp_path / "set" / "a new class").mkdir()
    assert_error(run("fit", "demo", tmp_path / "set", "--test", bad, *out), 1, "has other classes than")
    with pytest.raises(DataError, match="images have no label or several"):
        fit_few_shot(
            np.eye(3, dtype=np.float32), np.ones((3, 2), bool), Head(np.eye(2, 3), np.zeros(2), 1.0), one_label=True
        )


@pytest.mark.parametrize(
    ("command", "remedy"), [("fit", "give fewer images of each class"), ("calibrate", "give --limit for fewer images")]
)
def test_more_pairs_than_fit_into_memory_are_refused(
    command: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_ir")
    draw_folders(tmp_path / "set", 2, seed=3)  # of 8 classes
    monkeypatch.setattr(f"siglip_onnx.cli.{command}._MAX_PAIRS", 127)
    out = tmp_path / "out.onnx"
    assert_error(
        run(command, "demo", tmp_path / "set", "-o", out),
        1,
        f"16 images and 8 labels: 128 pairs, of which at most 127 are compared; {remedy}",
    )
    assert not out.exists()
    monkeypatch.setattr(f"siglip_onnx.cli.{command}._MAX_PAIRS", 128)
    assert run(command, "demo", tmp_path / "set", "-o", out).exit_code == 0


def test_a_threshold_that_cannot_be_found_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_ir")
    draw_folders(tmp_path / "set", 1, seed=3)
    monkeypatch.setattr("siglip_onnx.cli.fit.load", None)  # nothing is computed
    arguments = ("fit", "demo", tmp_path / "set", "--none-of-these", "else", "--test", tmp_path / "set")
    assert_error(run(*arguments, "-o", tmp_path / "x.onnx"), 1, "every class has one image; give at least two")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [("missing.png", "a red star"), ("good.png", "")],
            ("--multi-label",),
            "no image that can be read has a label",
        ),
        ([("missing.png", "a red star"), ("gone.png", "a red star")], (), "None of the 2 images can be read"),
    ],
)
def test_images_to_test_that_cannot_be_used_do_not_cost_the_classifier(
    rows: list[tuple[str, str]], options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir")
    paths = draw_folders(tmp_path / "set", 2, seed=3)
    shutil.copy(paths[0], tmp_path / "good.png")
    (tmp_path / "labels.txt").write_text("\n".join(sorted({path.parent.name for path in paths})))
    test = write_csv(tmp_path / "test.csv", ("path", "label"), rows)
    out = tmp_path / "x.onnx"
    arguments = ("fit", "demo", tmp_path / "set", "--labels", tmp_path / "labels.txt", *options, "-o", out)
    assert_error(run(*arguments, "--test", test), 1, f"{out} was written, but not measured: ")
    assert_error(run(*arguments, "--test", test), 1, message)
    model = siglip_onnx.classifier.Classifier(out)
    assert len(model.classify(paths[0])) == 8
    out.unlink()
    write_csv(test, ("path", "label"), [("good.png", ""), ("good.png", "")])
    assert_error(run(*arguments, "--test", test), 1, "test.csv has 1 images without any label; expected a label for")
    assert not out.exists()


def test_texts_count_by_what_they_explain() -> None:
    """With one image per class: texts that name the classes keep their part, and texts of other classes lose it."""
    rng = np.random.default_rng(0)
    texts = np.eye(6, 40)
    images = l2_normalize((texts + rng.normal(0, 0.05, texts.shape)).astype(np.float32))
    truth = np.eye(6, dtype=bool)
    named = fit_few_shot(images, truth, Head(texts, np.full(6, -10.0), 50.0), one_label=True)
    other = fit_few_shot(images, truth, Head(np.roll(texts, 1, axis=0), np.full(6, -10.0), 50.0), one_label=True)
    assert (named.text_share, named.strength) == (1, 3)
    assert other.text_share == pytest.approx(0.01)
    assert other.strength == pytest.approx(300)
    tested = l2_normalize((texts + rng.normal(0, 0.05, texts.shape)).astype(np.float32))
    for fitted in (named, other):
        logits = fitted.head.logits(tested)
        assert (logits.argmax(axis=1) == np.arange(6)).all()
        assert (1 / (1 + np.exp(-logits))).max() > 0.1  # the bias was fitted too


def test_held_out_images_that_prefer_other_labels_are_no_error() -> None:
    """Unrelated images, and texts of the other class: no positive scale fits, and only the bias is fitted."""
    images, truth = np.eye(4, dtype=np.float32), np.repeat(np.eye(2, dtype=bool), 2, axis=0)
    texts = np.repeat(np.eye(2)[::-1], 2, axis=1)
    fitted = fit_few_shot(images, truth, Head(texts, np.zeros(2), 50.0), one_label=True)
    assert fitted.held_out is not None
    assert fitted.held_out[truth].max() < fitted.held_out[~truth].min()
    assert np.isfinite(fitted.head.logits(images)).all()
