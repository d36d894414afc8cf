"""Where the evidence for a text lies, in the HTTP API and on the page."""

import asyncio
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient
from support.waiting import wait_until
from support.web_page import NewPage, add, choose, page_of_star
from support.web_server import (
    EGGS_PATH,
    STAR,
    STAR_PATH,
    HeldCalls,
    ask,
    client_of,
    error_of,
    in_base64,
    running,
)

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import BundleError
from siglip_onnx.explain import explain, score_with_model
from siglip_onnx.model import SigLIP
from siglip_onnx.text_tower import TextTower
from siglip_onnx.vision_tower import VisionTower
from siglip_onnx.web.settings import Limits, Settings

LINES = {"Accept": "application/x-ndjson"}
TEXTS = ["red star", "赤い星"]
PAIR_PATH = IMAGES_PATH / "green_square_left_of_pink_heart.png"


def expected_of(model: SigLIP, texts: list[str], template: str = "{}") -> dict[str, Any]:
    image = model.vision.reader.read(STAR).rgb
    return explain(image, score_with_model(model, texts, template)).to_document()


def test_reply_is_the_explanation_of_the_library(client: TestClient, model: SigLIP) -> None:
    body = {"images": [in_base64(STAR)], "texts": TEXTS, "template": "a {} on a light background"}
    for reply in (
        client.post("/v1/explain", json=body),
        client.post("/v1/explain", files={"images": STAR}, data={"texts": TEXTS, "template": body["template"]}),
    ):
        document = reply.json()
        assert (document["image"]["width"], document["image"]["height"]) == (256, 256)
        expected = expected_of(model, TEXTS, "a {} on a light background")
        assert document["models"] == [{"model": "demo/int8"} | expected]


def test_lines_report_each_run(client: TestClient, model: SigLIP) -> None:
    reply = client.post("/v1/explain", json={"images": [in_base64(STAR)], "texts": ["a red star"]}, headers=LINES)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
    assert "content-length" not in reply.headers
    assert reply.headers["x-accel-buffering"] == "no"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    *steps, last = map(json.loads, reply.text.splitlines())
    assert steps == [{"done": number, "total": 42} for number in range(1, 43)]
    assert last["result"]["models"] == [{"model": "demo/int8"} | expected_of(model, ["a red star"])]


@pytest.mark.parametrize("headers", [{}, LINES])
def test_refused_requests_have_their_own_status(client: TestClient, headers: dict[str, str]) -> None:
    star, texts = [in_base64(STAR)], ["a red star"]
    for body, code, image in (
        ({"images": [{"id": "x"}], "texts": texts}, "invalid_request", None),
        ({"images": star * 2, "texts": texts}, "limit_exceeded", None),
        ({"images": [in_base64(STAR[:-200])], "texts": texts}, "truncated", 0),
        ({"images": [{"url": "data:,x"}], "texts": texts}, "unsupported", 0),
        ({"images": star}, "invalid_request", None),
        ({"images": star, "texts": texts, "models": ["other"]}, "unknown_model", None),
    ):
        error = error_of(client.post("/v1/explain", json=body, headers=headers), 422, code)
        assert error.get("image") == image


def test_key_and_queue_hold_for_explanations(model: SigLIP) -> None:
    body = {"images": [in_base64(STAR)], "texts": ["a red star"]}
    settings = Settings(api_key="open", limits=Limits(requests=1))
    with client_of([model], settings) as client:
        error_of(client.post("/v1/explain", json=body), 401, "unauthorized")
        key = {"Authorization": "Bearer open"}
        with client.stream("POST", "/v1/explain", json=body, headers=key | LINES) as reply:
            assert reply.status_code == 200
        metrics = client.get("/metrics", headers=key).text
        assert "siglip_queue_size 0" in metrics
        assert 'siglip_request_success{route="/v1/explain"} 1' in metrics


