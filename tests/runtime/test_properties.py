"""Properties that hold for every text, image and number."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.images import encode

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.config import LevelsConfig, NaflexPreprocessorConfig, PreprocessorConfig
from siglip_onnx.demo import BUNDLE_PATH
from siglip_onnx.head import compute_logits, l2_normalize, match_texts, sigmoid, softmax
from siglip_onnx.image.decode import load_image
from siglip_onnx.image.preprocess import NaflexPreprocessor, SquashPreprocessor, choose_grid
from siglip_onnx.text.templates import fill_templates
from siglip_onnx.text.tokenizer import Tokenizer

settings.register_profile(
    "siglip_onnx", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("siglip_onnx")

TEXTS = st.text(max_size=200).filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))
LOGITS = arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-200, 200, width=32))
IMAGES = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
    elements=st.integers(0, 255),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    bundle = open_bundle(BUNDLE_PATH)
    return Tokenizer(bundle.tokenizer_path, bundle.config.text.max_position_embeddings)


@given(texts=st.lists(TEXTS, max_size=5))
def test_ids_have_the_full_length_and_ignore_other_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids = tokenizer(texts)
    vocab_size = open_bundle(BUNDLE_PATH).config.text.vocab_size
    assert (ids.shape, ids.dtype) == ((len(texts), tokenizer.text_length), np.int64)
    assert ((ids >= 0) & (ids < vocab_size)).all()
    for text, row in zip(texts, ids, strict=True):
        assert_array_equal(tokenizer([text])[0], row)


@given(text=TEXTS)
def test_case_and_surrounding_spaces_make_no_difference(tokenizer: Tokenizer, text: str) -> None:
    plain = "".join(letter for letter in text if letter.isascii() and letter.isalnum())
    assert_array_equal(tokenizer([plain.upper()]), tokenizer([plain.lower()]))
    assert_array_equal(tokenizer([f"  {plain} "]), tokenizer([plain]))


@given(text=TEXTS, more=TEXTS)
def test_truncated_part_of_a_text_makes_no_difference(tokenizer: Tokenizer, text: str, more: str) -> None:
    long = "word " * (2 * tokenizer.text_length)
    assert_array_equal(tokenizer([long + text]), tokenizer([long + more]))


@given(pixels=IMAGES)
def test_arrays_pil_images_and_files_give_the_same_image(pixels: np.ndarray) -> None:
    expected = load_image(pixels)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    for source in (image, encode(image)):
        assert_array_equal(np.asarray(load_image(source)), np.asarray(expected))
    assert expected.size == (pixels.shape[1], pixels.shape[0])


@given(pixels=IMAGES, height=st.integers(1, 50), width=st.integers(1, 50), resample=st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_squashed_images_have_size_and_range(pixels: np.ndarray, height: int, width: int, resample: int) -> None:
    values = SquashPreprocessor(PreprocessorConfig(height, width, resample))(load_image(pixels))["pixel_values"]
    assert (values.shape, values.dtype) == ((1, 3, height, width), np.float32)
    assert np.abs(values).max() <= 1


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), max_num_patches=st.integers(1, 1024))
def test_grids_stay_within_the_largest_number_of_patches(height: int, width: int, max_num_patches: int) -> None:
    rows, columns = choose_grid(height, width, 16, max_num_patches)
    assert rows >= 1
    assert columns >= 1
    # A side has at least one patch, so a long and thin image may exceed the bound on its other side.
    assert rows * columns <= max_num_patches or min(rows, columns) == 1


@given(pixels=IMAGES, max_num_patches=st.integers(1, 64))
def test_patches_contain_every_pixel_once(pixels: np.ndarray, max_num_patches: int) -> None:
    config = NaflexPreprocessorConfig(16, max_num_patches)
    image = load_image(pixels)
    rows, columns = choose_grid(image.height, image.width, 16, max_num_patches)
    inputs = NaflexPreprocessor(config, np.zeros((4, 8), np.float32))(image)
    resized = image.resize((columns * 16, rows * 16), Image.Resampling(config.resample))
    expected = (np.asarray(resized, np.float32) / 255 - 0.5) / 0.5
    patches = inputs["pixel_values"].reshape(rows, columns, 16, 16, 3)
    assert_allclose(patches.swapaxes(1, 2).reshape(rows * 16, columns * 16, 3), expected, atol=1e-6)
    assert inputs["pixel_attention_mask"].tolist() == [[1] * (rows * columns)]
    assert inputs["position_embeddings"].shape == (1, rows * columns, 8)


@given(logits=LOGITS)
def test_probabilities_are_probabilities_and_keep_the_order(logits: np.ndarray) -> None:
    probabilities, shares = sigmoid(logits), softmax(logits)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert_allclose(shares.sum(), 1, rtol=1e-5)
    order = np.argsort(logits)
    assert (np.diff(probabilities[order]) >= 0).all()
    assert (np.diff(shares[order]) >= 0).all()
    assert_allclose(sigmoid(-logits), 1 - probabilities, atol=1e-6)
    texts = [str(number) for number in range(len(logits))]
    assert [match.text for match in match_texts(logits, texts)] == texts


@given(rows=arrays.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_embeddings_have_length_one_or_are_nan(rows: np.ndarray) -> None:
    lengths = np.linalg.norm(l2_normalize(rows).astype(np.float64), axis=1)
    for row, length in zip(rows, lengths, strict=True):
        assert abs(length - 1) < 1e-6 if row.any() else np.isnan(length)


@given(
    images=arrays.arrays(np.float32, (4, 6), elements=st.floats(-1, 1, width=32)),
    texts=arrays.arrays(np.float32, (3, 6), elements=st.floats(-1, 1, width=32)),
    scale=st.floats(-5, 5),
    bias=st.floats(-50, 50),
)
def test_logit_depends_on_its_pair_alone(images: np.ndarray, texts: np.ndarray, scale: float, bias: float) -> None:
    logits = compute_logits(images, texts, logit_scale=scale, logit_bias=bias)
    for row in range(4):
        for column in range(3):
            pair = images[row : row + 1], texts[column : column + 1]
            logit = compute_logits(*pair, logit_scale=scale, logit_bias=bias)
            assert_allclose(logit[0, 0], logits[row, column], rtol=1e-6, atol=1e-6)


@given(texts=st.lists(TEXTS, max_size=4))
def test_templates_keep_texts_as_they_are(texts: list[str]) -> None:
    assert fill_templates(["{}", "a {}!"], texts) == [[text, f"a {text}!"] for text in texts]


@given(
    factor=st.floats(1e-3, 1, allow_nan=False),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 1)] * 3),
)
def test_levels_are_rescaled_then_normalized(factor: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = PreprocessorConfig(4, 4, 3, LevelsConfig(factor, mean, std))
    values = SquashPreprocessor(config)(Image.new("RGB", (4, 4), (0, 128, 255)))["pixel_values"]
    expected = [(level * factor - m) / s for level, m, s in zip((0, 128, 255), mean, std, strict=True)]
    assert_allclose(values[0, :, 0, 0], expected, rtol=1e-4, atol=1e-4)
