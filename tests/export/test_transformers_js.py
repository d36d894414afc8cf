"""transformers.js and AutoTokenizer open exported bundles, and answer as this package does."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.commands import assert_error, run
from support.images import make_image
from support.manifests import write_document

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle, verify_folder
from siglip_onnx.export.tokenizer import write_tokenizer
from siglip_onnx.head import compute_logits, l2_normalize, sigmoid
from siglip_onnx.hub.card import model_card

JAVASCRIPT = Path(__file__).parents[1] / "javascript"
CHROMIUM = os.environ.get("SIGLIP_ONNX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DTYPES = {"fp32": "fp32", "q8": "int8"}  # of transformers.js, and this package's names
TEXTS = ["a red circle", "Six brown  EGGS!", "猫が二匹います", "naïve ﬁne café"]
# Of logits, whose scale is exp(4.5) = 90: other builds of onnxruntime round differently.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def joined(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose int8 does not saturate in other programs, which do not look for VNNI."""
    out = tmp_path_factory.mktemp("models") / "joined"
    result = run("export", small_checkpoint, out, "--joined", "--reduce-range")
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def photo(joined: Path) -> Path:
    """An image of the model's size, which no library resizes: each does it in its own way."""
    size = open_bundle(joined).config.vision.image_size  # type: ignore[union-attr]
    path = joined.parent / "photo.png"
    make_image(np.random.default_rng(3), (size, size)).save(path)
    return path


