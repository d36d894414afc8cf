"""OpenVINO as the engine: the answers of onnxruntime, for every kind of model, without telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import run
from support.engines import OPENVINO, needs_openvino
from support.examples import run_example

import siglip_onnx
from siglip_onnx.classifier import Classifier
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import MissingExtraError, ProviderError
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.session import INT8_PROBE, LazySession

pytestmark = needs_openvino  # not importorskip, which imports openvino with its telemetry

IMAGES = sorted(IMAGES_PATH.glob("*.png"))[:4]
TEXTS = ["a red star", "six eggs", "the word open"]


def worst_cosine(one: siglip_onnx.SigLIP, other: siglip_onnx.SigLIP) -> float:
    """Return the smallest cosine between embeddings of the same inputs."""
    pairs = [(model.encode_images(IMAGES), model.encode_texts(TEXTS)) for model in (one, other)]
    return float(min((a * b).sum(axis=1).min() for a, b in zip(*pairs, strict=True)))


@pytest.mark.parametrize(("variant", "floor"), [("fp32", 1 - 1e-5), ("int8", 0.999)])
def test_demo_model_answers_as_with_onnxruntime(variant: str, floor: float) -> None:
    model = siglip_onnx.load("demo", variant=variant, providers=OPENVINO)
    assert worst_cosine(model, siglip_onnx.load("demo", variant="fp32")) > floor
    assert model.providers == ["OpenVINO"]
    assert model.vision.batch_size == 1
    assert model.classify(IMAGES_PATH / "red_star.png", ["a red star"])[0].probability > 0.7


FLOORS = {"fp32": 1 - 1e-5, "int8": 0.999, "qdq": 0.999}


@pytest.mark.export
@pytest.mark.parametrize(("shape", "variants"), [("square", list(FLOORS)), ("naflex", ["fp32", "qdq"])])
def test_variants_are_read_and_are_accurate(tmp_path: Path, shape: str, variants: list[str]) -> None:
    """qdq too, whose int8 products saturate in OpenVINO on x86 CPUs without VNNI."""
    from support.checkpoints import make_checkpoint, make_naflex_checkpoint

    from siglip_onnx.export.pipeline import export_bundle

    path = tmp_path / "checkpoint"
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    export_bundle(checkpoint, tmp_path / "out", precisions=variants)
    reference = siglip_onnx.load(tmp_path / "out", variant="fp32")
    for variant in variants:
        model = siglip_onnx.load(tmp_path / "out", variant=variant, providers=OPENVINO)
        assert worst_cosine(model, reference) > FLOORS[variant], variant


def test_labels_of_openvino_are_cached_apart(tmp_path: Path) -> None:
    for providers in (None, ["OpenVINO"], None, ["OpenVINO"]):
        cached, fresh = (
            siglip_onnx.load("demo", providers=providers, label_cache=folder).encode_labels(["a red star"])
            for folder in (tmp_path / "labels", None)
        )
        np.testing.assert_array_equal(cached, fresh)
    assert len(list((tmp_path / "labels").iterdir())) == 2


def test_threads_and_workers_give_equal_results() -> None:
    one = siglip_onnx.load("demo", providers=OPENVINO, threads=1).encode_images(IMAGES)
    for options in ({"threads": 2}, {"workers": 2}):
        np.testing.assert_allclose(
            siglip_onnx.load("demo", providers=OPENVINO, **options).encode_images(IMAGES), one, atol=1e-5
        )


def test_unloaded_model_loads_again() -> None:
    model = siglip_onnx.load("demo", providers=OPENVINO)
    before = model.encode_texts(TEXTS)
    model.text.session.unload()
    assert not model.text.session.is_loaded
    np.testing.assert_array_equal(model.encode_texts(TEXTS), before)


def test_compiled_classifier(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a red star\nsix eggs\n")
    path = tmp_path / "c.onnx"
    run("compile", "demo", "--variant", "fp32", "--texts-file", tmp_path / "labels.txt", "-o", path)
    expected = Classifier(path).classify(IMAGES)
    found = Classifier(path, RuntimeOptions(providers=OPENVINO)).classify(IMAGES)
    np.testing.assert_allclose(
        [match.logit for row in found for match in row], [match.logit for row in expected for match in row], atol=1e-3
    )


@pytest.mark.parametrize(
    ("providers", "error", "message"),
    [
        (["OpenVINO", "CPUExecutionProvider"], ProviderError, "Name it alone"),
        ([("OpenVINO", {"NO_SUCH": "1"})], ProviderError, r"NO_SUCH.*Expected properties of its CPU device"),
        ([("OpenVINO", {"INFERENCE_PRECISION_HINT": "int2"})], ProviderError, "Wrong value int2"),
        ([("OpenVINO", "bf16")], ProviderError, "expected a name, or a pair"),
        ([("CPUExecutionProvider", {})], None, ""),
        ([("OpenVINO", {"INFERENCE_PRECISION_HINT": "f32"})], None, ""),
    ],
)
def test_options_of_a_provider(providers: list[object], error: type[Exception] | None, message: str) -> None:
    session = LazySession(INT8_PROBE, providers=providers, threads=1)  # type: ignore[arg-type]
    if error is None:
        assert session.run("product", {"x": np.ones((4, 32), np.float32)}) == pytest.approx(32, rel=0.05)
    else:
        with pytest.raises(error, match=message):
            session.load()


def test_missing_library_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "siglip_onnx.session.openvino", raising=False)
    with pytest.raises(MissingExtraError, match=r"The provider OpenVINO needs openvino.*\[openvino\]"):
        LazySession(INT8_PROBE, providers=OPENVINO).load()


def test_a_signal_after_models_were_closed_is_handled() -> None:
    """Each runtime of OpenVINO sets up a stack for signals; that of one that has ended must not remain in use."""
    code = (
        "import os, signal, siglip_onnx\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "models = [siglip_onnx.load('demo', providers=['OpenVINO'], variant='fp32') for _ in range(2)]\n"
        "for model in models: model.classify('IMAGE', ['a'])\n"
        "for model in models: model.close()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    ).replace("IMAGE", str(IMAGES_PATH / "red_star.png"))
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "handled\n"


def test_library_is_imported_only_if_requested() -> None:
    code = "import siglip_onnx, sys; siglip_onnx.load('demo').encode_texts(['a']); print('openvino' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


WITHOUT_TELEMETRY = """
import sys
sockets = []
sys.addaudithook(lambda event, arguments: sockets.append(event) if event.startswith("socket.") else None)
import siglip_onnx
siglip_onnx.load("demo", providers=["OpenVINO"]).encode_texts(["a"])
import openvino
telemetry = [name for name in sys.modules if name.startswith("openvino_telemetry")]
print(sockets, telemetry, callable(openvino.convert_model))
"""


def test_import_sends_no_telemetry_and_leaves_no_file(tmp_path: Path) -> None:
    """With a home folder, where openvino's conversion tools would leave the id of their user."""
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_TELEMETRY)
    done = run_example(script, PYTHONWARNINGS="error")
    assert done.stdout.strip() == "[] [] True", done.stderr


def test_commands_take_the_provider(tmp_path: Path) -> None:
    image = str(IMAGES_PATH / "red_star.png")
    done = run("classify", image, "--text", "a red star", "--provider", "OpenVINO", "--json")
    assert done.exit_code == 0, done.output
    assert '"OpenVINO"' in done.stdout
    vectors = [tmp_path / name for name in ("onnxruntime", "openvino")]
    for out, options in zip(vectors, ((), ("--provider", "OpenVINO")), strict=True):
        done = run("embed", IMAGES_PATH, "--variant", "fp32", "--workers", 1, "-o", out, *options)
        assert done.exit_code == 0, done.output
    expected, found = (siglip_onnx.open_collection(os.fspath(out)).vectors for out in vectors)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.array_equal(found, expected)  # otherwise the workers did not get the provider
