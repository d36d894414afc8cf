"""The turns of requests with many images or texts, and the time that their images may take to decode."""

import asyncio
import base64
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.waiting import wait_until
from support.web_server import EGGS, STAR, HeldCalls, ask, client_of, error_of, in_base64, running

from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.model import SigLIP
from siglip_onnx.text_tower import TextTower
from siglip_onnx.web import work
from siglip_onnx.web.metrics import Metrics
from siglip_onnx.web.settings import Limits, Settings
from siglip_onnx.web.work import Steps, WorkQueue

Body = dict[str, Any]
MANY = 8
STARS = [STAR + b"%d" % number for number in range(MANY)]  # decoders stop at the end of the image
IMAGES = [in_base64(star) for star in STARS]
PARTS = [
    {"type": "image_url", "image_url": f"data:image/png;base64,{base64.b64encode(star).decode()}"} for star in STARS
]
TEXTS = [f"text {number}" for number in range(MANY)]
OTHER_TEXT = ("/v1/embed/texts", {"texts": ["another"]})
OTHER_IMAGE = ("/v1/embed/images", {"images": [in_base64(EGGS)]})


async def never() -> None:
    await asyncio.Event().wait()


def order_of_steps(monkeypatch: pytest.MonkeyPatch, turn_seconds: float) -> list[str]:
    """Return the order in which one worker does the steps of three requests; it begins when all are there."""
    monkeypatch.setattr(work, "TURN_SECONDS", turn_seconds)
    metrics, done, begun, all_there = Metrics(), list[str](), threading.Event(), threading.Event()
    queue = WorkQueue(Limits(), 1, metrics)

    def steps(name: str) -> Steps[str]:
        begun.set()
        assert all_there.wait(30)
        for number in range(3):
            if number:
                yield
            done.append(f"{name}{number}")
        return name

    async def main() -> list[str]:
        tasks = [asyncio.create_task(queue.run_steps(steps(name), never)) for name in "abc"]
        while not begun.is_set() or len(queue._waiting) < 2:
            await asyncio.sleep(0)
        all_there.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == ["a", "b", "c"]
    queue.close()
    assert not queue._waiting
    assert "siglip_request_queue_duration_count 3" in metrics.text(0)
    return done


def test_others_take_their_turn_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    done = order_of_steps(monkeypatch, 0.0)
    assert done[:3] == ["a0", "b0", "c0"]
    assert sorted(done) == [f"{name}{number}" for name in "abc" for number in range(3)]


def test_short_steps_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert order_of_steps(monkeypatch, 1000.0) == [f"{name}{number}" for name in "abc" for number in range(3)]


def test_a_request_alone_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "TURN_SECONDS", 0.0)
    queue, turns, take_turn = WorkQueue(Limits(), 2, Metrics()), list[object](), WorkQueue._take_turn
    monkeypatch.setattr(WorkQueue, "_take_turn", lambda *job: turns.append(job) or take_turn(*job))

    def steps() -> Steps[int]:
        for _ in range(100):
            yield
        return len(turns)

    assert asyncio.run(queue.run_steps(steps(), never)) == 1
    queue.close()


