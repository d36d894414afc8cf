"""The bounded request queue, alone and under overload."""

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request
from support.web_server import STAR, client_of

import siglip_onnx
from siglip_onnx.web.bodies import read_body
from siglip_onnx.web.errors import RequestError
from siglip_onnx.web.inference import Inference
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


def test_slow_body_is_refused() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_body(Request(scope, receive), Limits(body_seconds=0.1)))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")


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
