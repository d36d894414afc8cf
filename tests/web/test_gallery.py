"""The page of ``search --html`` and ``duplicates --html`` in a headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.images import make_image

from siglip_onnx.bulk.gallery import Group, Tile, render_gallery

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NUM_IMAGES = 5


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    """A page of images of different shapes with long and Japanese names, and one image that is missing."""
    rng = np.random.default_rng(1)
    tiles = []
    for number, size in enumerate(((1600, 400), (300, 900), (1200, 1200), (40, 30))):
        name = f"{number}_{'夕焼けの海' * 9}.jpg" if number % 2 else f"{number}_{'a' * 90}.png"
        make_image(rng, size).save(tmp_path / name)
        tiles.append(Tile(str(tmp_path / name), f"{90 - number}.1 %", "similarity 0.1", f"写真/2024/{name}"))
    tiles.append(Tile(str(tmp_path / "missing.png"), "< 0.1 %"))
    page = tmp_path / "page.html"
    page.write_text(render_gallery("a <b> star − 海", "写真 · demo, int8", [Group("", tiles)]), encoding="utf-8")
    return page


@pytest.mark.parametrize(("width", "height", "columns"), [(360, 640, 2), (412, 915, 2), (1280, 800, 4)])
def test_page_fits_phones_and_enlarges_images(
    browser: Browser, page_path: Path, width: int, height: int, columns: int
) -> None:
    complaints: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_path.as_uri())
    assert page.locator("h1").inner_text() == "a <b> star − 海"
    assert page.locator("header p").inner_text() == "写真 · demo, int8"
    assert page.locator(".rank").all_inner_texts() == [str(rank) for rank in range(1, NUM_IMAGES + 1)]
    assert page.locator("b").all_inner_texts() == ["90.1 %", "89.1 %", "88.1 %", "87.1 %", "< 0.1 %"]
    assert page.locator(".folder").all_inner_texts()[:4] == ["写真/2024/"] * 4
    assert page.locator(".unreadable").inner_text() == "cannot be read"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    grid = page.evaluate("getComputedStyle(document.querySelector('ul')).gridTemplateColumns")
    assert len(grid.split()) == columns
    places = page.locator("li").evaluate_all("all => all.map(one => JSON.stringify(one.getBoundingClientRect()))")

    first = page.locator("summary img").first
    sharpness = first.evaluate("image => image.naturalWidth / image.clientWidth")
    assert sharpness >= 3
    page.locator("summary").first.click()
    box = first.bounding_box()
    assert box
    assert (box["width"], box["height"]) == (width, height)
    assert page.locator("details[open] > a").get_attribute("href") == next(page_path.parent.glob("0_*")).as_uri()
    assert places == page.locator("li").evaluate_all(
        "all => all.map(one => JSON.stringify(one.getBoundingClientRect()))"
    )
    page.keyboard.press("Enter")  # closes it, because it has the focus
    assert page.locator("details[open]").count() == 0
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_path.as_uri()]
    page.close()


def test_large_pages_have_smaller_thumbnails(tmp_path: Path) -> None:
    make_image(np.random.default_rng(1), (1600, 1600)).save(tmp_path / "a.jpg", quality=95)
    tile = Tile(str(tmp_path / "a.jpg"), "1")
    few, many = (render_gallery("", "", [Group("", [tile] * count)]) for count in (40, 41))
    assert len(many) < len(few) / 2
    assert many.count("<li>") == 41