@pytest.mark.parametrize(
    ("owner", "name", "path", "body", "other"),
    [
        (DecoderPool, "read", "/v1/classify", {"images": IMAGES, "texts": ["a"]}, OTHER_TEXT),
        (DecoderPool, "read", "/v1/embed/images", {"images": IMAGES}, OTHER_TEXT),
        (DecoderPool, "read", "/v1/embeddings", {"model": "demo", "input": PARTS}, OTHER_TEXT),
        (TextTower, "embed_labels", "/v1/classify", {"images": IMAGES[:1], "texts": TEXTS}, OTHER_IMAGE),
        (TextTower, "embed_labels", "/v1/explain", {"images": IMAGES[:1], "texts": TEXTS}, OTHER_IMAGE),
        (TextTower, "embed_labels", "/v1/embed/texts", {"texts": TEXTS}, OTHER_IMAGE),
        (
            TextTower,
            "embed",
            "/v1/embed/texts",
            {"texts": ["a"], "template": [f"{{}} {text}" for text in TEXTS]},
            OTHER_IMAGE,
        ),
        (TextTower, "embed_labels", "/v1/embeddings", {"model": "demo", "input": TEXTS}, OTHER_IMAGE),
    ],
)
def test_others_are_answered_between_images_and_texts(
    model: SigLIP, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, path: str, body: Body,
    other: tuple[str, Body],
) -> None:  # fmt: skip
    """With one worker: a call is held, another request queues behind it; after the client has gone none begins."""
    monkeypatch.setattr(work, "TURN_SECONDS", 0.0)
    total = MANY if owner is DecoderPool else len(TEXTS)
    with running([model], Settings(port=0, workers=1)) as address:
        host = urlsplit(address)
        wait_until(lambda: ask(host, "GET", "/readyz").startswith("HTTP/1.1 200"))
        held = HeldCalls(monkeypatch, owner, name)
        with socket.create_connection((host.hostname, host.port)) as client:
            content = json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            held.turns.release()
            wait_until(lambda: held.count == 2)
            answers: list[str] = []
            another = threading.Thread(target=lambda: answers.append(ask(host, "POST", other[0], json.dumps(other[1]))))
            another.start()
            wait_until(lambda: "siglip_queue_size 2" in ask(host, "GET", "/metrics"))
            while another.is_alive():
                held.turns.release()
                another.join(0.1)
            assert answers[0].startswith("HTTP/1.1 200")
            assert held.count < total
        wait_until(lambda: "siglip_queue_size 0" in ask(host, "GET", "/metrics"))
        held.turns.release(100)
        asyncio.run(asyncio.sleep(0.2))
        assert held.count < total


def test_turns_change_no_reply(model: SigLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that interrupt each other get what each gets alone, with an error for an image that fails."""
    monkeypatch.setattr(work, "TURN_SECONDS", 0.0)
    images = [*IMAGES[:3], in_base64(STAR[:-200]), in_base64(EGGS)]
    bodies = [{"images": images, "texts": [f"a red star {number}", *TEXTS]} for number in range(6)]

    def matches_of(answer: Any) -> list[Any]:
        return [
            result.get("error") or [(match["text"], match["logit"]) for match in result["models"][0]["matches"]]
            for result in answer.json()["results"]
        ]

    with client_of([model], Settings(workers=2)) as client:
        alone = [matches_of(client.post("/v1/classify", json=body)) for body in bodies]
    assert alone[0][3]["code"] == "truncated"
    together: dict[int, list[Any]] = {}
    with client_of([model], Settings(workers=2)) as client:

        def send(number: int) -> None:
            together[number] = matches_of(client.post("/v1/classify", json=bodies[number]))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[number] for number in range(len(bodies))] == alone


def test_images_of_a_request_have_a_common_time_to_decode(model: SigLIP) -> None:
    """An image begins while those before it are within the time; cached ones take none, and failing ones count."""
    with client_of([model], Settings(limits=Limits(decode_seconds=0.0))) as client:
        results = client.post("/v1/embed/images", json={"images": [*IMAGES[:2], *IMAGES[:1]]}).json()["images"]
        assert ["error" in result for result in results] == [False, True, False]
        assert results[1]["error"]["code"] == "limit_exceeded"
        assert "more than the 0 seconds" in results[1]["error"]["message"]
        seen = client.post("/v1/embed/images", json={"images": IMAGES[:2]}).json()["images"]
        assert ["error" in result for result in seen] == [False, False]
        broken = {"images": [in_base64(STAR[:-200]), IMAGES[2]]}
        assert error_of(client.post("/v1/embed/images", json=broken), 422, "truncated")["image"] == 0
        strict = {"images": IMAGES[3:5], "texts": ["a"], "strict": True}
        assert error_of(client.post("/v1/classify", json=strict), 422, "limit_exceeded")["image"] == 1
        parts = {"model": "demo", "input": PARTS[5:7]}
        assert error_of(client.post("/v1/embeddings", json=parts), 422, "limit_exceeded")["image"] == 1
