"""The bounded request queue, alone and under overload."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from support.fake_internet import FakeInternet, response, serving_in_thread
from support.web_server import STAR, client_of, running

import siglip_onnx
from siglip_onnx.text_tower import TextTower
from siglip_onnx.web import fetch, work
from siglip_onnx.web.bodies import read_body
from siglip_onnx.web.errors import RequestError
from siglip_onnx.web.inference import Inference, ModelRegistry
from siglip_onnx.web.metrics import Metrics
from siglip_onnx.web.settings import Limits, Settings
from siglip_onnx.web.work import WorkQueue


async def never() -> None:
    await asyncio.Event().wait()


def test_requests_and_bytes_are_bounded() -> None:
    queue = WorkQueue(Limits(requests=2, pending_bytes=100), 1, Metrics())
    with queue.admit(60):
        with pytest.raises(RequestError) as caught, queue.admit(41):
            pass
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        with queue.admit(40), pytest.raises(RequestError), queue.admit(0):
            pass
    with queue.admit(100) as arrived:
        arrived(10)
        with queue.admit(90):
            pass
    with queue.admit(100):
        pass
    queue.close()


def test_queued_work_is_skipped_when_its_client_disconnects() -> None:
    """With one worker: while the first request runs, the second's client disconnects, and it never starts."""
    queue = WorkQueue(Limits(), 1, Metrics())
    started: list[str] = []
    release = threading.Event()

    def work(name: str) -> str:
        started.append(name)
        release.wait(10)
        return name

    async def main() -> None:
        disconnected = asyncio.Event()

        async def gone() -> None:
            await disconnected.wait()

        first = asyncio.create_task(queue.run(lambda: work("first"), never))
        second = asyncio.create_task(queue.run(lambda: work("second"), gone))
        third = asyncio.create_task(queue.run(lambda: work("third"), never))
        while started != ["first"]:
            await asyncio.sleep(0.001)
        disconnected.set()
        with pytest.raises(RequestError, match="disconnected"):
            await second
        release.set()
        assert [await first, await third] == ["first", "third"]

    asyncio.run(main())
    assert started == ["first", "third"]
    queue.close()


SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}


def queue_of(limits: Limits) -> WorkQueue:
    return WorkQueue(limits, 1, Metrics())


