"""Fixtures: a client of the application, a headless Chromium, and a server whose internet consists of one host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.model import SigLIP

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from starlette.testclient import TestClient
    from support.web_page import NewPage

CHROMIUM = os.environ.get("SIGLIP_ONNX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")  # not longer: while Playwright runs, asyncio.run cannot
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("Chromium is not installed; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                  "--host-resolver-rules=MAP photos.example 127.0.0.1"],
        )  # fmt: skip
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """URL of a server with the demo model; ``images.example`` serves an image."""
    from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
    from support.web_server import running

    from siglip_onnx.web.settings import Settings

    internet = FakeInternet({"images.example": [PUBLIC], "inside.example": ["127.0.0.1"]})
    settings = Settings(port=0, allowed_hosts=("photos.example",))
    image = (IMAGES_PATH / "red_star.png").read_bytes()
    with (
        serving_in_thread(answering(response(image)), internet),
        running([siglip_onnx.load("demo")], settings, fetcher=internet.fetcher()) as address,
    ):
        yield address


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Enter servers here: pages opened later are closed before they stop, since a page may still ask its server."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def new_page(browser: Browser, address: str, stack: ExitStack) -> Iterator[NewPage]:
    """Open pages; at the end no request has left the server, and no script has failed or broken the policy."""
    from playwright.sync_api import expect

    foreign_requests, complaints = [], []

    def open_page(url: str = address, *, await_samples: bool = True, **options: Any) -> Page:
        page = stack.enter_context(browser.new_context(**{"locale": "en-US"} | options)).new_page()
        page.on(
            "request", lambda request: foreign_requests.append(request.url) if is_foreign(request.url, url) else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        page.goto(url)
        expect(page.locator("html")).not_to_have_class("loading")
        if await_samples:
            expect(page.locator("#presets button")).not_to_have_count(0)
        return page

    yield open_page
    assert foreign_requests == []
    assert complaints == []


def is_foreign(url: str, page_url: str) -> bool:
    return not url.startswith(("blob:", "data:")) and urlsplit(url).netloc != urlsplit(page_url).netloc


def is_complaint(message: Any) -> bool:
    """Ignore what Chromium logs of refusals by the server and of plain http, which some tests cause on purpose."""
    expected = ("status of 4", "Cross-Origin-Opener-Policy header has been ignored")
    return message.type in ("error", "warning") and not any(words in message.text for words in expected)


@pytest.fixture(scope="module")
def model() -> SigLIP:
    return siglip_onnx.load("demo")


@pytest.fixture(scope="module")
def client(model: SigLIP) -> Iterator[TestClient]:
    from support.web_server import client_of

    with client_of([model]) as client:
        yield client
