"""Privacy of the HTTP API: nothing of a request reaches the disk, the log, or other clients."""

from __future__ import annotations

import base64
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from PIL import Image
from starlette.testclient import TestClient
from support.web_server import STAR, client_of, error_of, in_base64

import siglip_onnx
from siglip_onnx.model import SigLIP
from siglip_onnx.session import LazySession


def test_nothing_is_written_to_disk(client: TestClient) -> None:
    """Not even parts of a form larger than 1 MB, which the parser would spool by default."""
    large = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large, "BMP")
    written: list[Any] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        creates = event in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.mkdir", "os.rename")
        if watching and (creates or (event == "open" and (arguments[2] or 0) & writing)):
            written.append(arguments[0])

    watching = True
    sys.addaudithook(audit)
    answer = client.post("/v1/classify", files={"images": large.getvalue()}, data={"texts": ["a", "b"]})
    Path(os.devnull).write_bytes(b"")  # proves that the hook sees writes
    watching = False
    assert answer.status_code == 200
    assert len(large.getvalue()) > 6_000_000
    assert written == [os.devnull]


def test_nothing_of_an_image_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "5EC12E7" * 30
    for data in (secret.encode(), STAR[:2000] + secret.encode(), STAR + secret.encode()):
        answers = [
            client.post("/v1/classify", files={"images": (secret, data)}, data={"texts": "a", secret: secret}),
            client.post("/v1/classify", json={"images": [in_base64(data)], "texts": ["a"]}),
            client.post("/v1/classify", json={"images": [{"base64": data.decode("latin-1")}], "texts": ["a"]}),
            client.post("/v1/classify", json={"images": in_base64(data), "texts": ["a"]}),
        ]
    output = caplog.text + "".join(answer.text for answer in answers)
    assert secret not in output
    assert base64.b64encode(secret.encode()).decode()[8:40] not in output


def test_errors_of_a_model_are_logged_and_hidden_from_clients(
    model: SigLIP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise siglip_onnx.BundleError("/home/somebody/model is damaged")

    with client_of([model]) as client:
        monkeypatch.setattr(LazySession, "embed", failing)
        answer = client.post("/v1/classify", json={"images": [in_base64(STAR)], "texts": ["a text not cached yet"]})
        assert "somebody" not in error_of(answer, 500, "model_error")["message"]
        assert "/home/somebody/model is damaged" in caplog.text
