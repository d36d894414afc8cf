"""The HTTP API: the library's answers, cached embeddings, fetched URLs, OpenAPI, metrics."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
from support.images import encode
from support.web_server import EGGS, STAR, client_of, error_of, in_base64, wait_until_ready

import siglip_onnx
from siglip_onnx.head import CALIBRATION_FORMAT
from siglip_onnx.model import SigLIP
from siglip_onnx.session import LazySession
from siglip_onnx.web.errors import JsonReply
from siglip_onnx.web.settings import Limits, Settings

TEXTS = ["a red star", "赤い星", "six eggs"]


def test_refused_methods_name_those_that_are_allowed(client: TestClient) -> None:
    for method in ("GET", "HEAD", "PUT"):
        refused = client.request(method, "/v1/classify")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_models_are_described_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20,000 labels, the reply took 8 ms of the event loop each time."""
    wait_until_ready(client)
    first = client.get("/v1/models")
    assert first.headers["content-type"] == "application/json"
    monkeypatch.delattr(JsonReply, "render")
    monkeypatch.delattr(JSONResponse, "render")
    assert client.get("/v1/models").content == first.content


@pytest.mark.parametrize("word", ["image", "picture"])
def test_classify_returns_the_matches_of_the_library(client: TestClient, model: SigLIP, word: str) -> None:
    expected = [[match._asdict() for match in model.classify(data, TEXTS)] for data in (STAR, EGGS)]
    body = {f"{word}s": [in_base64(STAR), in_base64(EGGS)], "texts": TEXTS}
    by_json = client.post("/v1/classify", json=body).json()
    files = [(f"{word}s", ("a.png", STAR)), (f"{word}s", ("b.png", EGGS))]
    by_form = client.post("/v1/classify", data={"texts": TEXTS}, files=files).json()
    for reply in (by_json, by_form):
        assert [list(result) for result in reply["results"]] == [[word, "models"]] * 2
        assert [result["models"][0]["matches"] for result in reply["results"]] == expected
        assert [result[word]["width"] for result in reply["results"]] == [256, 256]
        assert [result["models"][0]["model"] for result in reply["results"]] == ["demo/int8"] * 2
    assert len(by_json["texts"][0]["text_ms"]) == len(TEXTS)


def test_matches_of_a_calibrated_model(tmp_path: Path) -> None:
    document = {"format": CALIBRATION_FORMAT, "model": "demo", "variant": "int8", "scale": 0.5, "bias": -1.0,
                "texts": {"赤い星": 2.0}, "spaces": siglip_onnx.load("demo").bundle.manifest.spaces}  # fmt: skip
    (tmp_path / "calibration.json").write_text(json.dumps(document))
    model = siglip_onnx.load("demo", calibration=tmp_path / "calibration.json")
    with client_of([model]) as client:
        body = client.post("/v1/classify", json={"images": [in_base64(STAR)], "texts": TEXTS}).json()
    matches = body["results"][0]["models"][0]["matches"]
    assert matches == [match._asdict() for match in model.classify(STAR, TEXTS)]
    assert matches[1]["logit"] - matches[0]["logit"] > 2


def test_transparent_images_are_shown_on_white(client: TestClient, model: SigLIP) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    body = {"images": [in_base64(encode(clear)), in_base64(encode(Image.new("RGB", (40, 40), "white")))]}
    clear_result, white_result = client.post("/v1/classify", json=body | {"texts": TEXTS}).json()["results"]
    expected = [match._asdict() for match in model.classify(clear, TEXTS)]
    assert clear_result["models"][0]["matches"] == white_result["models"][0]["matches"] == expected


@pytest.mark.parametrize("word", ["image", "picture"])
def test_embeddings_are_those_of_the_library(client: TestClient, model: SigLIP, word: str) -> None:
    reply = client.post("/v1/embed/images", json={f"{word}s": [in_base64(STAR)]}).json()
    assert list(reply) == [f"{word}s", "embeddings"]
    np.testing.assert_array_equal(np.float32(reply["embeddings"][0]["vectors"]), model.encode_images(STAR))
    assert reply["embeddings"][0]["embedding_space"] == model.embedding_space
    body = {"texts": TEXTS, "template": ["{}", "a photo of {}"]}
    reply = client.post("/v1/embed/texts", json=body).json()
    expected = model.encode_labels(TEXTS, template=["{}", "a photo of {}"])
    np.testing.assert_allclose(reply["embeddings"][0]["vectors"], expected, atol=1e-7)


