"""Run the web server in a thread of the test process or as a process, and send requests to it."""

import base64
import contextlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.commands import command
from support.waiting import wait_until

from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.model import SigLIP
from siglip_onnx.web.app import create_app
from siglip_onnx.web.server import Server, bind, page_address
from siglip_onnx.web.settings import Settings

BASE_URL = "http://127.0.0.1:5678"
STAR_PATH = IMAGES_PATH / "red_star.png"
EGGS_PATH = IMAGES_PATH / "six_eggs.png"
STAR = STAR_PATH.read_bytes()
EGGS = EGGS_PATH.read_bytes()


@contextlib.contextmanager
def client_of(models: Sequence[SigLIP], settings: Settings | None = None, **options: Any) -> Iterator[TestClient]:
    app = create_app(models, settings or Settings(), **options)
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def running(models: Sequence[SigLIP], settings: Settings | None = None, **options: Any) -> Iterator[str]:
    """Yield the URL of a server that listens on a port."""
    settings = settings or Settings(port=0)
    bound = bind(settings.host, settings.port)
    app = create_app(models, settings, **options)
    server = Server(app, settings.trusted_proxies)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield page_address(bound)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        bound.close()


@contextlib.contextmanager
def started(
    *options: str, cwd: Path, words: Sequence[str] = (), files: int | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command, or other ``words``, on a free port; yield the process and the page's URL.

    ``files`` limits the number of its open files.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SIGLIP_ONNX")}
    limit = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    process = subprocess.Popen(
        [*limit, *(words or command("web", "--port", "0", *options))], cwd=cwd, env=variables | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr
        for line in process.stderr:
            if url := re.search(r"http://\S+", line):
                break
        else:
            raise AssertionError("the server did not print its URL")
        yield process, url[0]
    finally:
        process.kill()
        process.communicate()


def in_base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def error_of(response: Any, status: int, code: str) -> dict[str, Any]:
    """Return the error of a response, which must have the one form, this status and this code."""
    document = response.json()
    assert list(document) == ["error"]
    assert (response.status_code, document["error"]["code"]) == (status, code), document
    assert document["error"]["message"]
    error: dict[str, Any] = document["error"]
    return error


def wait_until_ready(client: TestClient) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200)


class HeldCalls:
    """Counts the calls of a method, each of which waits for its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        call, self.turns, self.count = getattr(owner, name), threading.Semaphore(0), 0

        def held(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            assert self.turns.acquire(timeout=30)
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, held)


def ask(host: Any, method: str, path: str, body: str = "") -> str:
    with socket.create_connection((host.hostname, host.port), timeout=60) as client:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host.netloc}\r\nConnection: close\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        with client.makefile("rb") as answer:
            return answer.read().decode()
