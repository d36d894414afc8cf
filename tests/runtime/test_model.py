import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import siglip_onnx
from siglip_onnx import ImageLimits, SigLIP, SiglipOnnxError
from siglip_onnx.bundle import open_bundle
from siglip_onnx.errors import BundleError, ImageError, ModelNotFoundError, ProviderError, TextError
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.text.label_cache import LabelCache

TEXTS = ["a cat", "two dogs play on the beach", "赤い丸", ""]


@pytest.fixture(scope="module", params=[pytest.param("fp32", marks=pytest.mark.export), "int8"])
def model(small_bundle: Path, request: pytest.FixtureRequest) -> siglip_onnx.SigLIP:
    return siglip_onnx.load(small_bundle, variant=request.param)


def test_embeddings_have_length_one(model: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    for embeddings, count in ((model.encode_images(images), 4), (model.encode_texts(TEXTS), 4)):
        assert embeddings.shape == (count, model.embedding_dim)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_kinds_of_images_give_the_same_embedding(model: siglip_onnx.SigLIP, image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image.save(path)
    expected = model.encode_images(image)
    for source in (path, str(path), path.read_bytes(), np.asarray(image), [path], np.asarray(image)[np.newaxis]):
        assert_array_equal(model.encode_images(source), expected)


def test_empty_inputs_give_empty_arrays(model: siglip_onnx.SigLIP) -> None:
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


def test_several_images_are_classified_one_by_one(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    """Every kind of iterable gives a list per image, no images give none, and one image of any kind gives one list."""
    images = [image, image.rotate(180)]
    expected = [model.classify(each, TEXTS, template="a {}", logit_bias=0.5) for each in images]
    assert expected[0] != expected[1]
    arrays = np.stack([np.asarray(each) for each in images])
    for several in (images, tuple(images), iter(images), (each for each in images), list(arrays), arrays):
        assert model.classify(several, TEXTS, template="a {}", logit_bias=0.5) == expected
    assert model.classify(arrays[0], TEXTS, template="a {}", logit_bias=0.5) == expected[0]
    assert model.classify(images[:1], TEXTS, template="a {}", logit_bias=0.5) == expected[:1]
    assert model.classify([], TEXTS) == model.classify(arrays[:0], TEXTS) == []  # type: ignore[comparison-overlap]
    assert [len(inputs) for inputs in (model.preprocess(arrays), model.preprocess(image))] == [2, 1]
    middle = sorted(match.probability for match in expected[0])[2]
    above = model.classify(images, TEXTS, template="a {}", logit_bias=0.5, threshold=middle)
    assert above == [[match for match in matches if match.probability >= middle] for matches in expected]
    with pytest.raises(ImageError, match="cannot be a NoneType"):
        model.classify([image, None], TEXTS)  # type: ignore[list-item]
    with pytest.raises(TextError, match="no texts"):
        model.classify(images, [])


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
def test_label_cache_in_memory_and_on_disk(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = siglip_onnx.load(small_bundle, cache=tmp_path)
    expected = first.encode_labels(TEXTS, template="a {}")
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == len(TEXTS)
    assert {path.parent.name for path in files} == {first.embedding_space}
    files[0].write_bytes(b"damaged")
    second = siglip_onnx.load(small_bundle, cache=tmp_path)
    assert len(second.missing_labels(TEXTS, template="a {}")) == 1
    assert_array_equal(second.encode_labels(TEXTS, template="a {}"), expected)
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


@pytest.mark.export
def test_int8_is_the_default_and_spaces_differ(small_bundle: Path) -> None:
    assert siglip_onnx.load(small_bundle).variant == "int8"
    spaces = {siglip_onnx.load(small_bundle, variant=variant).embedding_space for variant in ("int8", "fp32")}
    assert len(spaces) == 2


@pytest.mark.export
def test_thread_count_does_not_change_fp32_much(small_bundle: Path, images: list[Image.Image]) -> None:
    one, two = (siglip_onnx.load(small_bundle, variant="fp32", threads=count) for count in (1, 2))
    np.testing.assert_allclose(one.encode_images(images), two.encode_images(images), atol=1e-6)


def test_errors_name_wrong_arguments(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    texts: list[tuple[Any, str]] = [
        ([3], "cannot be a int"), (["a \ud800"], "lone surrogate at position 2"), ({"a"}, "cannot be a set"),
        (["x" * 100_000], "100,000 characters; at most 20,000"),
    ]  # fmt: skip
    images: list[tuple[Any, str]] = [
        (None, "cannot be a NoneType"), (io.BytesIO(b""), "the BytesIO is empty"), ("nowhere.jpg", "does not exist"),
    ]  # fmt: skip
    for wrong, message in texts:
        with pytest.raises(TextError, match=message):
            model.encode_texts(wrong)
    for wrong, message in images:
        with pytest.raises(ImageError, match=message):
            model.encode_images(wrong)
    for wrong, message in (([], "no texts"), ("a cat", "one str")):
        with pytest.raises(TextError, match=message):
            model.classify(image, wrong)


def test_logits_take_single_embeddings_and_refuse_other_widths(model: siglip_onnx.SigLIP, image: Image.Image) -> None:
    images, texts = model.encode_images(image), model.encode_texts(TEXTS)
    assert_array_equal(model.logits(images[0], texts), model.logits(images, texts))
    assert_array_equal(model.logits(images, texts[0]), model.logits(images, texts[:1]))
    for wrong in (images[:, :8], images[np.newaxis]):
        with pytest.raises(SiglipOnnxError, match=rf"expected \(N, {model.embedding_dim}\): this model's width"):
            model.logits(wrong, texts)


def test_keywords_replace_options(small_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(small_bundle)
    options = RuntimeOptions(variant="q4", providers=["CPUExecutionProvider"])
    with pytest.raises(BundleError, match="no variant 'q4'"):
        SigLIP(bundle, options)
    model = SigLIP(bundle, options, variant="int8", cache=str(tmp_path), image_limits=None)
    assert (model.variant, model.providers) == ("int8", ["CPUExecutionProvider"])
    model.encode_labels(["a"])
    assert list(tmp_path.rglob("*.npy"))
    assert model.vision.reader.limits == ImageLimits()
    with pytest.raises(TypeError, match="variants"):
        SigLIP(bundle, variants="int8")


def test_labels_in_blocks_are_those_of_one_block(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, templates = [f"text {number % 7}" for number in range(20)], ["{}", "a {}", "{} b"]
    expected = siglip_onnx.load(small_bundle).encode_labels(texts, template=templates)
    monkeypatch.setattr("siglip_onnx.text_tower._PROMPTS_AT_ONCE", 10)
    model = siglip_onnx.load(small_bundle)
    embedded: list[str] = []
    embed = model.text.embed
    monkeypatch.setattr(model.text, "embed", lambda prompts: embedded.extend(prompts) or embed(prompts))
    np.testing.assert_array_equal(model.encode_labels(texts, template=templates), expected)
    assert len(embedded) == len(set(embedded)) == 21
    with pytest.raises(TextError):
        model.encode_labels([*(f"other {number}" for number in range(19)), "\ud800"])
    with pytest.raises(TextError, match=r"has no \{\}"):
        model.encode_labels([], template="x")
    assert model.encode_labels([], template="{}").shape == (0, model.embedding_dim)
    assert len(embedded) == 21  # nothing of the texts before one that cannot be used


def test_cached_label_does_not_keep_the_batch_it_was_embedded_in() -> None:
    labels = LabelCache("space", 4)
    labels.put("a", np.zeros((100, 4), np.float32)[3])
    embedding = labels.get("a")
    assert embedding is not None
    assert embedding.base is None


def test_errors_name_what_is_available(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="was not found; expected 'demo', the folder"):
        siglip_onnx.load(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        siglip_onnx.load(small_bundle / "manifest.json")
    with pytest.raises(BundleError, match=r"no variant 'q4'; it has (fp32, )?int8"):
        siglip_onnx.load(small_bundle, variant="q4")
    for threads in (0, -3, 513, 100_000, "2"):
        with pytest.raises(SiglipOnnxError, match=f"threads is {threads!r}, expected a number from 1 to 512"):
            siglip_onnx.load(small_bundle, threads=threads).encode_texts(["a"])  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match="must be a list of str, not one str"):
        siglip_onnx.load(small_bundle, providers="CPUExecutionProvider").encode_texts(["a"])
    with pytest.raises(ProviderError, match=r"NoSuchProvider is not available; .* has .*CPUExecutionProvider"):
        siglip_onnx.load(small_bundle, providers=["NoSuchProvider"]).encode_texts(["a"])


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("template", 5, "A template cannot be a int"),
        ("template", [5], "A template cannot be a int"),
        ("template", b"{}", "A template cannot be a bytes"),
        ("threshold", float("nan"), "threshold is nan, expected a finite number"),
        ("threshold", "high", "threshold is 'high', expected a finite number"),
        ("logit_bias", float("inf"), "logit_bias is inf, expected a finite number"),
        ("logit_bias", "1", "logit_bias is '1', expected a finite number"),
    ],
)
def test_wrong_arguments_are_errors(argument: str, value: Any, message: str) -> None:
    with pytest.raises(SiglipOnnxError, match=message):
        siglip_onnx.load("demo").classify(Image.new("RGB", (9, 9)), ["a"], **{argument: value})
