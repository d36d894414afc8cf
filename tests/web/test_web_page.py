"""The page in a real headless Chromium, end to end."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
from support.web_server import running

import siglip_onnx
from siglip_onnx.cli.output import format_probability
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.web.settings import Settings

STAR = IMAGES_PATH / "red_star.png"
EGGS = IMAGES_PATH / "six_eggs.png"
CHROMIUM = os.environ.get("SIGLIP_ONNX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
NewPage = Callable[..., Page]
expect.set_options(timeout=20_000)  # a watchdog: the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine; install Debian's package chromium")
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
    """The demo model, with an internet of one server that has a picture."""
    internet = FakeInternet({"pictures.example": [PUBLIC], "inside.example": ["127.0.0.1"]})
    settings = Settings(port=0, allowed_hosts=("photos.example",))
    with (
        serving_in_thread(answering(response(STAR.read_bytes())), internet),
        running([siglip_onnx.load("demo")], settings, fetcher=internet.fetcher()) as address,
    ):
        yield address


@pytest.fixture
def new_page(browser: Browser, address: str) -> Iterator[NewPage]:
    """Open pages; at the end no request went elsewhere, and nothing failed or broke the policy."""
    contexts, elsewhere, complaints = [], [], []

    def open_page(url: str = address, *, await_samples: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-US"} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url, url) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if is_complaint(said) else None)
        page.goto(url)
        expect(page.locator("html")).not_to_have_class("loading")
        if await_samples:
            expect(page.locator("#presets button")).not_to_have_count(0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert complaints == []


def is_elsewhere(url: str, own: str) -> bool:
    return not url.startswith(("blob:", "data:")) and urlsplit(url).netloc != urlsplit(own).netloc


def is_complaint(said: Any) -> bool:
    """Refusals by the server are part of some tests, and one page is on plain http; Chromium logs both."""
    expected = ("status of 4", "Cross-Origin-Opener-Policy header has been ignored")
    return said.type in ("error", "warning") and not any(words in said.text for words in expected)


def rows(page: Page) -> Locator:
    return page.locator("#table tbody tr:not(.pending)")


def texts_of(page: Page) -> list[str]:
    return page.locator("#table tbody td.text").all_inner_texts()


def probabilities(page: Page) -> list[str]:
    return page.locator("#table tbody td.probability .bar > span:last-child").all_inner_texts()


def choose(page: Page, *pictures: Path) -> None:
    page.set_input_files("#file", [str(picture) for picture in pictures])
    expect(page.locator("#picture-facts")).to_contain_text("pixels")


def add(page: Page, *texts: str) -> None:
    before = len(texts_of(page))
    page.fill("#text", "\n".join(texts))
    page.press("#text", "Enter")
    expect(rows(page)).to_have_count(before + len(texts))


def test_texts_join_the_table_with_the_librarys_numbers(new_page: NewPage) -> None:
    page = new_page()
    choose(page, STAR)
    add(page, "a red star")
    add(page, "青い星", "six eggs")
    assert texts_of(page) == ["a red star", "青い星", "six eggs"]
    expected = siglip_onnx.load("demo").classify(STAR, texts_of(page))
    assert probabilities(page) == [format_probability(match.probability) for match in expected]
    logits = page.locator("#table tbody td.number[data-label=Logit]").all_inner_texts()
    assert logits == [f"{match.logit:.2f}" for match in expected]
    found = page.locator("#table tbody td.number[data-label=Share]").all_inner_texts()
    assert found[0].startswith("1-") or abs(float(found[0]) - expected[0].relative) < 0.001
    assert "0.000" not in page.locator("#table").inner_text()
    expect(page.locator("#text")).to_be_focused()
    add(page, "a star")  # the picture is not sent again
    page.fill("#text", "a star")
    page.press("#text", "Enter")
    expect(page.locator("#toast")).to_contain_text("Already in the table: 1")
    expect(rows(page)).to_have_count(4)


def test_a_text_costs_one_request_of_texts_alone(new_page: NewPage) -> None:
    page = new_page()
    choose(page, STAR)
    add(page, "a red star")
    with page.expect_request("**/v1/classify") as asked:
        add(page, "a moon")
    sent = json.loads(asked.value.post_data or "")
    assert sent["texts"] == ["a moon"]
    assert list(sent["pictures"][0]) == ["id"]
    reply = asked.value.response()
    assert reply
    assert reply.json()["results"][0]["picture"]["decode_ms"] == 0


def test_numbers_are_written_as_on_the_command_line(new_page: NewPage) -> None:
    page = new_page()
    values = [0.5, 0.1234, 0.00123, 0.000999, 1.4e-4, 3.3e-12, 0.9994, 0.99951, 0.99999, 1e-9, 0.001, 0.0995, 0.9999951]
    script = "async (values) => { const m = await import('/static/format.js'); return values.map(m.threeDigits) }"
    assert page.evaluate(script, [[value, 1 - value] for value in values]) == [format_probability(v) for v in values]
    script = """async (logits) => { const m = await import('/static/format.js');
        return logits.map((logit) => m.threeDigits(m.sigmoid(logit))) }"""
    found = page.evaluate(script, [-700, -200, -20.86, 0, 7.7, 20, 200, 700])
    assert found == ["9.86e-305", "1.38e-87", "8.72e-10", "0.500", "1-4.5e-04", "1-2.1e-09", "1-1.4e-87", "1-9.9e-305"]


def test_every_source_of_pictures(new_page: NewPage) -> None:
    page = new_page()
    facts, history = page.locator("#picture-facts"), page.locator("#history button")
    choose(page, STAR, EGGS)
    expect(facts).to_contain_text("red_star.png · 256 × 256 pixels")
    expect(history).to_have_count(2)
    page.evaluate(
        """async () => {
        const blob = await (await fetch('samples/word_cat.png')).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
        }"""
    )
    expect(facts).to_contain_text("pasted.png")
    page.evaluate(
        """async () => {
        const blob = await (await fetch('samples/word_car.png')).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], 'dropped.png', {type: 'image/png'}));
        for (const kind of ['dragover', 'drop']) {
            document.getElementById('drop').dispatchEvent(
                new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
        }}"""
    )
    expect(facts).to_contain_text("dropped.png")
    page.fill("#url", "http://pictures.example/folder/star.png")
    page.press("#url", "Enter")
    expect(facts).to_contain_text("star.png · 256 × 256")
    page.click("#samples button[data-name='six_eggs.png']")
    expect(facts).to_contain_text("six_eggs.png")
    page.click("#camera")
    page.evaluate(
        """new Promise((done) => {
        const video = document.getElementById('video');
        if (video.videoWidth) done(); else video.onloadeddata = done;
        })"""
    )
    page.click("#camera-take")
    expect(facts).to_contain_text("Camera.png")
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(history).to_have_count(6)  # a sample that is in the tab already is not loaded twice
    add(page, "a red star")
    history.first.click()
    expect(facts).to_contain_text("red_star.png")


def test_what_cannot_be_read_or_fetched_is_said(new_page: NewPage, tmp_path: Path) -> None:
    page = new_page()
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page.set_input_files("#file", str(text))
    expect(page.locator("#toast")).to_contain_text("notes.png: This kind of picture is not supported.")
    page.fill("#url", "http://inside.example/a.png")
    page.press("#url", "Enter")
    expect(page.locator("#toast")).to_contain_text("only http and https addresses of the public internet")
    expect(page.locator("#history-part")).to_be_hidden()
    choose(page, STAR, EGGS)
    add(page, "a red star")
    page.set_input_files("#file", str(text))
    expect(page.locator("#toast")).to_contain_text("notes.png")
    expect(page.locator("#picture-facts")).to_contain_text("red_star.png")  # as before, with its table
    expect(rows(page)).to_have_count(1)


def test_a_format_that_browsers_do_not_show(new_page: NewPage, tmp_path: Path) -> None:
    from PIL import Image

    page = new_page()
    Image.open(STAR).convert("RGB").save(tmp_path / "star.tga")
    choose(page, tmp_path / "star.tga")
    expect(page.locator("#picture-problem")).to_contain_text("the model can read it")
    add(page, "a red star")
    assert float(probabilities(page)[0]) > 0.5


def test_the_camera_is_explained_where_it_is_forbidden(new_page: NewPage, address: str) -> None:
    port = urlsplit(address).port
    page = new_page(f"http://photos.example:{port}/")  # no localhost, no https
    page.click("#camera")
    expect(page.locator("#camera-problem")).to_contain_text("only to pages on https or on this very machine")
    expect(page.locator("#capture-label")).to_be_visible()
    assert page.locator("#capture").get_attribute("capture") == "environment"
    page.set_input_files("#capture", str(STAR))
    expect(page.locator("#picture-facts")).to_contain_text("red_star.png")


def test_edit_delete_sort_and_undo(new_page: NewPage) -> None:
    page = new_page()
    choose(page, STAR)
    add(page, "six eggs", "a red star", "a blue star")
    page.get_by_role("button", name="Edit “six eggs”").click()
    editor = page.locator("td.text input")
    expect(editor).to_be_focused()
    editor.fill("something red")
    editor.press("Enter")
    expect(page.get_by_role("button", name="Edit “something red”")).to_be_focused()
    expect(rows(page)).to_have_count(3)
    page.get_by_role("button", name="Edit “something red”").click()
    editor.fill("thrown away")
    editor.press("Escape")
    assert texts_of(page) == ["something red", "a red star", "a blue star"]
    header = page.get_by_role("columnheader", name="Probability")
    for expected, order in (
        ("descending", ["a red star", "something red", "a blue star"]),
        ("ascending", ["a blue star", "something red", "a red star"]),
        ("none", ["something red", "a red star", "a blue star"]),
    ):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", expected)
        assert texts_of(page) == order
    page.get_by_role("button", name="Delete “a red star”").click()
    assert texts_of(page) == ["something red", "a blue star"]
    expect(page.get_by_role("button", name="Delete “a blue star”")).to_be_focused()
    page.locator("#toast").get_by_role("button", name="Undo").click()
    assert texts_of(page) == ["something red", "a red star", "a blue star"]
    page.click("#clear")
    expect(page.locator("#empty")).to_be_visible()
    page.keyboard.press("Control+z")
    expect(rows(page)).to_have_count(3)
    page.click("#undo")  # the edit
    assert texts_of(page)[0] == "six eggs"
    expect(rows(page)).to_have_count(3)
    page.click("#undo")  # the three texts
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#undo")).to_be_disabled()


def test_a_new_picture_clears_the_table_and_gives_it_back(new_page: NewPage) -> None:
    page = new_page()
    choose(page, STAR)
    add(page, "a red star", "six eggs")
    choose(page, EGGS)
    expect(page.locator("#toast")).to_contain_text("A new picture")
    expect(page.locator("#empty")).to_be_visible()
    page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(page.locator("#picture-facts")).to_contain_text("red_star.png")
    expect(rows(page)).to_have_count(2)
    page.locator("#history button").nth(1).click()
    page.locator("#toast").get_by_role("button", name="Ask the same texts").click()
    expect(rows(page)).to_have_count(2)
    first, second = probabilities(page)
    assert "e-" in first  # no red star here
    assert float(second) > 0.5
    page.locator("#history button").nth(0).click()  # its own table is there again
    assert float(probabilities(page)[0]) > 0.5


def test_the_template_asks_again(new_page: NewPage) -> None:
    page = new_page()
    choose(page, STAR)
    add(page, "red star")
    page.click("#options summary")
    page.fill("#template", "a star")
    page.press("#template", "Enter")
    expect(page.locator("#template-problem")).to_contain_text("needs {}")
    page.fill("#template", "a {} on a light background")
    page.press("#template", "Enter")
    expected = siglip_onnx.load("demo").classify(STAR, ["red star"], template="a {} on a light background")
    expect(page.locator(".bar > span:last-child")).to_have_text(format_probability(expected[0].probability))
    assert parse_qs(urlsplit(page.url).fragment)["template"] == ["a {} on a light background"]


def test_export_and_sharing(new_page: NewPage) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    choose(page, STAR)
    texts = ['the word "cat"', "赤い星, 青い星", "=1+1|x"]
    add(page, *texts)
    expected = siglip_onnx.load("demo").classify(STAR, texts)
    with page.expect_download() as download:
        page.click("#csv")
    content = Path(download.value.path()).read_bytes().decode("utf-8-sig")
    table = list(csv.DictReader(io.StringIO(content)))
    assert [line["text"] for line in table] == [*texts[:2], f"'{texts[2]}"]  # no formula for a spreadsheet
    for line, match in zip(table, expected, strict=True):
        assert float(line["logit"]) == match.logit
        assert float(line["probability"]) == pytest.approx(match.probability, rel=1e-6)
        assert float(line["relative"]) == pytest.approx(match.relative, rel=1e-5)
    with page.expect_download() as download:
        page.click("#json")
    document = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [match["text"] for match in document["matches"]] == texts
    assert document["picture"] == {"name": "red_star.png", "width": 256, "height": 256}
    page.click("#markdown")
    expect(page.locator("#toast")).to_contain_text("Markdown")
    markdown = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert markdown[0] == "| Text | Logit | Probability | Share |"
    assert markdown[4].startswith("| =1+1\\|x | ")
    page.click("#link")
    expect(page.locator("#toast")).to_contain_text("holds the texts, not the picture")
    link = page.evaluate("navigator.clipboard.readText()")
    assert parse_qs(urlsplit(link).fragment) == {"text": texts}
    assert urlsplit(link).query == ""
    other = new_page(link)
    assert texts_of(other) == texts
    expect(other.locator("#waiting")).to_be_visible()
    choose(other, STAR)
    expect(rows(other)).to_have_count(3)
    assert probabilities(other) == probabilities(page)


def test_japanese_and_its_input_method(new_page: NewPage) -> None:
    page = new_page(locale="ja-JP")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page.get_by_role("button", name="追加")).to_be_visible()
    page.set_input_files("#file", str(STAR))
    page.focus("#text")
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "あかいほし", "selectionStart": 5, "selectionEnd": 5})
    page.evaluate(
        """document.getElementById('text').dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"""
    )
    assert texts_of(page) == []  # Enter took a word of the input method
    keyboard.send("Input.insertText", {"text": "赤い星"})
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    assert texts_of(page) == ["赤い星"]
    assert float(probabilities(page)[0]) > 0.5
    page.click("#language")
    expect(page.get_by_role("button", name="Add")).to_be_visible()
    assert texts_of(page) == ["赤い星"]
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")  # remembered
    expect(page.locator("#table tbody td.text")).to_have_text("赤い星")


@pytest.mark.parametrize(("name", "pictures"), [("Counting", 6), ("Reading", 4)])
def test_presets_fill_the_heat_map(new_page: NewPage, name: str, images: int) -> None:
    page = new_page()
    page.get_by_role("button", name=name).click()
    expect(page.locator("#heat tbody tr")).to_have_count(images)
    expect(page.locator("#heat tbody td")).to_have_count(images * 6)
    expect(rows(page)).to_have_count(6)
    best = page.locator("#heat td.best")
    expect(best).to_have_count(images)
    columns = best.evaluate_all("cells => cells.map((cell) => cell.cellIndex - 1)")
    assert columns == ([0, 1, 2, 3, 4, 5] if images == 6 else [0, 1, 3, 4])


def test_variants_are_compared(new_page: NewPage, small_bundle: Path) -> None:
    models = [siglip_onnx.load(small_bundle, variant=variant) for variant in ("int8", "fp32")]
    with running(models) as address:
        page = new_page(address)
        choose(page, STAR, EGGS)
        add(page, "a red circle", "犬")
        expected = [model.classify(STAR, ["a red circle", "犬"]) for model in models]
        found = probabilities(page)
        assert found == [format_probability(one[text].probability) for text in range(2) for one in expected]
        assert page.locator("#table tbody td.model").first.inner_text().split()[-1] == "fp32"
        largest = max(abs(one.probability - other.probability) for one, other in zip(*expected, strict=True))
        expect(page.locator("#difference")).to_contain_text(f"at most {format_probability(largest)}")
        page.click("#heat-run")
        expect(page.locator("#heat tbody tr")).to_have_count(2)
        cell = page.locator("#heat tbody td").first
        expect(cell).to_have_text(format_probability(expected[0][0].probability))
        page.select_option("#heat-model", label="fp32")
        expect(cell).to_have_text(format_probability(expected[1][0].probability))


def test_by_keyboard_alone(new_page: NewPage) -> None:
    page = new_page()
    press = page.keyboard.press

    def reach(selector: str) -> None:
        for _ in range(120):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            press("Tab")
        raise AssertionError(f"{selector} was not reached by Tab")

    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reach("#samples button[data-name='red_star.png']")
    press("Enter")
    expect(page.locator("#picture-facts")).to_contain_text("red_star.png")
    reach("#text")
    page.keyboard.type("a red star")
    press("Enter")
    page.keyboard.type("a moon")
    press("Shift+Enter")
    page.keyboard.type("a cross")
    press("Enter")
    expect(rows(page)).to_have_count(3)
    reach("button[data-column='probability']")
    press("Enter")
    assert texts_of(page)[0] == "a red star"
    reach("[data-action='delete']")
    press("Enter")
    expect(rows(page)).to_have_count(2)
    press("Control+z")
    expect(rows(page)).to_have_count(3)
    reach("#heat-run")
    press("Enter")
    expect(page.locator("#heat tbody td")).to_have_count(3)
    page.focus("#camera")
    press("Enter")
    expect(page.locator("#camera-dialog")).to_be_visible()
    press("Escape")
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(page.locator("#camera")).to_be_focused()


@pytest.mark.parametrize("language", ["en-US", "ja-JP"])
def test_on_a_phone(new_page: NewPage, language: str) -> None:
    page = new_page(locale=language, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page.locator("#presets button").first.tap()
    expect(page.locator("#heat tbody tr")).to_have_count(6)
    expect(rows(page)).to_have_count(6)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing sticks out
    small = page.evaluate(
        """[...document.querySelectorAll('button, .button, input:not(.visually-hidden), summary')]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML)"""
    )
    assert small == []


def test_the_key_is_asked_for(new_page: NewPage) -> None:
    with running([siglip_onnx.load("demo")], Settings(port=0, api_key="open")) as address:
        page = new_page(address, await_samples=False)
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key", "open")
        page.keyboard.press("Enter")
        expect(page.locator("#samples button")).not_to_have_count(0)
        choose(page, STAR)
        add(page, "a red star")


@pytest.mark.parametrize(
    ("language", "scheme", "width"), [("en-US", "light", 1280), ("ja-JP", "dark", 1280), ("en-US", "dark", 390)]
)
def test_accessible_to_everyone(new_page: NewPage, language: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = new_page(locale=language, color_scheme=scheme, viewport={"width": width, "height": 900})
    serious = lambda: [  # noqa: E731
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in axe.run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious() == []
    page.locator("#presets button").first.click()
    expect(page.locator("#heat tbody tr")).to_have_count(6)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    page.locator("[data-action=edit]").first.click()
    assert serious() == []
    page.locator("#camera").click()
    assert serious() == []