@pytest.mark.parametrize("word", ["image", "picture"])
def test_images_and_texts_are_embedded_once(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    embed = LazySession.embed

    def counted(self: LazySession, inputs: Any) -> Any:
        runs.append(self._path.name.split("_")[0])
        return embed(self, inputs)

    with client_of([siglip_onnx.load("demo")]) as client:
        wait_until_ready(client)
        monkeypatch.setattr(LazySession, "embed", counted)
        first = client.post("/v1/embed/images", json={f"{word}s": [in_base64(STAR)], "vectors": False}).json()
        assert first["embeddings"][0]["vectors"] is None
        image_id = first[f"{word}s"][0]["id"]
        for text in ("a star", "a moon"):
            body = {f"{word}s": [{"id": image_id}], "texts": ["a star", text]}
            reply = client.post("/v1/classify", json=body).json()
        assert runs == ["vision", "text", "text"]
        assert reply["results"][0][word]["decode_ms"] == 0
        assert reply["texts"][0]["text_ms"][0] == 0 < reply["texts"][0]["text_ms"][1]
        by_form = client.post("/v1/classify", files=[("texts", (None, "a star")), (f"{word}_ids", (None, image_id))])
        assert by_form.json()["results"][0][word]["id"] == image_id
        repeated = client.post("/v1/embed/images", files={f"{word}s": STAR}).json()
        assert repeated[f"{word}s"][0]["id"] == image_id
        assert runs.count("vision") == 1


def test_image_ids_are_secret_and_expire(model: SigLIP) -> None:
    settings = Settings(limits=Limits(cached_images=1))
    with client_of([model], settings) as small, client_of([model]) as other:
        ids = [
            client.post("/v1/embed/images", files={"images": STAR}).json()["images"][0]["id"]
            for client in (small, other)
        ]
        assert ids[0] != ids[1]  # not a plain digest, by which others could recognize the image
        small.post("/v1/embed/images", files={"images": EGGS})
        for word in ("image", "picture"):
            answer = small.post("/v1/classify", json={f"{word}s": [{"id": ids[0]}], "texts": ["a"]})
            assert error_of(answer, 404, f"unknown_{word}")[word] == 0


@pytest.mark.export
def test_variants_answer_side_by_side(small_bundle: Path) -> None:
    models = [siglip_onnx.load(small_bundle, variant=variant) for variant in ("int8", "fp32", "int8")]
    with client_of(models) as client:
        served = client.get("/v1/models").json()["models"]
        assert [entry["variant"] for entry in served] == ["int8", "fp32", "int8"]
        assert len({entry["id"] for entry in served}) == 3
        body = {"images": [in_base64(STAR)], "texts": ["cat", "犬"]}
        (result,) = client.post("/v1/classify", json=body).json()["results"]
        for answer, model in zip(result["models"], models, strict=True):
            assert answer["matches"] == [match._asdict() for match in model.classify(STAR, ["cat", "犬"])]
        selected = [served[1]["id"]]
        (result,) = client.post("/v1/classify", json=body | {"models": selected}).json()["results"]
        assert [answer["model"] for answer in result["models"]] == selected
        error_of(client.post("/v1/classify", json=body | {"models": ["other"]}), 422, "unknown_model")


def test_exif_orientation_is_respected(client: TestClient) -> None:
    upright = Image.open(io.BytesIO(STAR)).convert("RGB").resize((120, 80))
    rotated = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    files = [("images", encode(upright)), ("images", encode(rotated, exif=exif))]
    results = client.post("/v1/classify", files=files, data={"texts": ["a red star"]}).json()["results"]
    assert results[0]["models"][0]["matches"] == results[1]["models"][0]["matches"]
    assert [(result["image"]["width"], result["image"]["height"]) for result in results] == [(120, 80)] * 2


def spellings_of(data: bytes) -> list[dict[str, str]]:
    """Return the forms in which an image may come in JSON."""
    plain = base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()
    url_safe = base64.urlsafe_b64encode(data).decode()
    return [
        {"base64": plain},
        {"base64": lines},
        {"base64": lines.replace("\n", "\r\n")},
        {"base64": url_safe},
        {"base64": url_safe.rstrip("=")},
        {"base64": f"data:image/png;base64,{plain}"},
        {"url": f"data:image/png;base64,{plain}"},
        {"url": f"DATA:image/png;name=a.png;BASE64,{quote(plain)}"},
        {"url": f"data:,{quote(data)}"},
    ]


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_every_spelling_of_base64_and_of_data_urls(client: TestClient, cut: int) -> None:
    data = STAR + bytes(cut)  # behind the end of the image, so that every length of padding occurs
    entries = spellings_of(data)
    assert any(mark in entries[3]["base64"] for mark in "-_")
    reply = client.post("/v1/embed/images", json={"images": entries, "vectors": False, "strict": True}).json()
    assert len({image["id"] for image in reply["images"]}) == 1
    for entry in entries[-3:]:
        assert client.post("/v1/fetch", json=entry).content == data
    by_form = client.post("/v1/embed/images", files=[("urls", (None, entry["url"])) for entry in entries[-3:]])
    assert [image["id"] for image in by_form.json()["images"]] == [reply["images"][0]["id"]] * 3


def test_data_urls_of_many_escapes_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/fetch", json={"url": "data:," + "%41" * 600_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "limit_exceeded")


def test_an_unreadable_image_is_an_entry_of_its_own(client: TestClient, model: SigLIP) -> None:
    bad = [in_base64(b"no image"), {"id": "unknown"}, {"base64": "%"}, {"url": "data:x"}]
    codes = ["unsupported", "unknown_image", "invalid_request", "invalid_request"]
    body: dict[str, Any] = {"images": [*bad, in_base64(STAR)]}
    results = client.post("/v1/classify", json=body | {"texts": TEXTS}).json()["results"]
    assert [result.get("error", {}).get("code") for result in results] == [*codes, None]
    assert all((result["image"], result["models"]) == (None, []) for result in results[:-1])
    assert results[-1]["models"][0]["matches"] == [match._asdict() for match in model.classify(STAR, TEXTS)]
    embedded = client.post("/v1/embed/images", json=body).json()
    assert [image.get("error", {}).get("code") for image in embedded["images"]] == [*codes, None]
    *empty, vector = embedded["embeddings"][0]["vectors"]
    assert empty == [None] * 4
    np.testing.assert_array_equal(np.float32([vector]), model.encode_images(STAR))
    assert len(embedded["embeddings"][0]["ms"]) == 5
    for path, more in (("classify", {"texts": TEXTS}), ("embed/images", {})):
        strict = client.post(f"/v1/{path}", json=body | more | {"strict": True})
        assert error_of(strict, 422, "unsupported")["image"] == 0
        none_left = client.post(f"/v1/{path}", json=body | more | {"images": bad})
        assert error_of(none_left, 422, "unsupported")["image"] == 0
    files = [("images", STAR), ("images", b"no image")]
    by_form = client.post("/v1/classify", files=files, data={"texts": "a"}).json()["results"]
    assert [result.get("error", {}).get("code") for result in by_form] == [None, "unsupported"]
    by_strict_form = client.post("/v1/classify", files=files, data={"texts": "a", "strict": "true"})
    assert error_of(by_strict_form, 422, "unsupported")["image"] == 1


def test_truncated_texts_are_named(client: TestClient) -> None:
    texts = ["a star", "a star " * 200]
    body = {"images": [in_base64(STAR)], "texts": texts}
    for template, expected in (("{}", [False, True]), (["{}", "star " * 200 + "{}"], [True, True])):
        for _ in range(2):  # the second time from the cache
            reply = client.post("/v1/classify", json=body | {"template": template}).json()
            assert reply["texts"][0]["truncated"] == expected


@pytest.mark.parametrize("word", ["image", "picture"])
def test_urls_are_fetched(model: SigLIP, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    internet = FakeInternet({"example.com": [PUBLIC], "inside.example": ["10.0.0.1"]})
    body: dict[str, Any] = {f"{word}s": [in_base64(STAR), {"url": "http://example.com/a.png"}], "texts": TEXTS}
    with (
        serving_in_thread(answering(response(STAR), response(STAR), response(b"not an image")), internet),
        client_of([model], fetcher=internet.fetcher()) as client,
    ):
        by_base64, by_url = client.post("/v1/classify", json=body).json()["results"]
        assert by_base64["models"][0]["matches"] == by_url["models"][0]["matches"]
        fetched = client.post("/v1/fetch", json={"url": "http://example.com/a.png"})
        assert fetched.content == STAR
        assert fetched.headers["content-type"] == "application/octet-stream"
        error_of(client.post("/v1/fetch", json={"url": "http://example.com/a.png"}), 422, "unsupported")
        body[f"{word}s"][1] = {"url": "http://inside.example/"}
        assert error_of(client.post("/v1/classify", json=body | {"strict": True}), 422, "url_refused")[word] == 1
        by_base64, by_url = client.post("/v1/classify", json=body).json()["results"]
        assert by_base64["models"][0]["matches"]
        assert (by_url[word], by_url["models"], by_url["error"]["code"]) == (None, [], "url_refused")
        error_of(client.post("/v1/fetch", json={"url": 1}), 422, "invalid_request")
        error_of(client.post("/v1/fetch", content=b"url"), 415, "unsupported_media_type")
    limits = Limits(body_bytes=2 * len(STAR) + 1)
    with (
        serving_in_thread(answering(response(STAR)), internet),
        client_of([model], Settings(limits=limits), fetcher=internet.fetcher()) as client,
    ):
        body[f"{word}s"] = [{"url": f"http://example.com/{number}.png"} for number in range(3)]
        assert error_of(client.post("/v1/classify", json=body | {"strict": True}), 422, "limit_exceeded")[word] == 2
        results = client.post("/v1/classify", json=body).json()["results"]
        assert [result.get("error", {}).get("code") for result in results] == [None, None, "limit_exceeded"]
    with client_of([model], Settings(url_fetch=False), fetcher=internet.fetcher()) as client:
        error_of(client.post("/v1/classify", json=body), 403, "url_fetch_off")
        assert client.get("/v1/models").json()["url_fetch"] is False
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with client_of([model], Settings(), fetcher=internet.fetcher()) as client:
        error_of(client.post("/v1/classify", json=body), 403, "url_fetch_off")
        assert client.get("/v1/models").json()["url_fetch"] is False


def test_models_reply_has_the_names_of_version_0_1_too(client: TestClient) -> None:
    reply = client.get("/v1/models").json()
    (demo,) = reply["models"]
    assert demo["description"] == demo["knows"] != ""
    limits = reply["limits"]
    for name in ("images", "cached_images", "image_bytes", "image_pixels"):
        assert limits[name] == limits[name.replace("image", "picture")] > 0


def test_openapi_describes_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/classify", "/v1/explain", "/v1/embed/images", "/v1/embed/texts", "/v1/embeddings", "/v1/fetch",
        "/v1/models", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    classify = document["paths"]["/v1/classify"]["post"]
    body = classify["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    for content in body.values():
        fields = content["schema"]["properties"]
        assert fields["pictures"]["deprecated"]
        assert "deprecated" not in fields["images"]
    assert classify["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("ClassifyReply")
    assert "4XX" in classify["responses"]
    form = document["paths"]["/v1/explain"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"images", "urls", "texts", "template", "models"}
    for path in ("/docs", "/redoc"):
        error_of(client.get(path), 404, "not_found")


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    wait_until_ready(client)
    client.post("/v1/classify", json={"images": [in_base64(EGGS)], "texts": ["metrics"]})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')
    for line in answer.text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
    for name in (
        'siglip_request_count{route="/v1/classify",status="200"}', 'siglip_request_success{route="/v1/classify"}',
        "siglip_request_queue_duration_count", "siglip_request_decode_duration_count",
        'siglip_request_inference_duration_bucket{tower="vision",le="+Inf"}',
        'siglip_request_inference_duration_count{tower="text"}', "siglip_queue_size 0",
    ):  # fmt: skip
        assert f"\n{name}" in answer.text, name