def find_node() -> str:
    """Return Node, the one of the virtual environment first; skip without it or without transformers.js."""
    node = shutil.which("node", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if node is None or not (JAVASCRIPT / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip("Node or transformers.js is not installed: make javascript")
    return node


def test_node_answers_as_this_package(joined: Path, photo: Path) -> None:
    request = {"bundle": joined.name, "image": str(photo), "texts": TEXTS, "dtypes": list(DTYPES), "device": "cpu"}
    command = [find_node(), "node.mjs", str(joined.parent), json.dumps(request)]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert compare(json.loads(done.stdout.splitlines()[-1]), joined, photo) < TOLERANCE


@pytest.mark.web
def test_browser_answers_as_this_package(joined: Path, photo: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    find_node()
    if not CHROMIUM:
        pytest.skip("Chromium is not installed; install Debian's package chromium")
    request = {"bundle": joined.name, "image": "/models/photo.png", "texts": TEXTS, "dtypes": list(DTYPES),
               "device": "wasm"}  # fmt: skip
    with serve_files(joined.parent) as address, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{address}/javascript/page.html")
        page.wait_for_function("window.answer !== undefined")
        answer = page.evaluate("(request) => window.answer(request)", request)
        browser.close()
    assert compare(answer, joined, photo) < TOLERANCE


@pytest.mark.parametrize("keep", ["joined", "towers"])
def test_script_of_the_model_card_runs_in_node(joined: Path, photo: Path, tmp_path: Path, keep: str) -> None:
    bundle = Path(shutil.copytree(joined, tmp_path / "someone" / "model"))
    if keep == "towers":
        document = json.loads((bundle / "manifest.json").read_text())
        for variant in document["variants"].values():
            variant["files"] = {name: facts for name, facts in variant["files"].items() if "/model" not in name}
        write_document(bundle, document)
    card = model_card(open_bundle(bundle), "someone/model")
    (script,) = re.findall(r"^```js\n(.*?)^```$", card, re.M | re.S)
    local = f"import {{ env }} from '@huggingface/transformers';\nenv.localModelPath = {str(tmp_path)!r};\n"
    script = local + "env.allowRemoteModels = false;\n" + script.replace("photo.jpg", str(photo))
    command = [find_node(), "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Both texts are one batch there, of which int8 vectors depend on each other.
    shown = sorted(float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", done.stdout))
    expected = sorted(match.probability for match in siglip_onnx.load(bundle).classify(photo, ["a cat", "a dog"]))
    np.testing.assert_allclose(shown, expected, rtol=0.2)


def compare(answer: dict[str, Any], bundle: Path, photo: Path) -> float:
    """Check an answer of transformers.js; return the largest difference of a logit."""
    differences = []
    for dtype, variant in DTYPES.items():
        model = siglip_onnx.load(bundle, variant=variant)
        assert answer["ids"] == model.tokenize(TEXTS).tolist()
        pixels = model.vision.prepare(photo)["pixel_values"]
        np.testing.assert_allclose(np.reshape(answer["pixels"], pixels.shape), pixels, atol=1e-6)
        theirs = answer["variants"][dtype]
        head = {"logit_scale": model.bundle.manifest.logit_scale, "logit_bias": model.bundle.manifest.logit_bias}
        image, texts = (l2_normalize(np.array(rows, np.float32)) for rows in ([theirs["image"]], theirs["texts"]))
        expected = model.logits(model.encode_images(photo), model.encode_texts(TEXTS))
        differences.append(np.abs(compute_logits(image, texts, **head) - expected).max())
        scores = [[theirs["scores"][text] for text in TEXTS]]
        np.testing.assert_allclose(scores, sigmoid(expected), rtol=TOLERANCE)
    return float(max(differences))


@pytest.fixture(scope="module")
def gemma(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import lzma

    folder = tmp_path_factory.mktemp("gemma")
    packed = material / "tokenizers" / "siglip2_gemma_256k" / "tokenizer.json.xz"
    (folder / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.mark.parametrize("family", ["SigLIP", pytest.param("SigLIP 2", marks=pytest.mark.slow)])
def test_auto_tokenizer_gives_the_same_ids(
    family: str, material: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    from siglip_onnx.text.tokenizer import Tokenizer

    folders = {"SigLIP": material / "tokenizers" / "siglip_v1_c4en_32k"}
    source = folders.get(family) or request.getfixturevalue("gemma")
    rows = 32_000 if family == "SigLIP" else 256_000
    write_tokenizer(source, tmp_path / "tokenizer.json", text_length=64, vocab_size=rows)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    lines = [text for text in json.loads((material / "text" / "blns.json").read_text()) if text.strip()]
    expected = Tokenizer(tmp_path / "tokenizer.json", 64)(lines)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert list(tokenizer(TEXTS[0])) == ["input_ids"]
    np.testing.assert_array_equal(tokenizer(lines, padding="max_length", truncation=True)["input_ids"], expected)


def test_joined_graph_gives_the_logits_of_the_towers(joined: Path, photo: Path) -> None:
    assert verify_folder(joined) == []
    separate = joined.parent / "separate"
    for variant, name in (("fp32", "model.onnx"), ("int8", "model_quantized.onnx")):
        model = siglip_onnx.load(joined, variant=variant)
        session = onnxruntime.InferenceSession(joined / "onnx" / name)
        for text in TEXTS:
            inputs = {"input_ids": model.tokenize([text]), **model.vision.prepare(photo)}
            per_image, per_text, texts, images = session.run(
                ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"], inputs
            )
            expected = model.logits(model.encode_images(photo), model.encode_texts([text]))
            np.testing.assert_allclose(per_image, expected, atol=1e-4)
            np.testing.assert_array_equal(per_text, per_image.T)
            np.testing.assert_allclose(texts, model.encode_texts([text]), atol=1e-6)
            np.testing.assert_allclose(images, model.encode_images(photo), atol=1e-6)
    assert run("models", "strip", shutil.copytree(joined, separate), "--keep", "int8").exit_code == 0
    assert {path.name for path in (separate / "onnx").glob("model*")} == {
        "model_quantized.onnx", "model_quantized.onnx_data"
    }  # fmt: skip


def test_naflex_model_is_not_joined(naflex_checkpoint: Path, tmp_path: Path) -> None:
    result = run("export", naflex_checkpoint, tmp_path / "out", "--joined")
    assert_error(result, 4, "NaFlex model, which transformers.js does not open")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def naflex_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.checkpoints import make_naflex_checkpoint

    return make_naflex_checkpoint(tmp_path_factory.mktemp("naflex") / "checkpoint")


@contextlib.contextmanager
def serve_files(models: Path) -> Iterator[str]:
    """Serve the scripts below ``/javascript`` and ``models`` below ``/models`` until the block ends."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

        def translate_path(self, path: str) -> str:
            first, _, rest = path.lstrip("/").partition("/")
            folder = {"javascript": JAVASCRIPT, "models": models}.get(first)
            return str(folder / rest) if folder is not None else os.devnull

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
