"""Occlusion finds the object that a text names, with every kind of model, several texts, and odd sizes."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from explain import share_found
from PIL import Image, ImageDraw
from support.commands import assert_error, run

import siglip_onnx
import siglip_onnx.explain as explain_module
from siglip_onnx.bulk.gallery import Group, Tile, render_gallery
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.explain import (
    GRID,
    Explanation,
    Scorer,
    draw_explanation,
    explain,
    explain_in_steps,
    score_with_classifier,
    score_with_model,
)
from siglip_onnx.head import match_texts
from siglip_onnx.image.decode import DecodedImage, ImageSource
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.image.preprocess import Fit, ShrinkFit

STAR = IMAGES_PATH / "red_star.png"


def test_the_strongest_place_lies_in_the_named_object() -> None:
    assert min(share_found(25).values()) >= 0.92


def test_one_text_takes_42_runs_and_several_share_the_first_pass() -> None:
    model = siglip_onnx.load("demo")
    image = model.vision.reader.read(STAR).rgb
    texts = ["a red star", "六つの卵", "something blue"]
    assert explain(image, score_with_model(model, texts[:1])).num_runs == 42
    assert 42 <= explain(image, score_with_model(model, texts)).num_runs <= 42 + 2 * 16


@pytest.mark.slow
def test_the_strongest_place_lies_in_the_named_object_in_500_cases(full: bool) -> None:
    if not full:
        pytest.skip("minutes; run with --full")
    assert min(share_found(500).values()) >= 0.95


def scorer_of(answer: Callable[[Image.Image], np.ndarray], texts: list[str]) -> Scorer:
    return Scorer(ShrinkFit(4096), answer, partial(match_texts, texts=texts), range(len(texts)))


def test_effects_are_differences_of_logits_of_hidden_windows() -> None:
    """Of a score that counts red pixels, the effect is where red is; that of the opposite score mirrors it."""
    image = Image.new("RGB", (160, 96), "white")
    ImageDraw.Draw(image).rectangle((100, 12, 119, 29), fill="red")

    def answer(hidden: Image.Image) -> np.ndarray:
        red = float((np.asarray(hidden)[..., 1] < 100).mean())
        return np.array([red, -red, 1], np.float32)

    explanation = explain(image, scorer_of(answer, ["red", "not red", "constant"]))
    x, y = explanation.strongest(0)
    assert 100 <= x * 160 <= 119
    assert 12 <= y * 96 <= 29
    assert explanation.effects[0].max() > 0 > explanation.effects[1].min()
    assert not explanation.effects[2].any()
    assert not explanation.effects[0][:, :4].any()  # far from the rectangle
    assert explanation.matches[2].logit == 1


def test_each_step_is_one_run_and_no_run_is_ahead() -> None:
    runs = []

    def answer(hidden: Image.Image) -> np.ndarray:
        runs.append(hidden)
        return np.array([np.asarray(hidden).mean()], np.float32)

    scorer = scorer_of(answer, ["bright"])
    steps = explain_in_steps(Image.open(STAR).convert("RGB"), scorer)
    seen = []
    for step in steps:
        seen.append(step)
        assert len(runs) == step.done
    assert [step.done for step in seen] == list(range(1, 43))
    assert {step.total for step in seen} == {42}
    assert [step.explanation is not None for step in seen] == [False] * 41 + [True]
    runs.clear()
    steps = explain_in_steps(Image.open(STAR).convert("RGB"), scorer)
    for _ in range(3):
        next(steps)
    steps.close()
    assert len(runs) == 3


def test_logits_are_those_of_classify_and_texts_do_not_depend_on_each_other() -> None:
    model = siglip_onnx.load("demo")
    image = model.vision.reader.read(STAR).rgb
    texts = ["a red star", "卵が六つ"]
    both = explain(image, score_with_model(model, texts))
    assert both.matches == model.classify(STAR, texts)
    for number, text in enumerate(texts):
        alone = explain(image, score_with_model(model, [text]))
        np.testing.assert_array_equal(alone.effects[0], both.effects[number])


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (17, 9)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    model = siglip_onnx.load("demo")
    explanation = explain(Image.new("RGB", size, "red"), score_with_model(model, ["red"]))
    assert np.isfinite(explanation.effects).all()
    assert Image.open(io.BytesIO(draw_explanation(Image.new("RGB", size), explanation))).width > 0


def test_drawing_shows_the_best_of_many_texts(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(200)]
    (tmp_path / "texts").write_text("\n".join([*texts, "a red star"]))
    result = run("explain", STAR, "--texts-file", tmp_path / "texts", "-o", tmp_path / "where.png")
    assert result.exit_code == 0, result.stderr
    assert "shows the 24 texts of the highest logits, of 201" in result.stderr
    with Image.open(tmp_path / "where.png") as image:
        assert (image.width, image.height) == (3 * 650, 8 * 700)


def test_drawing_shows_the_best_texts_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "MAX_PANELS", 2)
    rng = np.random.default_rng(0)
    matches = match_texts(rng.normal(size=5), [f"text {number}" for number in range(5)])
    effects = rng.normal(size=(5, GRID, GRID)).astype(np.float32)
    worst = sorted(match.logit for match in matches)[:3]
    best = [number for number, match in enumerate(matches) if match.logit not in worst]
    few = Explanation([matches[number] for number in best], effects[best], 42)
    image = Image.open(STAR).convert("RGB")
    assert draw_explanation(image, Explanation(matches, effects, 42)) == draw_explanation(image, few)


def test_command(tmp_path: Path) -> None:
    result = run("explain", STAR, "--text", "a red star", "--text", "赤い星", "-o", tmp_path / "where.png", "--json")
    document = json.loads(result.stdout)
    assert document["method"] == "occlusion by blurred windows"
    star, japanese = document["texts"]
    assert (star["text"], japanese["text"]) == ("a red star", "赤い星")
    effects = np.array(star["effects"])
    assert effects.shape == (GRID, GRID)
    row, column = np.unravel_index(effects.argmax(), effects.shape)
    assert star["strongest"] == {"x": (column + 0.5) / GRID, "y": (row + 0.5) / GRID}
    with Image.open(tmp_path / "where.png") as image:
        assert image.width > 2 * 640
    table = run("explain", STAR, "--text", "a red star").stdout
    assert "raised by" in table
    assert_error(run("explain", STAR), 2, "There are no texts to explain")
    assert_error(run("explain", tmp_path / "missing.png", "--text", "a"), 1, "missing.png")
    for image, kind in (("http://images.example/a.png", "a URL"), ("-", "stdin")):
        assert_error(run("explain", image, "--text", "a"), 2, f"{image} is {kind}; explain takes a file")
    assert_error(run("explain", STAR, "--text", "a", "-o", tmp_path / "none" / "x.png"), 1, "cannot be written")
    assert_error(run("explain", STAR, "--text", "a", "-o", tmp_path / "x.jpg"), 2, "the drawing is a PNG")


def test_drawings_and_thumbnails_take_no_pixels_of_the_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 88 megapixels took 850 MB, since all its pixels were passed on and copied."""
    sizes = []

    def recorded(pool: DecoderPool, source: ImageSource, fit: Fit | None = None) -> DecodedImage:
        decoded = read(pool, source, fit)
        sizes.append((decoded.size, decoded.rgb.size))
        return decoded

    read = DecoderPool.read
    monkeypatch.setattr(DecoderPool, "read", recorded)
    image = Image.open(STAR).convert("RGB").resize((2000, 1500))
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "large.png")
    page = render_gallery("", "", [Group("", [Tile(str(tmp_path / "images" / "large.png"), "")])])
    assert page.count("data:image/jpeg;base64,") == 1
    result = run("explain", tmp_path / "images" / "large.png", "--text", "a red star", "-o", tmp_path / "where.png")
    assert result.exit_code == 0, result.stderr
    demo = siglip_onnx.load("demo").vision.preprocess.fit(image).size
    assert sizes == [((2000, 1500), size) for size in ((960, 720), demo, (640, 480))]
    with Image.open(tmp_path / "where.png") as drawing:
        assert drawing.width == 650


