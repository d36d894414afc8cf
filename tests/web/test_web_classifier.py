"""Classifiers on the page and in the API: they answer with their own labels."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient
from support.checkpoints import make_classifier
from support.commands import assert_error, run
from support.drawn import NAMES_EN, draw_folders
from support.web_page import NewPage, format_probability, probabilities, rows, texts_of
from support.web_server import EGGS_PATH, STAR_PATH, client_of, error_of, running, started

import siglip_onnx
from siglip_onnx.classifier import Classifier, FineTunedClassifier
from siglip_onnx.cli.web import open_models
from siglip_onnx.explain import explain, score_with_model
from siglip_onnx.export.pipeline import export_bundle

pytestmark = pytest.mark.export
LABELS = ("a cat", "犬", "two dogs")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = {SINGLE: LABELS, MULTI: LABELS, REGRESSION: ("quality",)}


@pytest.fixture(scope="module", params=list(PROBLEMS))
def classifier(
    request: pytest.FixtureRequest, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> FineTunedClassifier:
    return make(small_checkpoint, tmp_path_factory.mktemp("classifier"), request.param)


def make(base: Path, folder: Path, problem_type: str) -> FineTunedClassifier:
    checkpoint = make_classifier(base, folder / "checkpoint", labels=PROBLEMS[problem_type], problem_type=problem_type)
    export_bundle(checkpoint, folder / "bundle", precisions=["fp32"])
    model = siglip_onnx.load(folder / "bundle")
    assert isinstance(model, FineTunedClassifier)
    return model


@pytest.fixture(scope="module")
def labeled(classifier: FineTunedClassifier) -> Iterator[TestClient]:
    with client_of([classifier]) as client:
        yield client


def matches_of(reply: Any) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    matches: list[dict[str, Any]] = reply.json()["results"][0]["models"][0]["matches"]
    return matches


def test_api_answers_with_labels(labeled: TestClient, classifier: FineTunedClassifier) -> None:
    star = STAR_PATH.read_bytes()
    regression = classifier.problem_type == REGRESSION
    nothing = {"probability": None, "relative": None} if regression else {}
    expected = [match._asdict() | nothing for match in classifier.classify(STAR_PATH)]
    embedded = labeled.post("/v1/embed/images", files={"images": star}).json()
    assert embedded["embeddings"][0]["vectors"] == classifier.encode_images(STAR_PATH).tolist()
    for reply in (
        labeled.post("/v1/classify", files={"images": star}),
        labeled.post("/v1/classify", json={"images": [{"id": embedded["images"][0]["id"]}]}),
        labeled.post("/v1/classify", json={"images": [{"id": embedded["images"][0]["id"]}], "texts": []}),
    ):
        assert matches_of(reply) == expected
        assert reply.json()["texts"][0]["text_ms"] == [0.0] * len(expected)
    (described,) = labeled.get("/v1/models").json()["models"]
    facts = (described["kind"], described["labels"], described["problem_type"])
    assert facts == ("classifier", classifier.labels, classifier.problem_type)
    image = {"type": "image_url", "image_url": f"data:image/png;base64,{base64.b64encode(star).decode()}"}
    reply = labeled.post("/v1/embeddings", json={"input": image, "model": described["id"]}).json()
    assert [reply["data"][0]["embedding"]] == classifier.encode_images(STAR_PATH).tolist()
    refused = labeled.post("/v1/embeddings", json={"input": [image, "a"], "model": described["id"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_text_tower")
    for path, body in (
        ("/v1/classify", {"images": [{"id": embedded["images"][0]["id"]}], "texts": ["a"]}),
        ("/v1/classify", {"images": [{"id": embedded["images"][0]["id"]}], "template": "a {}"}),
        ("/v1/embed/texts", {"texts": ["a"]}),
    ):
        reply = labeled.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_request")
        assert "are classifiers" in reply.json()["error"]["message"]


def test_explanations_of_labels(labeled: TestClient, classifier: FineTunedClassifier) -> None:
    star = STAR_PATH.read_bytes()
    image = classifier.vision.reader.read(star).rgb
    for texts in ([], classifier.labels[:1]):
        reply = labeled.post("/v1/explain", files={"images": star}, data={"texts": texts})
        expected = explain(image, score_with_model(classifier, texts)).to_document()
        (document,) = reply.json()["models"]
        assert document == {"model": document["model"]} | expected
        probabilities = [entry["probability"] for entry in expected["texts"]]
        if classifier.problem_type == REGRESSION:
            assert probabilities == [None]
        else:
            matches = classifier.classify(star)
            assert probabilities == [match.probability for match in matches][: len(texts) or None]
    for data, word in (({"texts": "a dog"}, "labels"), ({"template": "a {}"}, "template")):
        refused = labeled.post("/v1/explain", files={"images": star}, data=data)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")
        assert word in refused.json()["error"]["message"]


def test_command_explains_labels(classifier: FineTunedClassifier) -> None:
    command = ("explain", STAR_PATH, "--model", classifier.bundle.path)
    texts = json.loads(run(*command, "--json").stdout)["texts"]
    assert [text["text"] for text in texts] == classifier.labels
    assert run(*command).exit_code == 0
    assert_error(run(*command, "--text", "a dog"), 2, "has no label 'a dog'")
    assert_error(run(*command, "--template", "a {}"), 2, "remove --template")


def test_other_models_need_texts(client: TestClient) -> None:
    assert client.get("/v1/models").json()["models"][0]["kind"] == "dual"
    for body in ({"images": [{"id": "x"}]}, {"images": [{"id": "x"}], "texts": None}):
        reply = client.post("/v1/classify", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_request")
        assert reply.json()["error"]["message"] == "texts: Field required."


def test_models_that_cannot_be_served(small_checkpoint: Path, tmp_path: Path) -> None:
    bundle = make(small_checkpoint, tmp_path, SINGLE).bundle.path
    assert_error(run("web", "--model", bundle, "--model", "demo", "--port", 0), 4, "cannot be served side by side")
    for tower, missing in (("vision", "without a text tower"), ("text", "without a vision tower")):
        export_bundle(small_checkpoint, tmp_path / tower, precisions=["fp32"], tower=tower)
        assert_error(run("web", "--model", tmp_path / tower, "--port", 0), 4, missing)


def test_page_shows_labels(new_page: NewPage, stack: ExitStack, classifier: FineTunedClassifier) -> None:
    address = stack.enter_context(running([classifier]))
    page = new_page(address, await_samples=False)
    expect(page.locator("#texts-heading")).to_have_text("Labels")
    for part in ("#text-form", "#presets", "#options", "#undo", "#clear", "#link", "#explainer"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.locator("#waiting")).to_have_text("Choose an image to see which labels apply.")
    for path in (STAR_PATH, EGGS_PATH):
        page.set_input_files("#file", str(path))
        expect(page.locator("#image")).to_have_attribute("alt", alt_of(path))
        expect(rows(page)).to_have_count(len(classifier.labels))
        expected = sorted(classifier.classify(path), key=lambda match: -match.logit)
        assert texts_of(page) == [match.text for match in expected]
        assert page.locator("td[data-label=Logit]").all_inner_texts() == [f"{match.logit:.2f}" for match in expected]
        if classifier.problem_type == REGRESSION:
            expect(page.locator("#heat-part")).to_be_hidden()
            assert probabilities(page) == []
        else:
            assert probabilities(page) == [format_probability(match.probability) for match in expected]
    assert page.locator("td[data-label=Share], td[data-label=ms]").count() == 0
    assert page.locator("td.actions button").count() == len(classifier.labels)
    page.locator("[data-action=where]").last.click()
    expect(page.locator("#where-map")).to_be_visible()
    expect(page.locator("#where-text")).to_contain_text(f"“{texts_of(page)[-1]}”")
    if classifier.problem_type != REGRESSION:
        page.click("#heat-run")
        cells = page.locator("#heat tbody tr").first.locator("td")
        expect(cells).to_have_count(len(classifier.labels))
        first = [format_probability(match.probability) for match in classifier.classify(STAR_PATH)]
        assert cells.all_inner_texts() == first
    page.click("#language")
    expect(page.locator("#texts-heading")).to_have_text("ラベル")
    assert "#text=" not in page.url


def alt_of(path: Path) -> str:
    return path.stem.replace("_", " ")


@pytest.mark.parametrize("options", [("--none-of-these", "None of these"), ("--multi-label",)], ids=["single", "multi"])
def test_fitted_classifier_is_served(
    options: tuple[str, ...], new_page: NewPage, stack: ExitStack, tmp_path: Path
) -> None:
    """The file of fit, which has no embeddings: its labels in the command, in the API and on the page."""
    image = draw_folders(tmp_path / "set", 2, seed=1)[0]
    out = tmp_path / "classifier.onnx"
    assert run("fit", "demo", tmp_path / "set", *options, "-o", out).exit_code == 0
    labels = [*sorted(NAMES_EN), *options[1:]]
    expected = Classifier(out).classify(image)
    assert [match.text for match in expected] == labels
    _, url = stack.enter_context(started("--model", str(out), cwd=tmp_path))
    reply = httpx2.post(f"{url}v1/classify", files={"images": image.read_bytes()})
    assert matches_of(reply) == [match._asdict() for match in expected]
    page = new_page(url, await_samples=False)
    page.set_input_files("#file", str(image))
    expect(rows(page)).to_have_count(len(labels))
    assert texts_of(page) == [match.text for match in sorted(expected, key=lambda match: -match.logit)]
    with client_of(open_models([str(out)], (), ())) as client:
        (described,) = client.get("/v1/models").json()["models"]
        facts = (described["kind"], described["labels"], described["embedding_dim"], described["size_bytes"])
        assert facts == ("classifier", labels, None, out.stat().st_size)
        uploaded = client.post("/v1/embed/images", files={"images": image.read_bytes()}, data={"vectors": "false"})
        again = client.post("/v1/classify", json={"images": [{"id": uploaded.json()["images"][0]["id"]}]})
        assert matches_of(again) == [match._asdict() for match in expected]
        reply = client.post("/v1/explain", files={"images": image.read_bytes()})
        assert [row["text"] for row in reply.json()["models"][0]["texts"]] == labels
        error_of(client.post("/v1/embed/images", files={"images": image.read_bytes()}), 422, "no_embeddings")
        error_of(client.post("/v1/embeddings", json={"input": "a", "model": described["id"]}), 422, "no_embeddings")
        error_of(client.post("/v1/classify", json={"images": [{"id": "x"}], "texts": ["a"]}), 422, "invalid_request")


def test_replies_for_many_labels_are_bounded(tmp_path: Path) -> None:
    """With 20,000 labels an explanation of all took 35 s, and 32 images gave a reply of 81 MB."""
    labels, out = [f"label {number}" for number in range(300)], tmp_path / "c.onnx"
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    assert run("compile", "demo", "--labels", tmp_path / "labels.txt", "-o", out).exit_code == 0
    image = {"base64": base64.b64encode(STAR_PATH.read_bytes()).decode()}
    with client_of(open_models([str(out)], (), ())) as client:
        reply = client.post("/v1/explain", json={"images": [image]})
        assert "have 300 labels; give at most 256" in error_of(reply, 422, "limit_exceeded")["message"]
        reply = client.post("/v1/explain", json={"images": [image], "texts": labels[:2]})
        assert [row["text"] for row in reply.json()["models"][0]["texts"]] == labels[:2]
        assert len(matches_of(client.post("/v1/classify", json={"images": [image]}))) == 300
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("siglip_onnx.web.answers._MAX_MATCHES", 500)
            error_of(client.post("/v1/classify", json={"images": [image] * 2}), 422, "limit_exceeded")
            assert len(matches_of(client.post("/v1/classify", json={"images": [image]}))) == 300


def test_page_shows_the_best_of_very_many_labels(new_page: NewPage, stack: ExitStack, tmp_path: Path) -> None:
    """The table and the heat map show 1,000: with 20,000 the browser did nothing else for half a minute."""
    (tmp_path / "labels.txt").write_text("\n".join(["six eggs", *map("label {}".format, range(1098)), "a red star"]))
    out = tmp_path / "c.onnx"
    assert run("compile", "demo", "--labels", tmp_path / "labels.txt", "-o", out).exit_code == 0
    page = new_page(stack.enter_context(running(open_models([str(out)], (), ()))), await_samples=False)
    expected = sorted(Classifier(out).classify(STAR_PATH), key=lambda match: -match.logit)[:1000]
    page.set_input_files("#file", str(STAR_PATH))
    expect(rows(page)).to_have_count(1000)
    assert texts_of(page) == [match.text for match in expected]
    expect(page.locator("#surplus")).to_have_text("The table shows the first 1000 of 1100 rows. CSV and JSON have all.")
    with page.expect_download() as download:
        page.click("#csv")
    assert len(download.value.path().read_text(encoding="utf-8-sig").splitlines()) == 1 + 1100
    page.click("#heat-run")
    expect(page.locator("#heat td")).to_have_count(1 + 1000)
    shown = page.locator("#heat th[scope=col]").all_inner_texts()
    assert set(shown) == {match.text for match in expected}
    assert page.locator("#heat td.best").evaluate("(cell) => cell.cellIndex - 1") == shown.index(expected[0].text)
    expect(page.locator("#heat-surplus")).to_contain_text("Of 1100 texts, the 1000 that fit any image best")


def test_options_that_a_compiled_classifier_cannot_follow(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    options = ("web", "--model", tmp_path / "x.onnx", "--port", 0)
    for option in (("--variant", "fp32"), ("--fast-decode",)):
        assert_error(run(*options, *option), 2, "leave out --variant, --calibration and --fast-decode")
    assert_error(run(*options), 4, "x.onnx")
