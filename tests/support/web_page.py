"""Operate the web page in a browser."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, expect
from support.web_server import STAR_PATH

NewPage = Callable[..., Page]
expect.set_options(timeout=20_000)  # generous: the machine may be busy


def rows(page: Page) -> Locator:
    return page.locator("#table tbody tr:not(.pending)")


def texts_of(page: Page) -> list[str]:
    return page.locator("#table tbody td.text").all_inner_texts()


def probabilities(page: Page) -> list[str]:
    return page.locator("#table tbody td.probability .bar > span:last-child").all_inner_texts()


def format_probability(value: float) -> str:
    """Return a probability as the page shows it: ``0.987``, ``1.40e-04``, never rounded to 0 or 1."""
    if 0 < value < 0.001:
        return f"{value:.2e}"
    if 0.9995 <= value < 1:
        return f"1-{1 - value:.1e}"
    return f"{value:#.3g}"


def choose(page: Page, *images: Path) -> None:
    page.set_input_files("#file", [str(image) for image in images])
    expect(page.locator("#image-facts")).to_contain_text("pixels")


def add(page: Page, *texts: str) -> None:
    count = len(texts_of(page))
    page.fill("#text", "\n".join(texts))
    page.press("#text", "Enter")
    expect(rows(page)).to_have_count(count + len(texts))


def page_of_star(new_page: NewPage, *texts: str, **options: object) -> Page:
    """Open a page, choose the image of the red star, and add texts."""
    page = new_page(**options)
    choose(page, STAR_PATH)
    add(page, *texts)
    return page


def run_first_preset(page: Page) -> None:
    """Fill in the counting experiment, and open every part of the page that can be opened."""
    page.locator("#presets button").first.click()
    expect(page.locator("#heat tbody tr")).to_have_count(6)
    expect(rows(page)).to_have_count(6)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
