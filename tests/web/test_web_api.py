"""The HTTP API: right answers, one form of errors, every limit, nothing on disk and nothing in logs."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from PIL import Image
from starlette.testclient import TestClient
from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
from support.web_server import client_of

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.model import SigLIP
from siglip_onnx.options import ImageLimits
from siglip_onnx.session import LazySession
from siglip_onnx.web.limits import Limits
from siglip_onnx.web.settings import Settings

STAR = (IMAGES_PATH / "red_star.png").read_bytes()
EGGS = (IMAGES_PATH / "six_eggs.png").read_bytes()
TEXTS = ["a red star", "赤い星", "six eggs"]


@pytest.fixture(scope="module")
def model() -> SigLIP:
    return siglip_onnx.load("demo")


@pytest.fixture(scope="module")
def client(model: SigLIP) -> Iterator[TestClient]:
    with client_of([model]) as client:
        yield client


def in_base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Return the error of an answer, which must be in the one form."""
    document = answer.json()
    assert list(document) == ["error"]
    assert (answer.status_code, document["error"]["code"]) == (status, code), document
    assert document["error"]["message"]
    found: dict[str, Any] = document["error"]
    return found


def test_classify_gives_the_librarys_numbers(client: TestClient, model: SigLIP) -> None:
    expected = [[match._asdict() for match in model.classify(data, TEXTS)] for data in (STAR, EGGS)]
    ask = {"pictures": [in_base64(STAR), in_base64(EGGS)], "texts": TEXTS}
    by_json = client.post("/v1/classify", json=ask).json()
    form = {"texts": TEXTS}
    files = [("pictures", ("a.png", STAR)), ("pictures", ("b.png", EGGS))]
    by_form = client.post("/v1/classify", data=form, files=files).json()
    for reply in (by_json, by_form):
        assert [result["models"][0]["matches"] for result in reply["results"]] == expected
        assert [result["picture"]["width"] for result in reply["results"]] == [256, 256]
        assert [result["models"][0]["model"] for result in reply["results"]] == ["demo/int8"] * 2
    assert len(by_json["texts"][0]["text_ms"]) == len(TEXTS)


def test_embeddings_are_the_librarys(client: TestClient, model: SigLIP) -> None:
    reply = client.post("/v1/embed/images", json={"pictures": [in_base64(STAR)]}).json()
    np.testing.assert_array_equal(np.float32(reply["embeddings"][0]["vectors"]), model.encode_images(STAR))
    assert reply["embeddings"][0]["embedding_space"] == model.embedding_space
    ask = {"texts": TEXTS, "template": ["{}", "a photo of {}"]}
    reply = client.post("/v1/embed/texts", json=ask).json()
    expected = model.encode_labels(TEXTS, template=["{}", "a photo of {}"])
    np.testing.assert_allclose(reply["embeddings"][0]["vectors"], expected, atol=1e-7)


def test_a_picture_is_seen_once_and_a_text_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    embed = LazySession.embed

    def counted(self: LazySession, inputs: Any) -> Any:
        runs.append(self._path.name.split("_")[0])
        return embed(self, inputs)

    with client_of([siglip_onnx.load("demo")]) as client:
        while client.get("/readyz").status_code != 200:
            pass
        monkeypatch.setattr(LazySession, "embed", counted)
        first = client.post("/v1/embed/images", json={"pictures": [in_base64(STAR)], "vectors": False}).json()
        assert first["embeddings"][0]["vectors"] is None
        picture = {"id": first["pictures"][0]["id"]}
        for text in ("a star", "a moon"):
            reply = client.post("/v1/classify", json={"pictures": [picture], "texts": ["a star", text]}).json()
        assert runs == ["vision", "text", "text"]
        assert reply["results"][0]["picture"]["decode_ms"] == 0
        assert reply["texts"][0]["text_ms"][0] == 0 < reply["texts"][0]["text_ms"][1]
        again = client.post("/v1/embed/images", files={"pictures": STAR}).json()
        assert again["pictures"][0]["id"] == picture["id"]
        assert runs.count("vision") == 1


