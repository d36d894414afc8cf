"""Access to the page in a headless Chromium: export and links, languages, keyboard, phone, axe, API key."""

import csv
import io
import json
import re
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect
from support.web_page import NewPage, add, choose, page_of_star, probabilities, rows, run_first_preset, texts_of
from support.web_server import STAR_PATH, running

import siglip_onnx
from siglip_onnx.web.settings import Settings

TEXTS = ['the word "cat"', "赤い星, 青い星", "=1+1|x"]


def download(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_bytes().decode("utf-8-sig")


def test_export_as_csv_json_and_markdown(new_page: NewPage) -> None:
    page = page_of_star(new_page, *TEXTS, permissions=["clipboard-read", "clipboard-write"])
    expected = siglip_onnx.load("demo").classify(STAR_PATH, TEXTS)
    table = list(csv.DictReader(io.StringIO(download(page, "#csv"))))
    assert [line["text"] for line in table] == [*TEXTS[:2], f"'{TEXTS[2]}"]  # not a formula for a spreadsheet
    for line, match in zip(table, expected, strict=True):
        assert float(line["logit"]) == match.logit
        assert float(line["probability"]) == pytest.approx(match.probability, rel=1e-6)
        assert float(line["relative"]) == pytest.approx(match.relative, rel=1e-5)
    document = json.loads(download(page, "#json"))
    assert [match["text"] for match in document["matches"]] == TEXTS
    assert document["image"] == {"name": "red_star.png", "width": 256, "height": 256}
    page.click("#markdown")
    expect(page.locator("#toast")).to_contain_text("Markdown")
    markdown = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert markdown[0] == "| Text | Logit | Probability | Relative |"
    assert markdown[4].startswith("| =1+1\\|x | ")


def test_texts_of_a_link_that_are_too_long_are_left_out(new_page: NewPage, address: str) -> None:
    """The server counts characters, not units of UTF-16, and would refuse all texts of a request with one."""
    smiles = "😀" * 3000
    page = new_page(f"{address}#text=a+red+star&text={'x' * 4097}&text={smiles}")
    assert texts_of(page) == ["a red star", smiles]
    expect(page.locator("#toast")).to_contain_text("4096")


def test_link_contains_the_texts_but_not_the_image(new_page: NewPage) -> None:
    page = page_of_star(new_page, *TEXTS, permissions=["clipboard-read", "clipboard-write"])
    page.click("#link")
    expect(page.locator("#toast")).to_contain_text("contains the texts, not the image")
    link = page.evaluate("navigator.clipboard.readText()")
    assert parse_qs(urlsplit(link).fragment) == {"text": TEXTS}
    assert urlsplit(link).query == ""
    other = new_page(link)
    assert texts_of(other) == TEXTS
    expect(other.locator("#waiting")).to_be_visible()
    choose(other, STAR_PATH)
    expect(rows(other)).to_have_count(3)
    assert probabilities(other) == probabilities(page)


def test_japanese_and_its_input_method(new_page: NewPage) -> None:
    page = new_page(locale="ja-JP")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page.get_by_role("button", name="追加")).to_be_visible()
    page.set_input_files("#file", str(STAR_PATH))
    page.focus("#text")
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "あかいほし", "selectionStart": 5, "selectionEnd": 5})
    page.evaluate(
        """document.getElementById('text').dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"""
    )
    assert texts_of(page) == []  # Enter selected a word of the input method
    keyboard.send("Input.insertText", {"text": "赤い星"})
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    assert texts_of(page) == ["赤い星"]
    assert float(probabilities(page)[0]) > 0.5
    page.click("#language")
    expect(page.get_by_role("button", name="Add", exact=True)).to_be_visible()
    assert texts_of(page) == ["赤い星"]
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")  # remembered
    expect(page.locator("#table tbody td.text")).to_have_text("赤い星")


def test_keyboard_alone_is_enough(new_page: NewPage) -> None:
    page = new_page()
    press = page.keyboard.press

    def tab_to(selector: str) -> None:
        for _ in range(120):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to("#samples button[data-name='red_star.png']")
    press("Enter")
    expect(page.locator("#image-facts")).to_contain_text("red_star.png")
    tab_to("#text")
    page.keyboard.type("a red star")
    press("Enter")
    page.keyboard.type("a moon")
    press("Shift+Enter")
    page.keyboard.type("a cross")
    press("Enter")
    expect(rows(page)).to_have_count(3)
    tab_to("button[data-column='probability']")
    press("Enter")
    assert texts_of(page)[0] == "a red star"
    tab_to("[data-action='delete']")
    press("Enter")
    expect(rows(page)).to_have_count(2)
    press("Control+z")
    expect(rows(page)).to_have_count(3)
    tab_to("#heat-run")
    press("Enter")
    expect(page.locator("#heat tbody td")).to_have_count(3)
    page.focus("#camera")
    press("Enter")
    expect(page.locator("#camera-dialog")).to_be_visible()
    press("Escape")
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(page.locator("#camera")).to_be_focused()


@pytest.mark.parametrize("language", ["en-US", "ja-JP"])
def test_phone_needs_no_sideways_scrolling(new_page: NewPage, language: str) -> None:
    page = new_page(locale=language, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    run_first_preset(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small_targets = page.evaluate(
        """[...document.querySelectorAll('button, .button, input:not(.visually-hidden), summary')]
        .filter((target) => target.offsetParent && target.getBoundingClientRect().height < 24)
        .map((target) => target.outerHTML)"""
    )
    assert small_targets == []


@pytest.mark.parametrize(
    ("language", "scheme", "width"), [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("en-US", "dark", 390)]
)
def test_axe_reports_no_serious_violation(new_page: NewPage, language: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = new_page(locale=language, color_scheme=scheme, viewport={"width": width, "height": 900})

    def serious_violations() -> list[tuple[str, list[str]]]:
        return [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in axe.run(page).response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]

    assert serious_violations() == []
    run_first_preset(page)
    page.locator("[data-action=edit]").first.click()
    assert serious_violations() == []
    page.locator("#camera").click()
    assert serious_violations() == []


def test_page_asks_for_the_api_key(new_page: NewPage, stack: ExitStack) -> None:
    address = stack.enter_context(running([siglip_onnx.load("demo")], Settings(port=0, api_key="open")))
    page = new_page(address, await_samples=False)
    expect(page.locator("#key-dialog")).to_be_visible()
    get_models = "const { getModels } = await import('./static/api.js'); return getModels()"
    page.evaluate(f"""() => {{
        const marks = document.documentElement.dataset;
        marks.answers = "";
        for (const name of ["a", "b"]) (async () => {{ {get_models}; }})().then(() => {{ marks.answers += name; }});
    }}""")
    page.fill("#key", "open")
    page.keyboard.press("Enter")
    expect(page.locator("#samples button")).not_to_have_count(0)
    expect(page.locator("html")).to_have_attribute("data-answers", re.compile("ab|ba"))  # both waited for the key
    choose(page, STAR_PATH)
    add(page, "a red star")
