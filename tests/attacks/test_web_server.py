"""Attacks on the server over real sockets: while each runs, and after it, the server answers other clients at once."""

import base64
import http.client
import io
import json
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from support.waiting import wait_until
from support.web_server import running, started

import siglip_onnx
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.web import connection
from siglip_onnx.web.settings import Limits, Settings

pytestmark = pytest.mark.web
WATCHDOG_S = 60
PATIENCE_S = 4.0  # for /healthz, on a busy machine too; before the limits it waited for 5 to 25 seconds
MAX_GROWTH_BYTES = 300_000_000  # before the limits 1.1 to 5 GB


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with started(cwd=tmp_path_factory.mktemp("server")) as (process, url):
        port = urlsplit(url).port or 0
        wait_until(lambda: status_of(port, "/readyz") == 200)
        PROCESS_IDS[port] = process.pid
        yield port


PROCESS_IDS: dict[int, int] = {}


# Another client needs another address, because the connections of one are limited; Linux answers all of 127.0.0.0/8.
NEIGHBOR = ("127.0.0.2" if sys.platform == "linux" else "127.0.0.1", 0)


def status_of(port: int, path: str, source: tuple[str, int] | None = None) -> int:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCHDOG_S, source_address=source)
    try:
        client.request("GET", path)
        return client.getresponse().status
    finally:
        client.close()


def connect(port: int, source: tuple[str, int] | None = None) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WATCHDOG_S, source_address=source)


def head_of(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def send_endlessly(client: socket.socket, data: bytes) -> None:
    while True:
        client.sendall(data)


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
            status = status_of(self._port, "/healthz", NEIGHBOR)
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
        ("/v1/embeddings", b'{"model":"demo","input":[' + b"0," * 1_250_000 + b"0]}"),
        (
            "/v1/embeddings",
            b'{"model":"demo","input":{"type":"text",' + b",".join(b'"%d":0' % n for n in range(250_000)) + b"}}",
        ),
        (
            "/v1/embeddings",
            b'{"model":"demo","input":{"type":"image_url","image_url":{'
            + b",".join(b'"%d":0' % n for n in range(250_000))
            + b"}}}",
        ),
    ],
    ids=["zeros", "many_zeros", "keys", "deep", "nested", "image_keys", "fetch", "tokens", "part_keys", "url_keys"],
)
def test_one_json_body_does_not_stop_the_server(port: int, path: str, body: bytes) -> None:
    peak_before = peak_bytes(port)
    with Neighbor(port) as neighbor, connect(port) as client:
        client.sendall(head_of(path, f"Content-Length: {len(body)}") + body)
        answer = client.recv(100)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 422"))
    assert neighbor.slowest_s < PATIENCE_S
    assert peak_bytes(port) - peak_before < MAX_GROWTH_BYTES


PART = b'--x\r\nContent-Disposition: form-data; name="texts"'
FORM = PART + b"\r\n\r\na\r\n--x--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        PART + b"\r\nX: a" * 3_000_000 + FORM.removeprefix(PART),
        PART + b"\r\nX: " + b"a" * 20_000_000 + FORM.removeprefix(PART),
        b"\r\n" * 10_000_000 + FORM,
        FORM + b"\r\n" * 10_000_000,
    ],
    ids=["headers", "header", "preamble", "epilogue"],
)
def test_one_form_does_not_occupy_a_worker(port: int, body: bytes) -> None:
    """With python-multipart before 0.0.26 each took from ten seconds to a minute, in one turn."""
    head = head_of("/v1/embed/texts", f"Content-Length: {len(body)}").replace(
        b"application/json", b"multipart/form-data; boundary=x"
    )
    started_at = time.perf_counter()
    with Neighbor(port) as neighbor, connect(port) as client:
        client.sendall(head + body)
        assert client.recv(100).startswith((b"HTTP/1.1 200", b"HTTP/1.1 4"))
    assert time.perf_counter() - started_at < 3 * PATIENCE_S
    assert neighbor.slowest_s < PATIENCE_S


def test_the_parser_of_forms_is_recent_enough() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (version,) = (
        name.removeprefix("python-multipart>=")
        for name in project["optional-dependencies"]["web"]
        if name.startswith("python-multipart")
    )
    assert tuple(map(int, version.split("."))) >= (0, 0, 26)