def test_ids_tell_nothing_and_are_forgotten(model: SigLIP) -> None:
    settings = Settings(limits=Limits(cached_images=1))
    with client_of([model], settings) as one, client_of([model]) as other:
        ids = [
            asked.post("/v1/embed/images", files={"pictures": STAR}).json()["pictures"][0]["id"]
            for asked in (one, other)
        ]
        assert ids[0] != ids[1]  # no digest of the picture by which others could know it
        one.post("/v1/embed/images", files={"pictures": EGGS})
        answer = one.post("/v1/classify", json={"pictures": [{"id": ids[0]}], "texts": ["a"]})
        assert problem(answer, 404, "unknown_picture")["picture"] == 0


def test_two_variants_answer_side_by_side(small_bundle: Path) -> None:
    models = [siglip_onnx.load(small_bundle, variant=variant) for variant in ("int8", "fp32", "int8")]
    with client_of(models) as client:
        found = client.get("/v1/models").json()["models"]
        assert [one["variant"] for one in found] == ["int8", "fp32", "int8"]
        assert len({one["id"] for one in found}) == 3
        ask = {"pictures": [in_base64(STAR)], "texts": ["cat", "犬"]}
        (result,) = client.post("/v1/classify", json=ask).json()["results"]
        for answer, model in zip(result["models"], models, strict=True):
            assert answer["matches"] == [match._asdict() for match in model.classify(STAR, ["cat", "犬"])]
        chosen = [found[1]["id"]]
        (result,) = client.post("/v1/classify", json=ask | {"models": chosen}).json()["results"]
        assert [answer["model"] for answer in result["models"]] == chosen
        problem(client.post("/v1/classify", json=ask | {"models": ["other"]}), 422, "unknown_model")


