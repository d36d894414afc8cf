"""A real server of the page in a thread of the test's process, and clients of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn
from starlette.testclient import TestClient

from siglip_onnx.model import SigLIP
from siglip_onnx.web.app import create_app
from siglip_onnx.web.server import bind, page_address
from siglip_onnx.web.settings import Settings

BASE = "http://127.0.0.1:5678"


@contextlib.contextmanager
def client_of(models: Sequence[SigLIP], settings: Settings | None = None, **options: Any) -> Iterator[TestClient]:
    """Give a client that calls the application directly."""
    app = create_app(models, settings or Settings(), **options)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def running(models: Sequence[SigLIP], settings: Settings | None = None, **options: Any) -> Iterator[str]:
    """Give the address of a server that listens."""
    settings = settings or Settings(port=0)
    bound = bind(settings.host, settings.port)
    app = create_app(models, settings, **options)
    server = uvicorn.Server(
        uvicorn.Config(app, loop="asyncio", http="h11", ws="none", log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield page_address(bound)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        bound.close()
