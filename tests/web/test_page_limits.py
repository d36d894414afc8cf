"""What the page does at its limits: blocked site data, large photos, long texts, many images, small screens."""

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from support.web_page import NewPage, add, choose, page_of_star, probabilities, rows
from support.web_server import STAR_PATH, running

import siglip_onnx
from siglip_onnx.model import SigLIP
from siglip_onnx.web.settings import Limits, Settings

BLOCKED = """for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
    Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}"""


def test_page_works_where_the_browser_blocks_site_data(new_page: NewPage) -> None:
    page = new_page()
    page.context.add_init_script(BLOCKED)
    page.reload()
    choose(page, STAR_PATH)
    add(page, "a red star")
    assert float(probabilities(page)[0]) > 0.5
    page.click("#theme")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.click("#theme")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.click("#language")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def photo_of(width: int, height: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def test_photo_of_48_megapixels(new_page: NewPage, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_of(8064, 6048))
    page = new_page()
    page.set_input_files("#file", str(path))
    expect(page.locator("#image-facts")).to_contain_text("8064 × 6048 pixels", timeout=60_000)
    add(page, "a red star")


def test_photo_of_the_camera_is_not_reduced(new_page: NewPage, stack: ExitStack) -> None:
    """A photo whose PNG is too large for the server becomes a JPEG of the same number of pixels."""
    limits = Limits(image=replace(Limits().image, max_bytes=120_000))
    address = stack.enter_context(running([siglip_onnx.load("demo")], Settings(port=0, limits=limits)))
    for url, name in ((address, "Camera.jpeg"), (None, "Camera.png")):
        page = new_page(url) if url else new_page()
        page.click("#camera")
        expect(page.locator("#camera-take")).to_be_visible()
        for _ in range(600):
            if (size := page.evaluate("[video.videoWidth, video.videoHeight].join(' × ')")) != "0 × 0":
                break
            page.wait_for_timeout(50)
        page.click("#camera-take")
        expect(page.locator("#image-facts")).to_contain_text(f"{name} · {size} pixels")


def test_truncated_texts_are_named(new_page: NewPage) -> None:
    page = page_of_star(new_page, "a red star", "a star " * 100)
    notes = page.locator("td.text .problem")
    expect(notes).to_have_count(1)
    expect(notes).to_have_text("The model reads only the beginning of this text.")


def test_long_texts_are_refused_not_cut(new_page: NewPage) -> None:
    page = page_of_star(new_page, "a red star")
    page.fill("#text", "x" * 4097)
    page.press("#text", "Enter")
    expect(page.locator("#toast")).to_contain_text("at most 4096 characters")
    expect(page.locator("#text")).to_have_value("x" * 4097)
    page.get_by_role("button", name="Edit “a red star”").click()
    page.locator("td.text input").fill("y" * 4097)
    page.locator("td.text input").press("Enter")
    expect(page.locator("#toast")).to_contain_text("at most 4096 characters")
    expect(page.locator("td.text")).to_have_text("a red star")


def test_images_that_the_tab_does_not_keep_are_counted(new_page: NewPage, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(66)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    page = new_page()
    page.set_input_files("#file", [str(path) for path in paths])
    expect(page.locator("#toast")).to_contain_text("at most 64 images: 2 were left out")
    expect(page.locator("#history button")).to_have_count(64)


def test_requests_stay_within_the_limits_of_the_server(new_page: NewPage, stack: ExitStack) -> None:
    address = stack.enter_context(
        running([siglip_onnx.load("demo")], Settings(port=0, limits=Limits(texts=4, images=2)))
    )
    page = new_page(address)
    page.locator("#presets button").first.click()  # six images and six texts
    expect(page.locator("#heat tbody tr")).to_have_count(6)
    expect(page.locator("#heat tbody td")).to_have_count(36)
    expect(page.locator("#heat td.best")).to_have_count(6)
    expect(rows(page)).to_have_count(6)


@pytest.mark.parametrize("language", ["en-US", "ja-JP"])
def test_text_field_is_in_sight_on_a_phone(new_page: NewPage, language: str) -> None:
    page = new_page(locale=language, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    for _ in range(2):  # without and with an image
        page.evaluate("scrollTo(0, 0)")
        box = page.locator("#text").bounding_box()
        assert box
        assert box["y"] + box["height"] <= 640
        page.set_input_files("#file", str(STAR_PATH))
        expect(page.locator("#image-facts")).to_contain_text("256 × 256")


def test_other_models_show_nothing_of_the_demo(new_page: NewPage, stack: ExitStack) -> None:
    demo = siglip_onnx.load("demo")
    manifest = replace(demo.bundle.manifest, model_name="other", description="")
    address = stack.enter_context(running([SigLIP(replace(demo.bundle, manifest=manifest))]))
    page = new_page(address, await_samples=False)
    expect(page.locator("#models")).to_have_text("other int8")
    for part in ("#samples-part", "#presets"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.locator("#description")).to_have_text("")
    choose(page, STAR_PATH)
    add(page, "a red star")
