"""The bounded queue, by itself and at too much load."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.requests import Request
from support.web_server import client_of

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.web.bodies import read_body
from siglip_onnx.web.errors import RequestError
from siglip_onnx.web.limits import Limits
from siglip_onnx.web.inference import Inference
from siglip_onnx.web.metrics import Metrics
from siglip_onnx.web.settings import Settings
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


def test_work_waits_its_turn_and_leaves_with_its_client() -> None:
    """One worker: while the first works, the second's client goes, and the second is never begun."""
    queue = WorkQueue(Limits(), 1, Metrics())
    begun: list[str] = []
    release = threading.Event()

    def work(name: str) -> str:
        begun.append(name)
        release.wait(10)
        return name

    async def main() -> None:
        gone = asyncio.Event()

        async def leaves() -> None:
            await gone.wait()

        first = asyncio.create_task(queue.run(lambda: work("first"), never))
        second = asyncio.create_task(queue.run(lambda: work("second"), leaves))
        third = asyncio.create_task(queue.run(lambda: work("third"), never))
        while begun != ["first"]:
            await asyncio.sleep(0.001)
        gone.set()
        with pytest.raises(RequestError, match="disconnected"):
            await second
        release.set()
        assert [await first, await third] == ["first", "third"]

    asyncio.run(main())
    assert begun == ["first", "third"]
    queue.close()


def test_errors_of_the_work_are_those_of_the_request() -> None:
    def work() -> None:
        raise RequestError(422, "decode_error", "No picture.")

    queue = WorkQueue(Limits(), 1, Metrics())
    with pytest.raises(RequestError, match="No picture"):
        asyncio.run(queue.run(work, never))
    queue.close()


def test_a_body_that_trickles_is_given_up() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_body(Request(scope, receive), Limits(body_seconds=0.1)))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")


def test_too_many_requests_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the bound is refused before it is computed; the server goes on answering, and nothing fails."""
    release, working = threading.Event(), threading.Semaphore(0)
    embed_image = Inference.embed_image

    def held(*arguments: Any) -> Any:
        working.release()
        release.wait(30)
        return embed_image(*arguments)

    monkeypatch.setattr(Inference, "embed_image", held)
    picture = (IMAGES_PATH / "red_star.png").read_bytes()
    statuses: list[int] = []
    with client_of([siglip_onnx.load("demo")], Settings(limits=Limits(requests=2), workers=2)) as client:

        def ask() -> None:
            answer = client.post("/v1/classify", files={"pictures": picture}, data={"texts": "a"})
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert working.acquire(timeout=30)
        assert working.acquire(timeout=30)
        for _ in range(5):
            answer = client.post("/v1/classify", files={"pictures": picture}, data={"texts": "a"})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) == answer.json()["error"]["retry_after_s"] >= 1
        assert client.get("/healthz").status_code == 200
        assert "siglip_queue_size 2" in client.get("/metrics").text
        release.set()
        for thread in threads:
            thread.join()
        ask()
    assert statuses == [200, 200, 200]
