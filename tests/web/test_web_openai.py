"""``/v1/embeddings`` in OpenAI's form, raw and through OpenAI's client."""

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
from support.web_server import EGGS, STAR, client_of, error_of, running

from siglip_onnx.model import SigLIP
from siglip_onnx.web.settings import Settings

if TYPE_CHECKING:
    from openai import OpenAI

TEXTS = ["a red star", "赤い星"]
STAR_URL = f"data:image/png;base64,{base64.b64encode(STAR).decode()}"


@pytest.fixture(scope="module")
def openai_client(model: SigLIP) -> Iterator["OpenAI"]:
    openai = pytest.importorskip("openai")
    with (
        running([model], Settings(port=0, api_key="key")) as address,
        openai.OpenAI(base_url=f"{address}v1", api_key="key", max_retries=0) as client,
    ):
        yield client


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_through_the_client(openai_client: "OpenAI", model: SigLIP, encoding: dict[str, Any]) -> None:
    reply = openai_client.embeddings.create(model="demo/int8", input=TEXTS, **encoding)
    vectors = [
        np.frombuffer(base64.b64decode(entry.embedding), "<f4")
        if isinstance(entry.embedding, str)
        else np.float32(entry.embedding)
        for entry in reply.data
    ]
    np.testing.assert_allclose(vectors, model.encode_texts(TEXTS), atol=1e-7)
    assert [entry.index for entry in reply.data] == [0, 1]
    assert reply.model == "demo/int8"
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0


def test_images_through_the_client(openai_client: "OpenAI", model: SigLIP) -> None:
    parts: Any = [image_part(STAR_URL), "a red star", {"type": "text", "text": "赤い星"}]
    reply = openai_client.embeddings.create(model="demo", input=parts)
    star, english, japanese = (np.float32(entry.embedding) for entry in reply.data)
    np.testing.assert_allclose(star, model.encode_images(STAR)[0], atol=1e-7)
    np.testing.assert_allclose([english, japanese], model.encode_texts(TEXTS), atol=1e-7)


def test_models_and_errors_through_the_client(openai_client: "OpenAI") -> None:
    import openai

    assert [each.id for each in openai_client.models.list()] == ["demo/int8"]
    with pytest.raises(openai.NotFoundError, match="use demo/int8") as caught:
        openai_client.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="leave dimensions out"):
        openai_client.embeddings.create(model="demo", input="a", dimensions=8)
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong").embeddings.create(model="demo", input="a")


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("a red star", "text"),
        ({"type": "text", "text": "a red star"}, "text"),
        ({"type": "input_text", "text": "a red star"}, "text"),
        (image_part(STAR_URL), "image"),
        ({"type": "image_url", "image_url": {"url": STAR_URL, "detail": "low"}}, "image"),
        ({"type": "input_image", "image_url": STAR_URL}, "image"),
    ],
)
def test_forms_of_an_entry(client: TestClient, model: SigLIP, entry: Any, kind: str) -> None:
    expected = model.encode_texts(["a red star"]) if kind == "text" else model.encode_images(STAR)
    for entries in (entry, [entry]):
        reply = client.post("/v1/embeddings", json={"input": entries, "model": "demo/int8", "user": "me"}).json()
        np.testing.assert_allclose([reply["data"][0]["embedding"]], expected, atol=1e-7)
        assert [reply["object"], reply["data"][0]["object"]] == ["list", "embedding"]


def test_images_are_fetched_and_stay_in_order(model: SigLIP) -> None:
    internet = FakeInternet({"example.com": [PUBLIC]})
    entries = [image_part("http://example.com/a.png"), "a", image_part(STAR_URL)]
    with (
        serving_in_thread(answering(response(EGGS), response(b"no image")), internet),
        client_of([model], fetcher=internet.fetcher()) as client,
    ):
        data = client.post("/v1/embeddings", json={"input": entries, "model": "demo"}).json()["data"]
        eggs, text, star = (np.float32(entry["embedding"]) for entry in data)
        np.testing.assert_allclose([eggs, star], model.encode_images([EGGS, STAR]), atol=1e-7)
        np.testing.assert_allclose([text], model.encode_texts(["a"]), atol=1e-7)
        failed = client.post("/v1/embeddings", json={"input": entries, "model": "demo"})
        assert error_of(failed, 422, "unsupported")["image"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": "a"}, 422, "invalid_request"),
        ({"input": [], "model": "demo"}, 422, "invalid_request"),
        ({"input": [1, 2], "model": "demo"}, 422, "invalid_request"),
        ({"input": [[1, 2]], "model": "demo"}, 422, "invalid_request"),
        ({"input": [""], "model": "demo"}, 422, "limit_exceeded"),
        ({"input": ["a"] * 257, "model": "demo"}, 422, "limit_exceeded"),
        ({"input": ["a"] * 1000, "model": "demo"}, 422, "limit_exceeded"),
        ({"input": [image_part("")] * 33, "model": "demo"}, 422, "limit_exceeded"),
        ({"input": [image_part("")], "model": "demo"}, 422, "url_refused"),
        ({"input": [image_part("data:x,") | {f"k{n}": 0 for n in range(9)}], "model": "demo"}, 422, "invalid_request"),
        ({"input": "a", "model": "demo", "other": 1}, 422, "invalid_request"),
        ({"input": "a", "model": "other"}, 404, "model_not_found"),
        ({"input": "a", "model": "demo", "dimensions": 7}, 400, "unsupported_dimensions"),
    ],
)
def test_invalid_requests(client: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    error_of(client.post("/v1/embeddings", json=body), status, code)


def test_tokens_are_refused_with_what_is_expected(client: TestClient) -> None:
    error = error_of(client.post("/v1/embeddings", json={"input": [1], "model": "demo"}), 422, "invalid_request")
    assert "Expected a text" in error["message"]
    error_of(client.post("/v1/embeddings", data={"input": "a"}), 415, "unsupported_media_type")
