"""The page's sources of images in a headless Chromium: file, paste, drop, URL, sample, camera."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright.sync_api")

from PIL import Image
from playwright.sync_api import expect
from support.web_page import NewPage, add, choose, probabilities, rows
from support.web_server import EGGS_PATH, STAR_PATH

pytestmark = pytest.mark.web
PASTE = """async () => {
    const blob = await (await fetch('samples/word_cat.png')).blob();
    const data = new DataTransfer();
    data.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));
    document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
}"""
DROP = """async () => {
    const blob = await (await fetch('samples/word_car.png')).blob();
    const data = new DataTransfer();
    data.items.add(new File([blob], 'dropped.png', {type: 'image/png'}));
    for (const kind of ['dragover', 'drop']) {
        document.getElementById('drop').dispatchEvent(
            new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
    }
}"""
CAMERA_IS_ON = """new Promise((done) => {
    const video = document.getElementById('video');
    if (video.videoWidth) done(); else video.onloadeddata = done;
})"""


def test_every_source_of_images(new_page: NewPage) -> None:
    page = new_page()
    facts, history = page.locator("#image-facts"), page.locator("#history button")
    choose(page, STAR_PATH, EGGS_PATH)
    expect(facts).to_contain_text("red_star.png · 256 × 256 pixels")
    expect(history).to_have_count(2)
    page.evaluate(PASTE)
    expect(facts).to_contain_text("pasted.png")
    page.evaluate(DROP)
    expect(facts).to_contain_text("dropped.png")
    page.fill("#url", "http://images.example/folder/star.png")
    page.press("#url", "Enter")
    expect(facts).to_contain_text("star.png · 256 × 256")
    page.click("#samples button[data-name='six_eggs.png']")
    expect(facts).to_contain_text("six_eggs.png")
    page.click("#camera")
    page.evaluate(CAMERA_IS_ON)
    page.click("#camera-take")
    expect(facts).to_contain_text("Camera.png")
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(history).to_have_count(6)  # a sample that is already in the tab is not added again
    add(page, "a red star")
    history.first.click()
    expect(facts).to_contain_text("red_star.png")


def test_cached_image_shows_no_times(new_page: NewPage) -> None:
    choose(new_page(), EGGS_PATH)
    page = new_page()
    choose(page, EGGS_PATH)
    expect(page.locator("#image-facts")).to_have_text("six_eggs.png · 256 × 256 pixels · cached")


def test_unreadable_files_and_refused_urls_are_reported(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page()
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    page.set_input_files("#file", str(text))
    expect(page.locator("#toast")).to_contain_text("notes.png: This image format is not supported.")
    page.fill("#url", "http://inside.example/a.png")
    page.press("#url", "Enter")
    expect(page.locator("#toast")).to_contain_text("Only http and https URLs on the public internet")
    expect(page.locator("#history-part")).to_be_hidden()
    choose(page, STAR_PATH, EGGS_PATH)
    add(page, "a red star")
    page.set_input_files("#file", str(text))
    expect(page.locator("#toast")).to_contain_text("notes.png")
    expect(page.locator("#image-facts")).to_contain_text("red_star.png")  # as before, with its table
    expect(rows(page)).to_have_count(1)


def test_format_that_browsers_cannot_show(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page()
    Image.open(STAR_PATH).convert("RGB").save(tmp_path / "star.tga")
    choose(page, tmp_path / "star.tga")
    expect(page.locator("#image-problem")).to_contain_text("the model can read it")
    add(page, "a red star")
    assert float(probabilities(page)[0]) > 0.5


def test_blocked_camera_is_explained(new_page: NewPage, address: str) -> None:
    port = urlsplit(address).port
    page = new_page(f"http://photos.example:{port}/")  # neither localhost nor https
    page.click("#camera")
    expect(page.locator("#camera-problem")).to_contain_text("only on https pages and on this machine itself")
    expect(page.locator("#capture-label")).to_be_visible()
    assert page.locator("#capture").get_attribute("capture") == "environment"
    page.set_input_files("#capture", str(STAR_PATH))
    expect(page.locator("#image-facts")).to_contain_text("red_star.png")
