"""The page behind Debian's nginx in a headless Chromium, and pages whose scripts do not load."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from support.web_page import NewPage, add, choose, probabilities
from support.web_server import STAR_PATH, running

import siglip_onnx
from siglip_onnx.web.settings import Settings

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 100; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size {body_size};
    {locations}
  }}
}}
"""
DEFAULT = "location / {{ proxy_pass {upstream}; }}"  # the Host header is that of the upstream
DOCUMENTED = "location / {{ proxy_pass {upstream}; proxy_set_header Host $host; }}"  # without the port
FORWARDED = "location / {{ proxy_pass {upstream}; proxy_set_header X-Forwarded-Host $http_host; }}"
STRIPPED = "location /siglip/ {{ proxy_pass {upstream}/; proxy_set_header Host $http_host; }}"
KEPT = "location /siglip {{ proxy_pass {upstream}; proxy_set_header Host $http_host; }}"
ADDRESS = ("127.0.0.1",)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator["Nginx"]:
    if not NGINX:
        pytest.skip("nginx is not installed; install Debian's package nginx-light")
    proxy = Nginx(tmp_path)
    yield proxy
    proxy.stop()


class Nginx:
    """nginx in the foreground on a free port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, locations: str, upstream: str, *, body_size: str = "25m") -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
        path = self._folder / "nginx.conf"
        locations = locations.format(upstream=upstream.rstrip("/"))
        path.write_text(CONFIGURATION.format(folder=self._folder, port=port, body_size=body_size, locations=locations))
        self._process = subprocess.Popen([str(NGINX), "-p", str(self._folder), "-c", str(path)])
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                time.sleep(0.02)
            else:
                return port
        raise AssertionError((self._folder / "error.log").read_text())

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=30)


@pytest.mark.parametrize(
    ("locations", "path", "settings"),
    [
        (DEFAULT, "/", Settings(port=0, allowed_hosts=("photos.example",))),
        (DOCUMENTED, "/", Settings(port=0, allowed_hosts=("https://photos.example:8443",))),
        (FORWARDED, "/", Settings(port=0, allowed_hosts=("*.example",), trusted_proxies=ADDRESS)),
        (STRIPPED, "/siglip/", Settings(port=0, allowed_hosts=("photos.example.",))),
        (KEPT, "/siglip", Settings(port=0, allowed_hosts=("photos.example",), root_path="/siglip")),
    ],
    ids=["default", "documented", "forwarded", "stripped", "kept"],
)
def test_page_behind_nginx(
    nginx: Nginx, new_page: NewPage, stack: ExitStack, locations: str, path: str, settings: Settings
) -> None:
    upstream = stack.enter_context(running([siglip_onnx.load("demo")], settings))
    port = nginx.start(locations, upstream)
    page = new_page(f"http://photos.example:{port}{path}")
    choose(page, STAR_PATH)
    add(page, "a red star")
    assert float(probabilities(page)[0]) > 0.5
    page.locator("#samples button").first.click()
    expect(page.locator("#history button")).to_have_count(2)


def test_a_name_that_is_not_allowed(nginx: Nginx, browser: Browser) -> None:
    """Chromium sends an Origin header with requests for modules, so that not even the scripts load."""
    context = browser.new_context()
    with running([siglip_onnx.load("demo")]) as upstream:
        page = context.new_page()
        page.goto(f"http://photos.example:{nginx.start(DEFAULT, upstream)}/")
        expect(page.locator("#failed")).to_be_visible()
        expect(page.locator("#failed")).to_contain_text("--allow-host NAME")
    context.close()


def test_an_image_that_the_proxy_refuses(nginx: Nginx, new_page: NewPage, stack: ExitStack) -> None:
    upstream = stack.enter_context(
        running([siglip_onnx.load("demo")], Settings(port=0, allowed_hosts=("photos.example",)))
    )
    port = nginx.start(DEFAULT, upstream, body_size="200")
    page = new_page(f"http://photos.example:{port}/")
    page.set_input_files("#file", str(STAR_PATH))
    expect(page.locator("#toast")).to_contain_text("client_max_body_size")


@pytest.mark.parametrize("missing", ["main.js", "dom.js", "i18n/en.json", "*"])
def test_page_says_that_its_scripts_did_not_load(browser: Browser, address: str, missing: str) -> None:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.route(f"{address}static/{missing}", lambda route: route.fulfill(status=403, body="{}"))
    page.goto(address)
    expect(page.locator("#failed")).to_be_visible()
    expect(page.locator("#failed")).to_contain_text("--allow-host")
    if missing != "*":
        expect(page.locator("#image-panel")).to_be_hidden()
    context.close()