def test_exif_orientation_is_respected(client: TestClient) -> None:
    upright = Image.open(io.BytesIO(STAR)).convert("RGB").resize((120, 80))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    files = []
    for picture, options in ((upright, {}), (turned, {"exif": exif})):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        files.append(("pictures", file.getvalue()))
    reply = client.post("/v1/classify", files=files, data={"texts": ["a red star"]}).json()
    upright_match, turned_match = (result["models"][0]["matches"] for result in reply["results"])
    assert upright_match == turned_match
    assert [(result["picture"]["width"], result["picture"]["height"]) for result in reply["results"]] == [(120, 80)] * 2


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        ({"texts": ["a"]}, 422, "invalid_request"),
        ({"pictures": [], "texts": ["a"]}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}] * 33, "texts": ["a"]}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}], "texts": []}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}], "texts": ["a"] * 257}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}], "texts": [""]}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}], "texts": ["a" * 4097]}, 422, "limit_exceeded"),
        ({"pictures": [{"id": "x"}], "texts": "a"}, 422, "invalid_request"),
        ({"pictures": [{"id": "x"}], "texts": [1]}, 422, "invalid_request"),
        ({"pictures": [{"id": "x"}], "texts": ["a"], "templates": "{}"}, 422, "invalid_request"),
        ({"pictures": [{}], "texts": ["a"]}, 422, "invalid_request"),
        ({"pictures": [{"id": "x", "url": "y"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"pictures": [{"base64": "%%%"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"pictures": [{"base64": "AAAA"}], "texts": ["a"]}, 422, "unsupported"),
        ({"pictures": [in_base64(STAR[: len(STAR) // 2])], "texts": ["a"]}, 422, "truncated"),
        ({"pictures": [in_base64(STAR)], "texts": ["a"], "template": "photo"}, 422, "invalid_text"),
        ({"pictures": [in_base64(STAR)], "texts": ["a"], "template": []}, 422, "limit_exceeded"),
        ([], 422, "invalid_request"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_in_one_form(client: TestClient, ask: Any, status: int, code: str) -> None:
    problem(client.post("/v1/classify", json=ask), status, code)


def test_other_malformed_requests(client: TestClient) -> None:
    problem(client.post("/v1/classify", content=b"{", headers={"content-type": "application/json"}), 400, "bad_request")
    lone = b'{"pictures": [{"id": "x"}], "texts": ["\\ud800"]}'
    answer = client.post("/v1/classify", content=lone, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    problem(client.post("/v1/classify", content=b"a", headers={"content-type": "text/plain"}), 415,
            "unsupported_media_type")  # fmt: skip
    problem(client.post("/v1/classify", data={"other": "x"}, files={"pictures": STAR}), 422, "invalid_request")
    problem(client.post("/v1/classify", files=[("pictures", STAR)] * 33, data={"texts": "a"}), 422, "limit_exceeded")
    problem(client.post("/v1/classify", files={"pictures": STAR}, data={"texts": "a" * 20_000}), 422, "limit_exceeded")
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        headers = {"content-type": content_type}
        problem(client.post("/v1/classify", content=b"--y\r\n", headers=headers), 400, "bad_request")
    problem(client.get("/v1/other"), 404, "not_found")
    problem(client.get("/v1/classify"), 405, "method_not_allowed")
    problem(client.get("/static/../../app.py"), 404, "not_found")
    problem(client.get("/samples/%2e%2e/bundle/manifest.json"), 404, "not_found")


def test_large_bodies_and_pictures_are_refused(model: SigLIP) -> None:
    limits = Limits(body_bytes=100_000, image=ImageLimits(max_pixels=10_000, max_side=200, max_bytes=50_000))
    with client_of([model], Settings(limits=limits)) as client:
        problem(client.post("/v1/classify", content=b"x" * 100_001), 413, "body_too_large")

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                yield b"x" * 1000

        problem(client.post("/v1/classify", content=endless()), 413, "body_too_large")
        problem(client.post("/v1/embed/images", files={"pictures": STAR}), 422, "too_large")  # 256 x 256
        problem(client.post("/v1/embed/images", files={"pictures": b"x" * 50_001}), 422, "too_large")
        assert client.get("/metrics").text.count("siglip_queue_size 0") == 1


def test_urls_are_fetched_where_that_is_allowed(model: SigLIP) -> None:
    internet = FakeInternet({"example.com": [PUBLIC], "inside.example": ["10.0.0.1"]})
    with (
        serving_in_thread(answering(response(STAR), response(STAR), response(b"no picture")), internet),
        client_of([model], fetcher=internet.fetcher()) as client,
    ):
        ask = {"pictures": [in_base64(STAR), {"url": "http://example.com/a.png"}], "texts": TEXTS}
        by_base64, by_url = client.post("/v1/classify", json=ask).json()["results"]
        assert by_base64["models"][0]["matches"] == by_url["models"][0]["matches"]
        fetched = client.post("/v1/fetch", json={"url": "http://example.com/a.png"})
        assert fetched.content == STAR
        assert fetched.headers["content-type"] == "application/octet-stream"
        problem(client.post("/v1/fetch", json={"url": "http://example.com/a.png"}), 422, "unsupported")
        ask["pictures"][1] = {"url": "http://inside.example/"}
        assert problem(client.post("/v1/classify", json=ask), 422, "url_refused")["picture"] == 1
        problem(client.post("/v1/fetch", json={"url": 1}), 422, "invalid_request")
        problem(client.post("/v1/fetch", content=b"url"), 415, "unsupported_media_type")
    with (
        serving_in_thread(answering(response(STAR)), internet),
        client_of([model], Settings(limits=Limits(body_bytes=2 * len(STAR) + 1)), fetcher=internet.fetcher()) as client,
    ):
        ask["pictures"] = [{"url": f"http://example.com/{number}.png"} for number in range(3)]
        assert problem(client.post("/v1/classify", json=ask), 422, "limit_exceeded")["picture"] == 2
    with client_of([model], Settings(url_fetch=False), fetcher=internet.fetcher()) as client:
        problem(client.post("/v1/classify", json=ask), 403, "url_fetch_off")
        assert client.get("/v1/models").json()["url_fetch"] is False


def test_nothing_is_written_to_disk(client: TestClient) -> None:
    """Not even parts of a form above the megabyte at which they are usually spooled."""
    large = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large, "BMP")
    opened: list[Any] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        makes = event in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.mkdir", "os.rename")
        if watching and (makes or (event == "open" and (arguments[2] or 0) & writing)):
            opened.append((event, arguments))

    watching = True
    sys.addaudithook(audit)
    answer = client.post("/v1/classify", files={"pictures": large.getvalue()}, data={"texts": TEXTS})
    (Path(os.devnull)).write_bytes(b"")  # the hook sees writing
    watching = False
    assert answer.status_code == 200
    assert len(large.getvalue()) > 6_000_000
    assert [arguments[0] for _, arguments in opened] == [os.devnull]


def test_nothing_of_a_picture_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "5EC12E7" * 30
    for data in (secret.encode(), STAR[:2000] + secret.encode(), STAR + secret.encode()):
        answers = [
            client.post("/v1/classify", files={"pictures": (secret, data)}, data={"texts": "a", secret: secret}),
            client.post("/v1/classify", json={"pictures": [in_base64(data)], "texts": ["a"]}),
            client.post("/v1/classify", json={"pictures": [{"base64": data.decode("latin-1")}], "texts": ["a"]}),
            client.post("/v1/classify", json={"pictures": in_base64(data), "texts": ["a"]}),
        ]
    said = caplog.text + "".join(answer.text for answer in answers)
    assert secret not in said
    assert base64.b64encode(secret.encode()).decode()[8:40] not in said


def test_openapi_documents_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/classify", "/v1/embed/images", "/v1/embed/texts", "/v1/fetch", "/v1/models", "/healthz", "/readyz",
        "/metrics",
    }  # fmt: skip
    classify = document["paths"]["/v1/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert classify["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("ClassifyReply")
    assert "4XX" in classify["responses"]
    for path in ("/docs", "/redoc"):
        problem(client.get(path), 404, "not_found")


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    while client.get("/readyz").status_code != 200:
        pass
    client.post("/v1/classify", json={"pictures": [in_base64(EGGS)], "texts": ["metrics"]})
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


def test_a_model_that_fails_tells_the_log_and_not_the_client(
    model: SigLIP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise siglip_onnx.BundleError("/home/somebody/model is damaged")

    with client_of([model]) as client:
        monkeypatch.setattr(LazySession, "embed", failing)
        answer = client.post("/v1/classify", json={"pictures": [in_base64(STAR)], "texts": ["never asked before"]})
        assert "somebody" not in problem(answer, 500, "model_error")["message"]
        assert "/home/somebody/model is damaged" in caplog.text


def test_mutated_requests_are_refused_or_answered(client: TestClient) -> None:
    """Seeded; more with the variable SIGLIP_ONNX_FUZZ."""
    rng = random.Random(6)
    form = client.build_request("POST", "/", files={"pictures": STAR[:3000]}, data={"texts": TEXTS})
    document = json.dumps({"pictures": [in_base64(STAR[:300])], "texts": TEXTS, "template": "{}"}).encode()
    seeds = [(form.read(), form.headers["content-type"]), (document, "application/json")]
    for _ in range(int(os.environ.get("SIGLIP_ONNX_FUZZ", "400"))):
        body, content_type = rng.choice(seeds)
        mutated = bytearray(body)
        for _ in range(rng.randint(1, 8)):
            position = rng.randrange(len(mutated))
            choice = rng.random()
            if choice < 0.5:
                mutated[position] = rng.randrange(256)
            elif choice < 0.75:
                del mutated[position : position + rng.randint(1, 200)]
            else:
                mutated[position:position] = mutated[: rng.randint(0, 100)]
            mutated = mutated or bytearray(b"x")
        path = rng.choice(["/v1/classify", "/v1/embed/images", "/v1/embed/texts", "/v1/fetch"])
        answer = client.post(path, content=bytes(mutated), headers={"content-type": content_type})
        assert answer.status_code < 500, (path, bytes(mutated))
        if answer.status_code >= 400:
            assert list(answer.json()) == ["error"]
