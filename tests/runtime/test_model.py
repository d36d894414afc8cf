from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import siglip_onnx
from siglip_onnx.errors import BundleError, ImageError, ModelNotFoundError, ProviderError, TextError

TEXTS = ["a cat", "two dogs play on the beach", "赤い丸", ""]


@pytest.fixture(scope="module", params=[pytest.param("fp32", marks=pytest.mark.export), "int8"])
def model(small_bundle: Path, request: pytest.FixtureRequest) -> siglip_onnx.SigLIP:
    return siglip_onnx.load(small_bundle, variant=request.param)


def test_embeddings_have_length_one(model: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    for embeddings, count in ((model.encode_images(images), 4), (model.encode_texts(TEXTS), 4)):
        assert embeddings.shape == (count, model.embedding_dim)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_many_equal_single(model: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    """Bitwise, in int8 as well, whatever the neighbours and the order."""
    together = model.encode_images(images)
    assert_array_equal(together, np.concatenate([model.encode_images(picture) for picture in images]))
    assert_array_equal(together[::-1], model.encode_images(iter(images[::-1])))
    assert_array_equal(model.encode_texts(TEXTS), np.concatenate([model.encode_texts([text]) for text in TEXTS]))


def test_path_bytes_pil_and_array_are_the_same(model: siglip_onnx.SigLIP, image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    image.save(path)
    expected = model.encode_images(image)
    for source in (path, str(path), path.read_bytes(), np.asarray(image), [path], np.asarray(image)[np.newaxis]):
        assert_array_equal(model.encode_images(source), expected)


def test_nothing_gives_no_rows(model: siglip_onnx.SigLIP) -> None:
    assert model.encode_images([]).shape == (0, model.embedding_dim)
    assert model.encode_texts([]).shape == (0, model.embedding_dim)
    assert model.preprocess([]) == []
    assert model.tokenize([]).shape == (0, model.bundle.config.text.max_position_embeddings)
    assert model.logits(model.encode_images([]), model.encode_texts(TEXTS)).shape == (0, 4)


def test_classify_agrees_with_its_parts(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    matches = model.classify(image, TEXTS)
    logits = model.logits(model.encode_images(image), model.encode_texts(TEXTS))[0]
    assert [match.text for match in matches] == TEXTS
    assert [match.logit for match in matches] == logits.tolist()
    assert [match.probability for match in matches] == siglip_onnx.sigmoid(logits).tolist()


def test_template_surrounds_the_texts(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    filled = model.classify(image, ["cat"], template="a photo of a {}.")[0]
    assert filled.text == "cat"
    assert filled.logit == model.classify(image, ["a photo of a cat."])[0].logit
    with pytest.raises(TextError, match=r"no \{\}"):
        model.classify(image, ["cat"], template="a photo")


def test_several_templates_are_averaged(model: siglip_onnx.SigLIP) -> None:
    parts = model.encode_texts(["a cat", "my cat"])
    mean = parts.mean(axis=0)
    np.testing.assert_allclose(
        model.encode_labels(["cat"], template=["a {}", "my {}"])[0], mean / np.linalg.norm(mean), atol=1e-6
    )
    assert model.encode_labels([]).shape == (0, model.embedding_dim)
    with pytest.raises(TextError, match="The template '' has no"):
        model.encode_labels(["cat"], template=[])


def test_threshold_and_bias(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    plain = model.classify(image, TEXTS)
    moved = model.classify(image, TEXTS, logit_bias=model.bundle.manifest.logit_bias + 2)
    np.testing.assert_allclose([m.logit for m in moved], [m.logit + 2 for m in plain], atol=1e-5)
    middle = sorted(match.probability for match in plain)[2]
    assert model.classify(image, TEXTS, threshold=middle) == [m for m in plain if m.probability >= middle]


@pytest.mark.export
def test_labels_are_kept_in_memory_and_on_disk(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = siglip_onnx.load(small_bundle, cache=tmp_path)
    expected = first.encode_labels(TEXTS, template="a {}")
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == len(TEXTS)
    assert {path.parent.name for path in files} == {first.embedding_space}
    files[0].write_bytes(b"damaged")
    again = siglip_onnx.load(small_bundle, cache=tmp_path)
    assert len(again.missing_labels(TEXTS, template="a {}")) == 1
    assert_array_equal(again.encode_labels(TEXTS, template="a {}"), expected)
    assert not siglip_onnx.load(small_bundle, cache=tmp_path).missing_labels(TEXTS, template="a {}")
    assert siglip_onnx.load(small_bundle, cache=tmp_path, variant="fp32").missing_labels(TEXTS, template="a {}")
    monkeypatch.setattr("siglip_onnx.text.label_cache.MAX_IN_MEMORY", 2)
    assert_array_equal(
        siglip_onnx.load(small_bundle).encode_labels(TEXTS * 2, template="a {}"), np.tile(expected, (2, 1))
    )


def test_towers_load_when_needed_and_can_be_unloaded(small_bundle: Path, image: Image.Image) -> None:
    model = siglip_onnx.load(small_bundle)
    assert not model.vision.session.is_loaded
    model.encode_texts(["a"])
    assert (model.vision.session.is_loaded, model.text.session.is_loaded) == (False, True)
    expected = model.encode_images(image)
    model.vision.session.unload()
    assert (model.vision.session.is_loaded, model.text.session.is_loaded) == (False, True)
    model.vision.session.preload()
    assert_array_equal(model.encode_images(image), expected)


def test_threads_share_one_session(small_bundle: Path, images: list[Image.Image]) -> None:
    model = siglip_onnx.load(small_bundle)
    expected = siglip_onnx.load(small_bundle).encode_images(images)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(model.encode_images(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for embeddings in found:
        assert_array_equal(embeddings, expected)


@pytest.mark.export
def test_int8_is_the_default_and_spaces_differ(small_bundle: Path) -> None:
    assert siglip_onnx.load(small_bundle).variant == "int8"
    spaces = {siglip_onnx.load(small_bundle, variant=variant).embedding_space for variant in ("int8", "fp32")}
    assert len(spaces) == 2


@pytest.mark.export
def test_thread_count_does_not_change_fp32_much(small_bundle: Path, images: list[Image.Image]) -> None:
    one, two = (siglip_onnx.load(small_bundle, variant="fp32", threads=count) for count in (1, 2))
    np.testing.assert_allclose(one.encode_images(images), two.encode_images(images), atol=1e-6)


def test_wrong_arguments_say_what_was_found(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    with pytest.raises(TextError, match="no texts"):
        model.classify(image, [])
    with pytest.raises(TextError, match="one str"):
        model.classify(image, "a cat")
    with pytest.raises(TextError, match="cannot be a int"):
        model.encode_texts([3])  # type: ignore[list-item]
    with pytest.raises(TextError, match="lone surrogate at position 2"):
        model.encode_texts(["a \ud800"])
    with pytest.raises(TextError, match="100,000 characters; at most 20,000"):
        model.encode_texts(["x" * 100_000])
    with pytest.raises(TextError, match="cannot be a set"):
        model.encode_texts({"a"})  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot be a NoneType"):
        model.encode_images(None)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot be a BytesIO"):
        model.encode_images(io.BytesIO(b""))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="does not exist"):
        model.encode_images("nowhere.jpg")


def test_unknown_names_say_what_there_is(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="was not found; expected 'demo', the folder"):
        siglip_onnx.load(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        siglip_onnx.load(small_bundle / "manifest.json")
    with pytest.raises(BundleError, match=r"no variant 'q4'; it has (fp32, )?int8"):
        siglip_onnx.load(small_bundle, variant="q4")
    for threads in (0, -3, 100_000, "2"):
        with pytest.raises(ProviderError, match="expected a number from 1 to 512"):
            siglip_onnx.load(small_bundle, threads=threads).encode_texts(["a"])  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match="cannot be one str"):
        siglip_onnx.load(small_bundle, providers="CPUExecutionProvider").encode_texts(["a"])
    with pytest.raises(ProviderError, match=r"NoSuchProvider is not available; .* has .*CPUExecutionProvider"):
        siglip_onnx.load(small_bundle, providers=["NoSuchProvider"]).encode_texts(["a"])