def test_labels_of_a_large_classifier_are_found_in_linear_time() -> None:
    num_compared = 0

    class Label(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal num_compared
            num_compared += 1
            return str(self) == other

    labels = [Label(number) for number in range(2_000)]
    facts = SimpleNamespace(problem_type="")
    classifier: Any = SimpleNamespace(labels=labels, facts=facts, model_name="x", fit=None, run=None)
    assert list(score_with_classifier(classifier).columns) == list(range(2_000))
    chosen = [Label(number) for number in range(1_999, -1, -1)]
    assert list(score_with_classifier(classifier, chosen).columns) == list(range(1_999, -1, -1))
    assert num_compared <= 10 * len(labels)


def test_compiled_classifiers(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from siglip_onnx.classifier import Classifier

    (tmp_path / "labels.txt").write_text("a red star\nsix eggs")
    assert run("compile", "demo", "--labels", tmp_path / "labels.txt", "-o", tmp_path / "x.onnx").exit_code == 0
    model, classifier = siglip_onnx.load("demo"), Classifier(tmp_path / "x.onnx")
    image = model.vision.reader.read(STAR).rgb
    texts = ["a red star", "six eggs"]
    expected = explain(image, score_with_model(model, texts))
    actual = explain(image, score_with_classifier(classifier, workers=2))
    np.testing.assert_array_equal(actual.effects, expected.effects)
    assert [match.text for match in actual.matches] == texts
    document = json.loads(run("explain", STAR, "--model", tmp_path / "x.onnx", "--text", "six eggs", "--json").stdout)
    assert [text["text"] for text in document["texts"]] == ["six eggs"]
    assert document["texts"][0]["logit"] == pytest.approx(expected.matches[1].logit)
    result = run("explain", STAR, "--model", tmp_path / "x.onnx", "--text", "a cat")
    assert_error(result, 2, "has no label 'a cat'; it has a red star, six eggs")
    result = run("explain", STAR, "--model", tmp_path / "x.onnx", "--template", "a {}")
    assert_error(result, 2, "remove --template")
