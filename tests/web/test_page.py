"""The page in a headless Chromium: sources of images, the table, templates, presets, comparison of models."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import expect
from support.web_page import NewPage, add, choose, format_probability, page_of_star, probabilities, rows, texts_of
from support.web_server import EGGS_PATH, STAR_PATH, running

import siglip_onnx


def test_table_shows_the_numbers_of_the_library(new_page: NewPage) -> None:
    page = page_of_star(new_page, "a red star")
    add(page, "青い星", "six eggs")
    assert texts_of(page) == ["a red star", "青い星", "six eggs"]
    expected = siglip_onnx.load("demo").classify(STAR_PATH, texts_of(page))
    assert probabilities(page) == [format_probability(match.probability) for match in expected]
    logits = page.locator("#table tbody td.number[data-label=Logit]").all_inner_texts()
    assert logits == [f"{match.logit:.2f}" for match in expected]
    shares = page.locator("#table tbody td.number[data-label=Relative]").all_inner_texts()
    assert shares[0].startswith("1-") or abs(float(shares[0]) - expected[0].relative) < 0.001
    assert "0.000" not in page.locator("#table").inner_text()
    expect(page.locator("#text")).to_be_focused()
    page.fill("#text", "six eggs")
    page.press("#text", "Enter")
    expect(page.locator("#toast")).to_contain_text("Already in the table: 1")
    expect(rows(page)).to_have_count(3)


def test_adding_a_text_sends_only_the_text(new_page: NewPage) -> None:
    page = page_of_star(new_page, "a red star")
    with page.expect_request("**/v1/classify") as request:
        add(page, "a moon")
    body = json.loads(request.value.post_data or "")
    assert body["texts"] == ["a moon"]
    assert list(body["images"][0]) == ["id"]
    response = request.value.response()
    assert response
    assert response.json()["results"][0]["image"]["decode_ms"] == 0


def test_numbers_are_formatted_as_on_the_command_line(new_page: NewPage) -> None:
    page = new_page()
    values = [0.5, 0.1234, 0.00123, 0.000999, 1.4e-4, 3.3e-12, 0.9994, 0.99951, 0.99999, 1e-9, 0.001, 0.0995, 0.9999951]
    script = "async (values) => { const m = await import('/static/format.js'); return values.map(m.threeDigits) }"
    assert page.evaluate(script, [[value, 1 - value] for value in values]) == [format_probability(v) for v in values]
    script = """async (logits) => { const m = await import('/static/format.js');
        return logits.map((logit) => m.threeDigits(m.sigmoid(logit))) }"""
    formatted = page.evaluate(script, [-700, -200, -20.86, 0, 7.7, 20, 200, 700])
    assert formatted == [
        "9.86e-305", "1.38e-87", "8.72e-10", "0.500", "1-4.5e-04", "1-2.1e-09", "1-1.4e-87", "1-9.9e-305",
    ]  # fmt: skip


def test_shares_of_many_logits_are_exact_and_quick(new_page: NewPage) -> None:
    """With 20,000 labels, a sum over all others for each took half a minute; now it takes milliseconds."""
    script = """async (logits) => { const m = await import('/static/format.js');
        const start = performance.now();
        const found = m.shares(logits);
        return [found, performance.now() - start]; }"""
    page = new_page()
    found, _ = page.evaluate(script, [-1.0, 20.0, 3.5, 20.0, -700.0])
    weights = [math.exp(logit - 20) for logit in (-1.0, 20.0, 3.5, 20.0, -700.0)]
    for number, (share, rest) in enumerate(found):
        assert share == pytest.approx(weights[number] / sum(weights))
        assert rest == pytest.approx(sum(weights[:number] + weights[number + 1 :]) / sum(weights))
    ((best, rest), *_), _ = page.evaluate(script, [40.0, 0.0, -1.0])
    assert (best, rest) == (1, pytest.approx((1 + math.exp(-1)) * math.exp(-40)))
    found, milliseconds = page.evaluate(script, [0.0] * 40_000)
    assert found[0] == [1 / 40_000, 39_999 / 40_000]
    assert milliseconds < 1000


def test_edit_sort_delete_and_undo(new_page: NewPage) -> None:
    page = page_of_star(new_page, "six eggs", "a red star", "a blue star")
    page.get_by_role("button", name="Edit “six eggs”").click()
    editor = page.locator("td.text input")
    expect(editor).to_be_focused()
    editor.fill("something red")
    editor.press("Enter")
    expect(page.get_by_role("button", name="Edit “something red”")).to_be_focused()
    expect(rows(page)).to_have_count(3)
    page.get_by_role("button", name="Edit “something red”").click()
    editor.fill("discarded")
    editor.press("Escape")
    assert texts_of(page) == ["something red", "a red star", "a blue star"]
    header = page.get_by_role("columnheader", name="Probability")
    for direction, order in (
        ("descending", ["a red star", "something red", "a blue star"]),
        ("ascending", ["a blue star", "something red", "a red star"]),
        ("none", ["something red", "a red star", "a blue star"]),
    ):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", direction)
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


def test_new_image_empties_the_table_and_undo_restores_it(new_page: NewPage) -> None:
    page = page_of_star(new_page, "a red star", "six eggs")
    choose(page, EGGS_PATH)
    expect(page.locator("#toast")).to_contain_text("New image")
    expect(page.locator("#empty")).to_be_visible()
    page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(page.locator("#image-facts")).to_contain_text("red_star.png")
    expect(rows(page)).to_have_count(2)
    page.locator("#history button").nth(1).click()
    page.locator("#toast").get_by_role("button", name="Add the same texts").click()
    expect(rows(page)).to_have_count(2)
    star, eggs = probabilities(page)
    assert "e-" in star  # not in this image
    assert float(eggs) > 0.5
    page.locator("#history button").nth(0).click()  # shows its own table
    assert float(probabilities(page)[0]) > 0.5


def test_template_change_recomputes_the_table(new_page: NewPage) -> None:
    page = page_of_star(new_page, "red star")
    page.click("#options summary")
    page.fill("#template", "a star")
    page.press("#template", "Enter")
    expect(page.locator("#template-problem")).to_contain_text("must contain {}")
    page.fill("#template", "a {} on a light background")
    page.press("#template", "Enter")
    expected = siglip_onnx.load("demo").classify(STAR_PATH, ["red star"], template="a {} on a light background")
    expect(page.locator(".bar > span:last-child")).to_have_text(format_probability(expected[0].probability))
    assert parse_qs(urlsplit(page.url).fragment)["template"] == ["a {} on a light background"]


@pytest.mark.parametrize(
    ("preset", "images", "best_columns"), [("Counting", 6, [0, 1, 2, 3, 4, 5]), ("Reading", 4, [0, 1, 3, 4])]
)
def test_preset_fills_the_heat_map(new_page: NewPage, preset: str, images: int, best_columns: list[int]) -> None:
    page = new_page()
    page.get_by_role("button", name=preset).click()
    expect(page.locator("#heat tbody tr")).to_have_count(images)
    expect(page.locator("#heat tbody td")).to_have_count(images * 6)
    expect(rows(page)).to_have_count(6)
    best = page.locator("#heat td.best")
    expect(best).to_have_count(images)
    assert best.evaluate_all("cells => cells.map((cell) => cell.cellIndex - 1)") == best_columns


@pytest.mark.export
def test_variants_are_compared(new_page: NewPage, stack: ExitStack, small_bundle: Path) -> None:
    models = [siglip_onnx.load(small_bundle, variant=variant) for variant in ("int8", "fp32")]
    address = stack.enter_context(running(models))
    page = new_page(address, await_samples=False)
    choose(page, STAR_PATH, EGGS_PATH)
    add(page, "a red circle", "犬")
    int8, fp32 = (model.classify(STAR_PATH, ["a red circle", "犬"]) for model in models)
    expected = [match.probability for pair in zip(int8, fp32, strict=True) for match in pair]
    assert probabilities(page) == [format_probability(probability) for probability in expected]
    assert page.locator("#table tbody td.model").first.inner_text().split()[-1] == "fp32"
    largest = max(abs(one.probability - other.probability) for one, other in zip(int8, fp32, strict=True))
    expect(page.locator("#difference")).to_contain_text(f"at most {format_probability(largest)}")
    page.click("#heat-run")
    expect(page.locator("#heat tbody tr")).to_have_count(2)
    cell = page.locator("#heat tbody td").first
    expect(cell).to_have_text(format_probability(int8[0].probability))
    page.select_option("#heat-model", label="fp32")
    expect(cell).to_have_text(format_probability(fp32[0].probability))


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
