"""Malformed, oversized and ambiguous requests; nothing of a request reaches the disk, the log, or other clients."""

import base64
import json
import logging
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.images import encode
from support.web_server import STAR, client_of, error_of, in_base64

import siglip_onnx
from siglip_onnx.model import SigLIP
from siglip_onnx.options import ImageLimits
from siglip_onnx.session import LazySession
from siglip_onnx.web.settings import Limits, Settings

TEXTS = ["a red star", "赤い星", "six eggs"]
ID = {"id": "x"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"texts": ["a"]}, 422, "invalid_request"),
        ({"images": None, "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [], "texts": ["a"]}, 422, "limit_exceeded"),
        ({"images": [ID] * 33, "texts": ["a"]}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": []}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": ["a"] * 257}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": [""]}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": ["a" * 4097]}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": "a"}, 422, "invalid_request"),
        ({"images": [ID], "texts": [1]}, 422, "invalid_request"),
        ({"images": [ID], "texts": ["a"], "templates": "{}"}, 422, "invalid_request"),
        ({"images": [{}], "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [{"id": "x", "url": "y"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [{"base64": "%%%"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [{"base64": "AAAA"}], "texts": ["a"]}, 422, "unsupported"),
        ({"images": [in_base64(STAR[: len(STAR) // 2])], "texts": ["a"]}, 422, "truncated"),
        ({"images": [in_base64(STAR)], "texts": ["a"], "template": "photo"}, 422, "invalid_text"),
        ({"images": [in_base64(STAR)], "texts": ["a"], "template": []}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": ["a"] * 33, "template": [f"{{}} {n}" for n in range(16)]}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": ["a" * 1000] * 2, "template": "{}" * 600}, 422, "limit_exceeded"),
        ({f"key {n}": 0 for n in range(300_000)}, 422, "limit_exceeded"),
        ([], 422, "invalid_request"),
        ({"images": [ID], "texts": ["a"], "models": ["m"] * 65}, 422, "limit_exceeded"),
        ({"images": [ID], "texts": ["a"], "strict": "yes"}, 422, "invalid_request"),
        ({"images": [{"url": "data:image/png"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [{"base64": "A"}], "texts": ["a"]}, 422, "invalid_request"),
        ({"images": [ID | {f"key {n}": 0 for n in range(1000)}], "texts": ["a"]}, 422, "invalid_request"),
    ],
)  # fmt: skip
def test_invalid_json_requests(client: TestClient, body: Any, status: int, code: str) -> None:
    error_of(client.post("/v1/classify", json=body), status, code)


@pytest.mark.parametrize("word", ["image", "picture"])
@pytest.mark.parametrize("entry", [{}, {"base64": "%%%"}, {"base64": "AAAA"}])
def test_error_has_the_index_of_the_image(client: TestClient, word: str, entry: dict[str, str]) -> None:
    body = {f"{word}s": [in_base64(STAR), entry], "texts": ["a"], "strict": True}
    answer = client.post("/v1/classify", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error[word]) == (422, 1)
    assert {"image", "picture"} & set(error) == {word}


@pytest.mark.parametrize(
    "options",
    [
        {"json": {"images": [ID], "pictures": [ID], "texts": ["a"]}},
        {"json": {"images": [], "pictures": [], "texts": ["a"]}},
        {"files": [("images", STAR), ("pictures", STAR)], "data": {"texts": "a"}},
        {"files": {"images": STAR}, "data": {"texts": "a", "picture_ids": "x"}},
        {"files": {"pictures": STAR}, "data": {"texts": "a", "image_ids": "x"}},
    ],
)
def test_requests_with_both_spellings_are_refused(client: TestClient, options: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/classify", **options), 422, "invalid_request")
    assert "use images and image_ids only" in error["message"]


PRIVATE = "xyzzy"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("classify", {"images": [ID], "texts": ["a"], PRIVATE: PRIVATE}),
        ("classify", {"images": [ID | {PRIVATE: PRIVATE}], "texts": ["a"]}),
        ("classify", {"images": [{"base64": PRIVATE + "!"}], "texts": ["a"]}),
        ("classify", {"images": [{"id": PRIVATE}], "texts": ["a"]}),
        ("classify", {"images": [{"url": f"ftp://{PRIVATE}/"}], "texts": ["a"]}),
        ("classify", {"images": [{"url": f"data:{PRIVATE}"}], "texts": ["a"]}),
        ("classify", {"images": [in_base64(PRIVATE.encode())], "texts": ["a"]}),
        ("classify", {"images": PRIVATE, "texts": ["a"]}),
        ("classify", {"images": [in_base64(STAR)], "texts": [PRIVATE], "template": PRIVATE}),
        ("embed/texts", {"texts": [PRIVATE], "template": PRIVATE}),
        ("embed/texts", {"texts": [PRIVATE * 600], "template": "{}" * 2000}),
        ("embed/texts", {"texts": [PRIVATE * 1000]}),
        ("embed/texts", {"texts": ["a"], "models": [PRIVATE]}),
        ("embeddings", {"input": "a", "model": PRIVATE}),
        ("embeddings", {"input": {"type": PRIVATE, PRIVATE: PRIVATE}, "model": "demo"}),
        ("embeddings", {"input": "a", "model": "demo", "encoding_format": PRIVATE}),
    ],
)
def test_errors_repeat_nothing_of_the_body(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code in (404, 422), answer.text
    assert PRIVATE not in answer.text
    assert answer.json()["error"]["message"]


def test_other_malformed_requests(client: TestClient) -> None:
    json_type = {"content-type": "application/json"}
    error_of(client.post("/v1/classify", content=b"{", headers=json_type), 400, "bad_request")
    lone_surrogate = b'{"images": [{"id": "x"}], "texts": ["\\ud800"]}'
    assert client.post("/v1/classify", content=lone_surrogate, headers=json_type).status_code in (400, 422)
    # Another site's HTML form cannot send JSON, in browsers without an Origin header either.
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        form = client.post("/v1/classify", content=b"{}", headers={"content-type": content_type})
        error_of(form, 415, "unsupported_media_type")
    error_of(client.post("/v1/classify", data={"other": "x"}, files={"images": STAR}), 422, "invalid_request")
    error_of(client.post("/v1/classify", files=[("images", STAR)] * 33, data={"texts": "a"}), 422, "limit_exceeded")
    error_of(client.post("/v1/classify", files={"images": STAR}, data={"texts": "a" * 20_000}), 422, "limit_exceeded")
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        headers = {"content-type": content_type}
        error_of(client.post("/v1/classify", content=b"--y\r\n", headers=headers), 400, "bad_request")
    fields = {"texts": "a", "urls": "", "strict": "true"}
    empty_url = client.post("/v1/classify", files={"images": STAR}, data=fields)
    assert error_of(empty_url, 422, "url_refused")["image"] == 1
    error_of(client.get("/v1/other"), 404, "not_found")
    error_of(client.get("/v1/classify"), 405, "method_not_allowed")
    error_of(client.get("/static/../../app.py"), 404, "not_found")
    error_of(client.get("/samples/%2e%2e/bundle/manifest.json"), 404, "not_found")


@pytest.mark.parametrize("cut", ["--parts--", "--", "\r\n--parts--", "star"])
def test_form_that_is_cut_short_is_refused(client: TestClient, cut: str) -> None:
    part = '--parts\r\nContent-Disposition: form-data; name="texts"\r\n\r\n%s\r\n'
    body = part % "egg" + part % "star" + "--parts--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=parts"}
    assert client.post("/v1/embed/texts", content=body, headers=headers).status_code == 200
    error_of(client.post("/v1/embed/texts", content=body[: body.rindex(cut)], headers=headers), 400, "bad_request")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"models": ["m" * 20_000]}, "limit_exceeded"),
        ({"image_ids": [""] * 2000}, "limit_exceeded"),
        ({"a key": "x"}, "invalid_request"),
    ],
)
def test_form_fields_are_bounded(client: TestClient, fields: dict[str, Any], code: str) -> None:
    error_of(client.post("/v1/classify", files={"images": STAR}, data={"texts": "a"} | fields), 422, code)


@pytest.mark.parametrize("path", ["/static/%00", "/static/%ed%a0%80", "/samples/" + "a" * 5000, "/%ff", "/v1/a key"])
def test_malformed_paths_are_not_found(client: TestClient, path: str) -> None:
    error_of(client.get(path), 404, "not_found")


def test_model_name_with_a_lone_surrogate_is_escaped(model: SigLIP) -> None:
    manifest = replace(model.bundle.manifest, model_name="demo \ud800")
    named = SigLIP(replace(model.bundle, manifest=manifest))
    with client_of([named]) as client:
        assert client.get("/v1/models").json()["models"][0]["name"] == "demo \ud800"
        error = error_of(client.post("/v1/embed/texts", json={"texts": ["a"], "models": ["m"]}), 422, "unknown_model")
        assert r"demo \ud800" in error["message"]  # printable


@pytest.mark.parametrize(
    "lengths",
    [
        [("content-length", "0"), ("transfer-encoding", "chunked")],
        [("content-length", "2"), ("content-length", "2")],
        [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        [("content-length", "-1")],
        [("content-length", "2, 2")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/healthz", "/nothing"])
def test_ambiguous_lengths_are_refused(client: TestClient, lengths: list[tuple[str, str]], path: str) -> None:
    request = client.build_request("POST", path, headers=lengths)
    request.stream = httpx2.ByteStream(b"{}")
    error_of(client.send(request), 400, "bad_request")


def test_large_bodies_and_images_are_refused(model: SigLIP) -> None:
    limits = Limits(body_bytes=100_000, image=ImageLimits(max_pixels=10_000, max_side=200, max_bytes=50_000))
    with client_of([model], Settings(limits=limits)) as client:
        error_of(client.post("/v1/classify", content=b"x" * 100_001), 413, "body_too_large")

        def stream() -> Iterator[bytes]:
            for _ in range(1000):
                yield b"x" * 1000

        error_of(client.post("/v1/classify", content=stream()), 413, "body_too_large")
        error_of(client.post("/v1/embed/images", files={"images": STAR}), 422, "too_large")  # 256 x 256
        error_of(client.post("/v1/embed/images", files={"images": b"x" * 50_001}), 422, "too_large")
        assert client.get("/metrics").text.count("siglip_queue_size 0") == 1


def test_mutated_requests_are_answered_or_refused(client: TestClient) -> None:
    """With a fixed seed; SIGLIP_ONNX_FUZZ sets the number of requests."""
    rng = random.Random(6)
    form = client.build_request("POST", "/", files={"images": STAR[:3000]}, data={"texts": TEXTS})
    document = json.dumps({"images": [in_base64(STAR[:300])], "texts": TEXTS, "template": "{}"}).encode()
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


def test_nothing_is_written_to_disk(client: TestClient) -> None:
    """Not even parts of a form larger than 1 MB, which the parser would spool by default."""
    large = encode(Image.new("RGB", (1500, 1500)), "BMP")
    written: list[Any] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        creates = event in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.mkdir", "os.rename")
        if watching and (creates or (event == "open" and (arguments[2] or 0) & writing)):
            written.append(arguments[0])

    watching = True
    sys.addaudithook(audit)
    answer = client.post("/v1/classify", files={"images": large}, data={"texts": ["a", "b"]})
    Path(os.devnull).write_bytes(b"")  # proves that the hook sees writes
    watching = False
    assert answer.status_code == 200
    assert len(large) > 6_000_000
    assert written == [os.devnull]


def test_nothing_of_an_image_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "5EC12E7" * 30
    for data in (secret.encode(), STAR[:2000] + secret.encode(), STAR + secret.encode()):
        answers = [
            client.post("/v1/classify", files={"images": (secret, data)}, data={"texts": "a", secret: secret}),
            client.post("/v1/classify", json={"images": [in_base64(data)], "texts": ["a"]}),
            client.post("/v1/classify", json={"images": [{"base64": data.decode("latin-1")}], "texts": ["a"]}),
            client.post("/v1/classify", json={"images": in_base64(data), "texts": ["a"]}),
        ]
    output = caplog.text + "".join(answer.text for answer in answers)
    assert secret not in output
    assert base64.b64encode(secret.encode()).decode()[8:40] not in output


def test_errors_of_a_model_are_logged_and_hidden_from_clients(
    model: SigLIP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise siglip_onnx.BundleError("/home/somebody/model is damaged")

    with client_of([model]) as client:
        monkeypatch.setattr(LazySession, "embed", failing)
        answer = client.post("/v1/classify", json={"images": [in_base64(STAR)], "texts": ["a text not cached yet"]})
        assert "somebody" not in error_of(answer, 500, "model_error")["message"]
        assert "/home/somebody/model is damaged" in caplog.text


@pytest.mark.parametrize("path", ["/", "/static/style.css", "/samples/red_star.png"])
@pytest.mark.parametrize("ranges", ["bytes=0-1", "bytes=9999999-", "bytes=x", "bytes=" + "0-1," * 50 + "0-1"])
def test_files_are_sent_whole_whatever_range_is_asked_for(client: TestClient, path: str, ranges: str) -> None:
    reply = client.get(path, headers={"Range": ranges})
    assert reply.status_code == 200
    assert reply.content == client.get(path).content
