"""The page of examples/browser/ in Chromium: its self-check, its pixels, files, camera, no network."""

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from support.commands import run
from support.drawn import NAMES_EN, draw_folders
from support.examples import EXAMPLES, run_example
from support.images import make_image

import siglip_onnx
from siglip_onnx.classifier import Classifier
from siglip_onnx.demo import IMAGES_PATH

pytestmark = pytest.mark.export  # compiles classifiers
RUNTIME = EXAMPLES.parent / "tests" / "javascript" / "node_modules" / "onnxruntime-web"
LABELS = ["a red star", "six eggs", "a blue circle"]
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The demo model as a classifier, with each of the two filters that SigLIP and SigLIP 2 use."""
    import onnx

    from siglip_onnx.export.compile import compile_classifier

    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not installed: make javascript")
    folder = tmp_path_factory.mktemp("classifiers")
    compile_classifier(siglip_onnx.load("demo"), LABELS, folder / "demo.onnx", uint8=True)
    paths = {}
    for resample in (BILINEAR, BICUBIC):
        model = onnx.load(folder / "demo.onnx")
        (entry,) = (entry for entry in model.metadata_props if entry.key == "siglip_onnx")
        entry.value = json.dumps(json.loads(entry.value) | {"resample": int(resample)})
        paths[resample] = folder / f"{int(resample)}.onnx"
        onnx.save(model, paths[resample])
    return paths


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Images that a browser could treat otherwise: large, turned by EXIF, transparent, tiny, gray."""
    random = np.random.default_rng(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "photo.jpg": (make_image(random, (1500, 1000)), {"quality": 92}),
        "turned.jpg": (make_image(random, (640, 427)), {"exif": exif.tobytes(), "quality": 90}),
        "transparent.png": (Image.fromarray(random.integers(0, 256, (90, 70, 4), np.uint8)), {}),
        "tiny.webp": (make_image(random, (21, 9)), {"lossless": True}),
        "gray.png": (make_image(random, (300, 200)).convert("L"), {}),
    }
    for name, (image, options) in saved.items():
        image.save(tmp_path / name, **options)
    return {name: tmp_path / name for name in saved} | {"star": IMAGES_PATH / "red_star.png"}


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def prepare(classifier: Path, image: Path, site: Path) -> Path:
    done = run_example(EXAMPLES / "browser" / "prepare.py", classifier, image, RUNTIME, site)
    assert done.returncode == 0, done.stderr
    return site


def status_of(page: Page, address: str) -> str:
    page.goto(address)
    expect(page.locator("#status")).not_to_contain_text("Loading", timeout=60_000)
    return page.inner_text("#status")


def test_pixels_and_answers_are_those_of_this_package(
    browser: Browser, classifiers: dict[int, Path], images: dict[str, Path], tmp_path: Path
) -> None:
    """The self-check compares both with what was stored, so that each image becomes the stored one."""
    page = browser.new_page()
    for resample, classifier in classifiers.items():
        for name, image in images.items():
            with serve(prepare(classifier, image, tmp_path / f"{name}-{resample}")) as address:
                status = status_of(page, address)
            assert status.startswith("Ready. Self-check passed"), f"{name}, filter {resample}: {status}"
    page.close()


def test_file_and_camera_without_network(
    browser: Browser, classifiers: dict[int, Path], images: dict[str, Path], tmp_path: Path
) -> None:
    site = prepare(classifiers[BICUBIC], images["star"], tmp_path / "site")
    addresses: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: addresses.append(request.url))
    with serve(site) as address:
        assert status_of(page, address).startswith("Ready")
        page.set_input_files("#file", str(IMAGES_PATH / "six_eggs.png"))
        expect(page.locator("#answer tr")).to_have_count(3)
        rows = [row.split("\t") for row in page.locator("#answer tr").all_inner_texts()]
        expected = Classifier(classifiers[BICUBIC]).classify(IMAGES_PATH / "six_eggs.png")
        assert [label for label, _ in rows] == LABELS
        assert [float(number) for _, number in rows] == pytest.approx(
            [match.probability for match in expected], abs=0.02
        )
        before = page.inner_text("#answer")
        page.click("#camera")
        expect(page.locator("#answer")).not_to_have_text(before, use_inner_text=True)
        assert page.inner_text("#camera") == "Stop"
        page.click("#camera")
        assert page.inner_text("#camera") == "Camera"
        assert page.inner_text("#status").startswith("Ready")
        assert addresses
        assert all(url.startswith((address, "blob:", "data:")) for url in addresses), addresses
    page.close()


@pytest.mark.parametrize("options", [("--none-of-these", "None of these"), ("--multi-label",)], ids=["single", "multi"])
def test_fitted_classifier(browser: Browser, options: tuple[str, ...], tmp_path: Path) -> None:
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not installed: make javascript")
    image = draw_folders(tmp_path / "set", 2, seed=1)[0]
    out = tmp_path / "classifier.onnx"
    assert run("fit", "demo", tmp_path / "set", *options, "--uint8", "-o", out).exit_code == 0
    page = browser.new_page()
    with serve(prepare(out, image, tmp_path / "site")) as address:
        assert status_of(page, address).startswith("Ready. Self-check passed")
        page.set_input_files("#file", str(image))
        expect(page.locator("#answer tr")).to_have_count(len(NAMES_EN) + len(options) - 1)
        rows = dict(row.split("\t") for row in page.locator("#answer tr").all_inner_texts())
    page.close()
    expected = {match.text: match.probability for match in Classifier(out).classify(image)}
    assert list(rows) == [*sorted(NAMES_EN), *options[1:]]
    assert {text: float(number) for text, number in rows.items()} == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("damage", ["pixels", "probabilities", "model"])
def test_wrong_answer_stops_the_page(
    browser: Browser, classifiers: dict[int, Path], images: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    site = prepare(classifiers[BICUBIC], images["star"], tmp_path / "site")
    if damage == "model":
        (site / "classifier.onnx").write_bytes(b"not a model")
    else:
        check = json.loads((site / "check.json").read_text())
        check[damage][0] = check[damage][0] - 3 if damage == "pixels" else 1 - check[damage][0]
        (site / "check.json").write_text(json.dumps(check))
    page = browser.new_page()
    with serve(site) as address:
        status = status_of(page, address)
    assert status.startswith("Failed: " if damage == "model" else f"Failed: self-check: {damage} differ by")
    assert page.is_disabled("#file")
    assert page.is_disabled("#camera")
    page.close()


def test_graph_that_takes_floats_is_refused(tmp_path: Path) -> None:
    from siglip_onnx.export.compile import compile_classifier

    compile_classifier(siglip_onnx.load("demo"), LABELS, tmp_path / "c.onnx")
    script = EXAMPLES / "browser" / "prepare.py"
    done = run_example(script, tmp_path / "c.onnx", IMAGES_PATH / "red_star.png", RUNTIME, tmp_path / "site")
    assert done.returncode == 1
    assert "compile it with --uint8" in done.stderr
    assert len((EXAMPLES / "browser" / "index.html").read_text().splitlines()) < 150