def test_a_request_of_expensive_images_is_decoded_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has 38 bytes and 4 megapixels; the request ends with the first that is begun after its time."""
    read, decoded = DecoderPool.read, 0

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return read(*arguments)

    monkeypatch.setattr(DecoderPool, "read", counted)
    image = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(image, "WEBP", lossless=True)
    images = [{"base64": base64.b64encode(image.getvalue() + b"%d" % number).decode()} for number in range(32)]
    with running([siglip_onnx.load("demo")], Settings(port=0, limits=Limits(decode_seconds=0.0))) as url:
        client = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=WATCHDOG_S)
        body = json.dumps({"images": images})
        client.request("POST", "/v1/embed/images", body, {"Content-Type": "application/json"})
        results = json.loads(client.getresponse().read())["images"]
        client.close()
    assert decoded == 1
    assert (results[0]["width"], results[0]["height"]) == (2000, 2000)
    assert {result["error"]["code"] for result in results[1:]} == {"limit_exceeded"}


@pytest.mark.parametrize("path", ["/nothing", "/v1/embed/texts", "/healthz"])
def test_endless_small_chunks_end_the_connection(port: int, path: str) -> None:
    """Also where the answer does not wait for the body, as for a path that does not exist."""
    chunks = b"1\r\nx\r\n" * 20_000
    with Neighbor(port) as neighbor, connect(port) as client:
        client.sendall(head_of(path, "Transfer-Encoding: chunked"))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_endlessly(client, chunks)
    assert neighbor.slowest_s < PATIENCE_S
    assert neighbor.answers


def test_large_chunks_are_accepted(port: int) -> None:
    body = b'{"texts": ["a"]%s}' % (b" " * 2_000_000)
    chunks = [body[start : start + 600] for start in range(0, len(body), 600)]
    with connect(port) as client:
        client.sendall(head_of("/v1/embed/texts", "Transfer-Encoding: chunked", "Connection: close"))
        client.sendall(b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nothing", ("Content-Length: 10",), b"404"),
        ("/v1/embed/texts", ("Content-Length: 25000001",), b"413"),
        ("/v1/embed/texts", ("Content-Length: 0", "Transfer-Encoding: chunked"), b"400"),
        ("/v1/embed/texts", ("Content-Length: 5", "Content-Length: 6"), b"400"),
        ("/v1/embed/texts", ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), b"400"),
        ("/v1/embed/texts", ("Content-Length: -1",), b"400"),
        ("/v1/embed/texts", ("Transfer-Encoding: gzip, chunked",), b"400"),
    ],
)
def test_early_answer_closes_the_connection(port: int, path: str, headers: tuple[str, ...], status: bytes) -> None:
    with connect(port) as client:
        client.sendall(head_of(path, *headers))
        answer = read_to_end(client)
    assert answer.split()[1] == status
    assert b"connection: close" in answer.lower()
    assert b'{"error":' in answer


def test_early_answer_is_read_by_a_client_that_still_sends(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCHDOG_S)
    client.request("POST", "/v1/embed/images", bytes(40_000_000), {"Content-Type": "application/json"})
    assert client.getresponse().status == 413
    client.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\xff\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\na key: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nx: " + b"a" * 70_000,
        head_of("/v1/embed/texts", "Transfer-Encoding: chunked") + b"zz\r\n",
        head_of("/v1/embed/texts", "Transfer-Encoding: chunked") + b"-1\r\n",
        head_of("/v1/embed/texts", "Expect: 100-continue", "Transfer-Encoding: chunked") + b"zz\r\n",
    ],
)
def test_malformed_http_is_400(port: int, request_bytes: bytes) -> None:
    with connect(port) as client:
        client.sendall(request_bytes)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.endswith(b'{"error":{"code":"bad_request","message":"The request is not valid HTTP."}}')


def read_to_end(client: socket.socket) -> bytes:
    answer = b""
    while block := client.recv(65_536):
        answer += block
    return answer


def test_answers_to_complete_requests_keep_the_connection(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCHDOG_S)
    for _ in range(3):
        client.request("POST", "/v1/embed/texts", b"x" * 100, {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("connection")) == (400, None)
    client.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET"]
)
def test_headers_have_a_deadline(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A client that sends a byte of its headers now and then, on a new or on a used connection."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    with running([siglip_onnx.load("demo")]) as url:
        started_at = time.monotonic()
        with connect(urlsplit(url).port or 0) as client:
            client.sendall(sent)
            client.settimeout(0.1)
            while time.monotonic() < started_at + WATCHDOG_S:
                try:
                    client.sendall(b"x" if sent else b"")
                    if not client.recv(65_536):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        assert time.monotonic() < started_at + 5


def test_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_SECONDS", 0.5)
    with running([siglip_onnx.load("demo")]) as url, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(WATCHDOG_S)
        client.connect(("127.0.0.1", urlsplit(url).port or 0))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_endlessly(client, b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of open files")
def test_connections_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    """One line is logged; and the server answers as soon as connections are free again."""
    with started(cwd=tmp_path, files=80) as (process, url):
        port = urlsplit(url).port or 0
        wait_until(lambda: status_of(port, "/readyz") == 200)
        clients = [socket.create_connection(("127.0.0.1", port), timeout=WATCHDOG_S) for _ in range(150)]
        time.sleep(2)
        for client in clients:
            client.close()
        time.sleep(1.5)
        assert status_of(port, "/healthz") == 200
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=WATCHDOG_S)
    assert process.returncode == 0
    lines = stderr.splitlines()
    assert any("Connections cannot be accepted" in line or "too many connections" in line for line in lines)
    assert len(lines) <= 3, stderr


HALF_OPEN = [b"", b"POST /v1/embed/texts HTTP/1.1\r\nHost: 127.0.0.1\r\n"]
HALF_BODY = [head_of("/v1/embed/texts", "Content-Length: 1000") + b"{"]


@pytest.mark.parametrize("sent", HALF_OPEN + HALF_BODY, ids=["nothing", "half_headers", "half_body"])
def test_a_thousand_half_open_connections(port: int, sent: bytes) -> None:
    """Others are answered meanwhile, also with an embedding; one that waits for an answer is never closed."""
    body = b'{"texts":["a"]}'
    clients = []
    try:
        with Neighbor(port) as neighbor:
            for _ in range(1000):
                clients.append(connect(port))
                clients[-1].sendall(sent)
            deadline, status = time.monotonic() + 20, b""
            while b" 200 " not in status and time.monotonic() < deadline:
                with connect(port, NEIGHBOR) as client:
                    client.sendall(head_of("/v1/embed/texts", f"Content-Length: {len(body)}") + body)
                    status = client.recv(15)
                time.sleep(0.1)
    finally:
        for client in clients:
            client.close()
    assert b" 200 " in status, status
    assert neighbor.answers
    assert neighbor.slowest_s < PATIENCE_S


@pytest.mark.parametrize("proxies", [(), ("127.0.0.0/8",)])
def test_connections_of_one_address(proxies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest idle one makes room for a new one, those without any request first; a proxy is not limited."""
    monkeypatch.setattr(connection, "MAX_PER_ADDRESS", 3)
    settings = Settings(port=0, trusted_proxies=proxies)
    with running([siglip_onnx.load("demo")], settings) as url:
        port = urlsplit(url).port or 0
        used = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCHDOG_S)
        used.request("GET", "/healthz")
        used.getresponse().read()
        idle = [connect(port) for _ in range(2)]
        time.sleep(0.3)
        assert status_of(port, "/healthz") == 200
        if not proxies:
            with idle.pop(0) as closed:
                assert closed.recv(1) == b""
        for client in idle:
            with client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        used.request("GET", "/healthz")
        assert used.getresponse().status == 200
        used.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_server_ends_although_a_worker_does_not(tmp_path: Path) -> None:
    code = (
        "import time\nfrom siglip_onnx.web import answers\nfrom siglip_onnx.web.inference import Inference\n"
        "Inference.embed_texts = lambda *_: time.sleep(1000)\n"
        "from siglip_onnx.cli import main\nmain(['web', '--port', '0'])"
    )
    with started(cwd=tmp_path, words=[sys.executable, "-c", code]) as (process, url):
        port = urlsplit(url).port or 0
        with connect(port) as client:
            body = b'{"texts":["a"]}'
            client.sendall(head_of("/v1/embed/texts", f"Content-Length: {len(body)}") + body)
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            stopped_at = time.monotonic()
            _, stderr = process.communicate(timeout=WATCHDOG_S)
    assert time.monotonic() < stopped_at + 10
    assert process.returncode == 0
    assert "did not end within 9 seconds" in stderr
    assert "Traceback" not in stderr