def test_work_on_many_texts_ends_when_its_client_disconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request does not wait for the other texts."""
    inference = Inference(ModelRegistry([siglip_onnx.load("demo")]), Settings(isolate_decoding=False), Metrics())
    (model_id,) = inference.models.select(None)
    queue = WorkQueue(Limits(), 1, Metrics())
    embedded: list[str] = []
    disconnected = threading.Event()
    encode = TextTower.embed_labels

    def encode_slowly(tower: TextTower, texts: list[str], *templates: Any) -> Any:
        embedded.extend(texts)
        if len(embedded) == 2:
            disconnected.set()
            time.sleep(0.5)
        return encode(tower, texts, *templates)

    monkeypatch.setattr(TextTower, "embed_labels", encode_slowly)

    async def gone() -> None:
        await asyncio.to_thread(disconnected.wait, 10)

    async def main() -> int:
        texts = [f"text {number}" for number in range(50)]
        with pytest.raises(RequestError, match="disconnected"):
            await queue.run_steps(inference.embed_texts(texts, ["{}"], model_id), gone)
        return await queue.run(lambda: len(embedded), never)

    assert asyncio.run(main()) == 2
    queue.close()


def test_slow_fetches_leave_memory_to_uploads_and_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SLOW_BODY_SECONDS", 0.2)
    queue = WorkQueue(Limits(pending_bytes=100), 1, Metrics())

    async def fetch(seconds: float) -> str:
        with queue.hold(25):
            return await queue.fetch(asyncio.sleep(seconds, "fetched"))

    async def main() -> None:
        slow = [asyncio.create_task(fetch(30)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as caught:
            await fetch(0)
        assert caught.value.code == "queue_full"
        with queue.admit(25):
            pass
        await asyncio.sleep(0.3)
        assert await fetch(0) == "fetched"
        with pytest.raises(RequestError, match="that a busy server waits"):
            await slow[0]
        for task in slow[1:]:
            assert not task.done()
            task.cancel()

    asyncio.run(main())
    queue.close()


def test_slow_body_is_refused() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(RequestError) as caught:
        asyncio.run(read_body(Request(SCOPE, receive), Limits(body_seconds=0.1), queue_of(Limits())))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")


def test_full_queue_ends_the_slowest_body(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(requests=2)
    queue = queue_of(limits)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def request() -> RequestError | None:
        with queue.admit(10):
            try:
                await read_body(Request(SCOPE, receive), limits, queue)
            except RequestError as error:
                return error
        return None

    async def main() -> None:
        slow = [asyncio.ensure_future(request()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="limit of requests"), queue.admit(10):
            pass
        monkeypatch.setattr(work, "SLOW_BODY_SECONDS", 0.0)
        with queue.admit(10):
            error = await slow[0]
            assert error is not None
            assert error.code == "body_too_slow"
            assert not slow[1].done()
        slow[1].cancel()
        await asyncio.gather(slow[1], return_exceptions=True)

    asyncio.run(main())
    assert queue.size == 0
    queue.close()


def test_requests_over_the_limit_get_429(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before they are computed, and the server keeps answering others."""
    release, working = threading.Event(), threading.Semaphore(0)
    embed_image = Inference.embed_image

    def held(*arguments: Any) -> Any:
        working.release()
        release.wait(30)
        return embed_image(*arguments)

    monkeypatch.setattr(Inference, "embed_image", held)
    statuses: list[int] = []
    with client_of([siglip_onnx.load("demo")], Settings(limits=Limits(requests=2), workers=2)) as client:

        def send() -> None:
            answer = client.post("/v1/classify", files={"images": STAR}, data={"texts": "a"})
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert working.acquire(timeout=30)
        assert working.acquire(timeout=30)
        for _ in range(5):
            answer = client.post("/v1/classify", files={"images": STAR}, data={"texts": "a"})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) == answer.json()["error"]["retry_after_s"] >= 1
        assert client.get("/healthz").status_code == 200
        assert "siglip_queue_size 2" in client.get("/metrics").text
        release.set()
        for thread in threads:
            thread.join()
        send()
    assert statuses == [200, 200, 200]


PUBLIC = {"example.com": ["93.184.216.34"]}


def test_all_urls_of_a_request_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 1.0)
    internet = FakeInternet(dict(PUBLIC))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.4)
        writer.write(response(STAR))

    body: dict[str, Any] = {"images": [{"url": f"http://example.com/{number}"} for number in range(6)], "texts": ["a"]}
    with (
        serving_in_thread(serve, internet),
        client_of([siglip_onnx.load("demo")], fetcher=internet.fetcher()) as client,
    ):
        answer = client.post("/v1/classify", json=body | {"strict": True})
        assert len(internet.dialed) <= 3
        results = client.post("/v1/classify", json=body).json()["results"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "fetch_failed")
    assert answer.json()["error"]["image"] in (1, 2)
    assert len(internet.dialed) <= 6
    assert "error" not in results[0]
    assert [result["error"]["code"] for result in results[-3:]] == ["fetch_failed"] * 3


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/fetch"])
def test_a_fetch_ends_when_its_client_has_gone(path: str) -> None:
    internet, begun, ended = FakeInternet(dict(PUBLIC)), threading.Event(), threading.Event()

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        with contextlib.suppress(OSError):
            await reader.read()
        ended.set()

    url = {"url": "http://example.com/slow"}
    body = json.dumps(url if path == "/v1/fetch" else {"images": [url], "texts": ["a"]}).encode()
    with (
        serving_in_thread(serve, internet),
        running([siglip_onnx.load("demo")], fetcher=internet.fetcher()) as address,
    ):
        host = urlsplit(address)
        with socket.create_connection((host.hostname, host.port)) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(10)
            assert not ended.is_set()
        assert ended.wait(5)
