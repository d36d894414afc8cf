"""Attacks on the server over real sockets: while each runs, and after it, the server answers other clients at once."""

import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.web_server import started

pytestmark = pytest.mark.web
WATCHDOG_S = 60
PATIENCE_S = 2.0  # for /healthz; before the limits it waited for 5 to 25 seconds
MAX_GROWTH_BYTES = 300_000_000  # before the limits 1.1 to 5 GB


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with started(cwd=tmp_path_factory.mktemp("server")) as (process, url):
        port = urlsplit(url).port or 0
        while status_of(port, "/readyz") != 200:
            time.sleep(0.05)
        PROCESS_IDS[port] = process.pid
        yield port


PROCESS_IDS: dict[int, int] = {}


def status_of(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCHDOG_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WATCHDOG_S)


def head_of(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def peak_bytes(port: int) -> int:
    lines = Path(f"/proc/{PROCESS_IDS[port]}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Neighbor:
    """Another client, who asks for /healthz all the time; ``slowest_s`` is how long it waited at most."""

    def __init__(self, port: int) -> None:
        self.slowest_s = 0.0
        self.answers = 0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Neighbor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            asked = time.perf_counter()
            status = status_of(self._port, "/healthz")
            self.slowest_s = max(self.slowest_s, time.perf_counter() - asked)
            self.answers += status == 200
            time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embed/texts", b'{"texts":[' + b"0," * 1_250_000 + b"0]}"),
        ("/v1/embed/texts", b'{"texts":[' + b"0," * 12_400_000 + b"0]}"),
        ("/v1/embed/texts", b'{"texts":["a"],' + b",".join(b'"%d":0' % number for number in range(250_000)) + b"}"),
        ("/v1/embed/texts", b'{"texts":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"),
        ("/v1/embed/texts", b'{"texts":[' + b",".join([b"[" * 90 + b"]" * 90] * 100_000) + b"]}"),
        ("/v1/embed/images", b'{"images":[{' + b",".join(b'"%d":0' % number for number in range(250_000)) + b"}]}"),
        ("/v1/fetch", b'{"url":[' + b"0," * 1_250_000 + b"0]}"),
    ],
    ids=["zeros", "many_zeros", "keys", "deep", "nested", "image_keys", "fetch"],
)
def test_one_json_body_does_not_stop_the_server(port: int, path: str, body: bytes) -> None:
    peak_before = peak_bytes(port)
    with Neighbor(port) as neighbor, connect(port) as client:
        client.sendall(head_of(path, f"Content-Length: {len(body)}") + body)
        answer = client.recv(100)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 422"))
    assert neighbor.slowest_s < PATIENCE_S
    assert peak_bytes(port) - peak_before < MAX_GROWTH_BYTES
