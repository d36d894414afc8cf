"""Take the screenshots of the web page in docs: ``python scripts/draw_page.py``. Needs Chromium and a Japanese font."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from siglip_onnx.demo import IMAGES_PATH

DOCS = Path(__file__).parent.parent / "docs"
WIDTH, HEIGHT = 1180, 760
TEXTS = ["something red", "a star", "a red star", "a red star on a light background", "a blue star", "six eggs"]


def main() -> None:
    """Start the server and take both screenshots."""
    command = [sys.executable, "-m", "siglip_onnx", "web", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603
    address = next(url[0] for line in server.stderr or () if (url := re.search(r"http://\S+", line)))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            warm_up(browser, address)
            draw_english(browser, address)
            draw_japanese(browser, address)
            browser.close()
    finally:
        server.terminate()
        server.communicate()


def warm_up(browser: Browser, address: str) -> None:
    """Embed an image, so that the screenshots show the times of a warm server."""
    page = open_page(browser, address, "en-US", "light")
    page.locator("#samples button").first.click()
    expect(page.locator("#image-facts")).to_contain_text("pixels")


def draw_english(browser: Browser, address: str) -> None:
    """Draw one image with several texts, in the light theme."""
    page = open_page(browser, address, "en-US", "light")
    page.set_input_files("#file", [IMAGES_PATH / "red_star.png"])
    page.fill("#text", "\n".join(TEXTS))
    page.press("#text", "Enter")
    expect(page.locator("#table tbody tr:not(.pending)")).to_have_count(len(TEXTS))
    save(page, "page_en.webp")


def draw_japanese(browser: Browser, address: str) -> None:
    """Draw the counting preset with its heat map, in the dark theme."""
    page = open_page(browser, address, "ja-JP", "dark")
    page.locator("#presets button").first.click()
    expect(page.locator("#heat tbody tr")).to_have_count(6)
    expect(page.locator("#table tbody tr:not(.pending)")).to_have_count(6)
    save(page, "page_ja.webp")


def open_page(browser: Browser, address: str, locale: str, scheme: str) -> Page:
    """Open the page and wait until it is ready."""
    context = browser.new_context(
        locale=locale, color_scheme="dark" if scheme == "dark" else "light", viewport={"width": WIDTH, "height": HEIGHT}
    )
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#presets button")).not_to_have_count(0)
    return page


def save(page: Page, name: str) -> None:
    """Save a screenshot of the whole page."""
    page.mouse.move(0, 0)
    Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB").save(DOCS / name, lossless=True, method=6)


if __name__ == "__main__":
    main()