def test_texts_that_left_the_cache_are_not_embedded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of other clients evict them: all in one turn would let others wait."""
    embed, counts = TextTower.embed, []

    def counted(tower: TextTower, texts: list[str]) -> Any:
        counts.append(len(texts))
        return embed(tower, texts)

    monkeypatch.setattr(TextTower, "embed", counted)
    model = siglip_onnx.load("demo")
    monkeypatch.setattr(model.text._labels, "get", lambda _prompt: None)
    body = {"images": [in_base64(STAR)], "texts": TEXTS}
    with client_of([model]) as client:
        counts.clear()
        document = client.post("/v1/explain", json=body).json()
    assert max(counts) == 1
    assert document["models"] == [{"model": "demo/int8"} | expected_of(model, TEXTS)]


def test_models_explain_one_after_the_other(model: SigLIP) -> None:
    body = {"images": [in_base64(STAR)], "texts": ["a red star"]}
    with client_of([model, siglip_onnx.load("demo", variant="fp32")]) as client:
        reply = client.post("/v1/explain", json=body, headers=LINES)
        *steps, last = map(json.loads, reply.text.splitlines())
        assert [step["done"] for step in steps] == list(range(1, 85))
        assert {step["total"] for step in steps} == {84}
        assert [entry["model"] for entry in last["result"]["models"]] == ["demo/int8", "demo/fp32"]


def test_failure_after_the_first_line_is_the_last_line(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = VisionTower.run, 0

    def failing(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise BundleError("/secret/path is damaged")
        return run(*arguments)

    monkeypatch.setattr(VisionTower, "run", failing)
    body = {"images": [in_base64(STAR)], "texts": ["a red star"]}
    lines = client.post("/v1/explain", json=body, headers=LINES).text.splitlines()
    assert len(lines) == 3
    error = json.loads(lines[-1])["error"]
    assert error["code"] == "model_error"
    assert "secret" not in error["message"]


def hold_runs(monkeypatch: pytest.MonkeyPatch) -> HeldCalls:
    return HeldCalls(monkeypatch, VisionTower, "run")


def test_others_are_answered_between_the_runs_which_end_when_the_client_goes(
    model: SigLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker: a run is held, others queue behind it; after the client has gone no further run starts."""
    body = json.dumps({"images": [in_base64(STAR)], "texts": ["a red star"]}).encode()
    with running([model], Settings(port=0, workers=1)) as address:
        host = urlsplit(address)
        wait_until(lambda: ask(host, "GET", "/readyz").startswith("HTTP/1.1 200"))
        held = hold_runs(monkeypatch)
        with socket.create_connection((host.hostname, host.port)) as client:
            head = f"POST /v1/explain HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            held.turns.release(2)
            wait_until(lambda: held.count == 3)
            texts = json.dumps({"texts": ["a"]})
            answers: list[str] = []
            other = threading.Thread(target=lambda: answers.append(ask(host, "POST", "/v1/embed/texts", texts)))
            other.start()
            wait_until(lambda: "siglip_queue_size 2" in ask(host, "GET", "/metrics"))
            while other.is_alive():
                held.turns.release()
                other.join(1)
            assert answers
            assert answers[0].startswith("HTTP/1.1 200")
            assert held.count < 8
        wait_until(lambda: "siglip_queue_size 0" in ask(host, "GET", "/metrics"))
        held.turns.release(100)
        asyncio.run(asyncio.sleep(0.2))
        assert held.count < 8


STRONGEST = """() => {
    const map = document.getElementById("where-map");
    const { width, height } = map;
    const copy = Object.assign(document.createElement("canvas"), { width, height });
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(map, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    let best = 0;
    for (let at = 0; at < data.length; at += 4) if (data[at] > 128 && data[at + 3] > data[best + 3]) best = at;
    return [((best / 4) % width) / width, Math.floor(best / 4 / width) / height];
}"""


def where(page: Page, text: str) -> Any:
    return page.get_by_role("button", name=f"Where the evidence for “{text}” lies")


def test_page_draws_the_map_over_the_named_object(new_page: NewPage) -> None:
    page = new_page()
    choose(page, PAIR_PATH)
    add(page, "a green square", "a pink heart")
    for text, (left, right) in {"a pink heart": (0.55, 0.95), "a green square": (0.05, 0.45)}.items():
        button = where(page, text)
        expect(button).to_have_attribute("aria-pressed", "false")
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#where-map")).to_be_visible()
        expect(page.locator("#where-text")).to_contain_text(f"“{text}”: hiding a red place lowers the logit")
        expect(page.locator("#where-note")).to_contain_text("the model ran 42 times")
        x, y = page.evaluate(STRONGEST)
        assert left < x < right
        assert 0.35 < y < 0.85
        image, canvas = (page.locator(part).bounding_box() for part in ("#image", "#where-map"))
        assert image == canvas
    expect(where(page, "a pink heart")).to_have_attribute("aria-pressed", "false")
    with page.expect_event("requestfinished", predicate=lambda request: "/v1/" in request.url) as finished:
        where(page, "a pink heart").click()  # is shown again without a request
        expect(page.locator("#where-text")).to_contain_text("a pink heart")
        add(page, "six eggs")
    assert "explain" not in finished.value.url
    where(page, "a pink heart").click()
    expect(page.locator("#where-map")).to_be_hidden()
    expect(page.locator("#where-text")).to_be_empty()
    expect(page.locator("#shown")).not_to_have_class("mapped")
    where(page, "six eggs").click()
    page.click("#where-stop")
    expect(page.locator("#where-part")).to_be_hidden()
    expect(where(page, "six eggs")).to_be_focused()
    where(page, "a pink heart").click()
    choose(page, EGGS_PATH)  # another image has none
    expect(page.locator("#where-map")).to_be_hidden()


def test_cancel_stops_the_work_of_the_server(new_page: NewPage, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of_star(new_page, "a red star")
    held = hold_runs(monkeypatch)
    where(page, "a red star").click()
    held.turns.release(5)
    expect(page.locator("#where-progress")).to_have_attribute("value", "5")
    expect(page.locator("#where-progress")).to_have_attribute("max", "42")
    expect(page.locator("#where-stop")).to_have_text("Cancel")
    page.click("#where-stop")
    expect(page.locator("#where-part")).to_be_hidden()
    expect(where(page, "a red star")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#toast")).not_to_have_class("shown")
    page.wait_for_timeout(300)
    held.turns.release(100)
    page.wait_for_timeout(300)
    assert held.count < 9
    assert page.evaluate("document.activeElement.dataset.action") == "where"


def test_map_on_a_phone_is_in_sight_and_accessible(new_page: NewPage) -> None:
    page = new_page(viewport={"width": 390, "height": 740}, is_mobile=True, has_touch=True)
    choose(page, STAR_PATH)
    add(page, *(f"text {number}" for number in range(6)), "a red star")
    expect(page.locator("#where-map")).to_be_hidden()
    where(page, "a red star").tap()
    expect(page.locator("#where-map")).to_be_visible()
    expect(page.locator("#where-map")).to_be_in_viewport(ratio=0.9)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = axe.run(page).response["violations"]
    assert [each["id"] for each in violations if each["impact"] in ("serious", "critical")] == []
