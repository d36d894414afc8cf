"""Measure the web server on the demo model: start to ready, the cost of a text, and an overload of three times.

    python benchmarks/web.py [--seconds 60]

All traffic stays on the loopback address. Writes benchmarks/results/web.json.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from result_files import RESULTS, write_results

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.demo import IMAGES_PATH

OWN_RESULTS = RESULTS / "web.json"
STATIC = Path(siglip_onnx.__file__).parent / "web" / "static"
STARTS, TEXTS = 7, 60
CAPACITY_SECONDS, CLIENTS = 6.0, 8
OVERLOAD = 3
IMAGES = 8  # of one request: the demo model is too fast for one to be a load
MAX_IN_FLIGHT = 512
_IMAGE = (IMAGES_PATH / "red_star.png").read_bytes()
_numbers = itertools.count()


@click.command(help=__doc__)
@click.option("--seconds", type=click.IntRange(1, 60), default=60, show_default=True, help="Length of the overload.")
@click.option("--out", type=click.Path(path_type=Path), default=OWN_RESULTS, help="JSON to write.")
def main(seconds: int, out: Path) -> None:
    """Measure one after the other and write the results."""
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "page_bytes": sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()),
        "start_to_ready_s": _summary([measure_start() for _ in range(STARTS)]),
    }
    with serving() as (process, port):
        results["text"] = measure_text(port)
        results["overload"] = asyncio.run(measure_overload(process.pid, port, seconds))
    write_results(out, results)
    click.echo(json.dumps(results, indent=2))


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a server's process and port as soon as it listens."""
    command = [sys.executable, "-m", "siglip_onnx", "web", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        lines = iter(process.stderr or ())
        yield (
            process,
            next(int(match[1]) for line in lines if (match := re.search(r"http://127\.0\.0\.1:(\d+)/", line))),
        )
    finally:
        process.terminate()
        process.communicate()


def measure_start() -> float:
    """Return the seconds from the start of the process until it reports that it is ready."""
    started = time.perf_counter()
    with serving() as (_, port):
        while call(port, "GET", "/readyz")[0] != 200:
            time.sleep(0.005)
        return time.perf_counter() - started


def measure_text(port: int) -> dict[str, Any]:
    """Return the cost of adding a text to a cached image, and the part of it outside the text tower."""
    while call(port, "GET", "/readyz")[0] != 200:
        time.sleep(0.005)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    _, seen = call(port, "POST", "/v1/embed/images", classify_body(b"x", alone=True))
    image = {"id": seen["pictures"][0]["id"]}
    whole, tower = [], []
    for number in range(TEXTS):
        body = json.dumps({"pictures": [image], "texts": [f"a red star, number {number}"]})
        started = time.perf_counter()
        connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
        reply = json.loads(connection.getresponse().read())
        whole.append(1000 * (time.perf_counter() - started))
        tower.append(reply["texts"][0]["text_ms"][0])
    connection.close()
    overhead = [total - own for total, own in zip(whole, tower, strict=True)]
    return {"request_ms": _summary(whole), "text_tower_ms": _summary(tower), "overhead_ms": _summary(overhead)}


async def measure_overload(pid: int, port: int, seconds: int) -> dict[str, Any]:
    """Measure the server's capacity, then send three times as much, each request with new images."""
    done = 0
    until = time.perf_counter() + CAPACITY_SECONDS

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < until:
            status, _ = await ask(port)
            done += status == 200

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    capacity = done / CAPACITY_SECONDS
    answers: list[tuple[int, float]] = []
    memory: list[float] = []
    pending: set[asyncio.Task[None]] = set()
    dropped = 0

    async def request() -> None:
        answers.append(await ask(port))

    started = time.perf_counter()
    for number in itertools.count():
        due = number / (OVERLOAD * capacity)
        if due >= seconds:
            break
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        if len(memory) <= time.perf_counter() - started:
            memory.append(resident_mb(pid))
        if len(pending) >= MAX_IN_FLIGHT:
            dropped += 1
            continue
        task = asyncio.create_task(request())
        pending.add(task)
        task.add_done_callback(pending.discard)
    lasted = time.perf_counter() - started
    await asyncio.gather(*pending)
    by_status = {
        str(status): sum(answer == status for answer, _ in answers) for status in sorted({s for s, _ in answers})
    }
    return {
        "capacity_per_s": round(capacity, 1),
        "asked_per_s": round(len(answers) / lasted, 1),
        "not_sent": dropped,
        "seconds": round(lasted, 1),
        "answers_by_status": by_status,
        "refused_ms": _summary([ms for status, ms in answers if status == 429]),
        "answered_ms": _summary([ms for status, ms in answers if status == 200]),
        "resident_mb": {"after 5 s": memory[min(5, len(memory) - 1)], "at the end": memory[-1], "most": max(memory)},
    }


async def ask(port: int) -> tuple[int, float]:
    """Return the status and the milliseconds of one request, on a new connection."""
    body = classify_body(b"%d" % next(_numbers))
    head = (
        f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=parts\r\n"
    )
    started = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1]), 1000 * (time.perf_counter() - started)
    except (OSError, IndexError):
        return 0, 1000 * (time.perf_counter() - started)


def classify_body(unique: bytes, *, alone: bool = False) -> bytes:
    """Return a form of eight images with unique bytes and two texts, or of one image alone."""
    part = b'--parts\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    if alone:
        return part % (b"pictures", b'; filename="a.png"', _IMAGE + unique) + b"--parts--\r\n"
    images = (_IMAGE + unique + b"-%d" % number for number in range(IMAGES))
    body = b"".join(part % (b"pictures", b'; filename="a.png"', image) for image in images)
    body += part % (b"texts", b"", b"a red star") + part % (b"texts", b"", b"six eggs")
    return body + b"--parts--\r\n"


def call(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Return status and document of one request; status 0 if there is no server yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "multipart/form-data; boundary=parts"} if body else {}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


def resident_mb(pid: int) -> float:
    """Return the memory of a process that is in use now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return round(int(match[1]) / 1000, 1)


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return (
        {
            "min": round(ordered[0], 3),
            "median": round(statistics.median(ordered), 3),
            "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
            "max": round(ordered[-1], 3),
        }
        if ordered
        else {}
    )


if __name__ == "__main__":
    main()
