"""Protocols prepare texts and images exactly as they say; published scores belong to a checkpoint and a protocol."""

import numpy as np
import pytest
from PIL import Image
from support.images import make_image

import siglip_onnx
from siglip_onnx.config import NaflexPreprocessorConfig
from siglip_onnx.errors import TextError
from siglip_onnx.evaluate.protocols import PROTOCOLS, canonicalize, resize_plain
from siglip_onnx.evaluate.published import find_published
from siglip_onnx.image.preprocess import NaflexPreprocessor

PAPER, MODEL, OPEN_CLIP = (PROTOCOLS[name] for name in ("paper", "model", "open_clip"))


def test_names_and_templates_of_the_paper() -> None:
    names = ["Tench, Tinca tinca", "black-and-white Colobus", "jack-o'-lantern"]
    assert PAPER.class_texts(names) == ["tench", "blackandwhite colobus", "jackolantern"]
    assert PAPER.templates(["A photo of a {}.", "itap of {}."]) == ["a photo of a {}", "itap of {}", "{}"]
    assert MODEL.class_texts(names) == OPEN_CLIP.class_texts(names) == names
    assert OPEN_CLIP.templates(["A {}.", "A {}."]) == ["A {}."]
    assert canonicalize("A_b,  C.") == "a b, c"
    with pytest.raises(TextError, match=r"leaves nothing of the class name '\.\.\.'"):
        PAPER.class_texts(["a", "..."])


def test_images_of_the_paper() -> None:
    preprocess = siglip_onnx.load("demo").vision.preprocess
    size = preprocess.config.width
    image = make_image(np.random.default_rng(0), (200, 150))
    assert_inputs(OPEN_CLIP.prepare(image, preprocess, labelled=True), preprocess(image))
    assert_inputs(PAPER.prepare(image, preprocess, labelled=False), preprocess(resize_plain(image, size, size)))
    side = int(size / 0.875)
    first = (side - size) // 2
    resized = np.asarray(resize_plain(image, side, side))
    crop = Image.fromarray(resized[first : first + size, first : first + size])
    assert_inputs(PAPER.prepare(image, preprocess, labelled=True), preprocess(crop))


def assert_inputs(inputs: dict, expected: dict) -> None:
    np.testing.assert_array_equal(inputs["pixel_values"], expected["pixel_values"])


def test_naflex_models_keep_their_preprocessing() -> None:
    config = NaflexPreprocessorConfig(max_num_patches=64)
    preprocess = NaflexPreprocessor(config, np.zeros((16, 4), np.float32))
    image = make_image(np.random.default_rng(0), (200, 150))
    assert_inputs(PAPER.prepare(image, preprocess, labelled=True), preprocess(image))


def test_plain_resize_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    for size in ((16, 20), (64, 80), (37, 53)):
        expected = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=False)
        resized = np.asarray(resize_plain(Image.fromarray(pixels), size[1], size[0]), np.float64)
        difference = expected[0].permute(1, 2, 0).numpy() - resized
        assert difference.min() > -1e-3  # truncated, not rounded
        assert difference.max() < 1 + 1e-3


def test_published_scores() -> None:
    scores = find_published("google/siglip2-so400m-patch14-384", "imagenet", "paper")
    assert scores["top1"].value == 84.1
    assert "2502.14786" in scores["top1"].source
    japanese = find_published("siglip-base-patch16-256-multilingual", "xm3600", "open_clip")
    assert (japanese["ja:text_to_image"].value, japanese["ja:image_to_text"].value) == (43.2, 46.1)
    assert find_published("siglip2-large-patch16-512", "coco", "paper")["image_to_text"].value == 72.1
    assert find_published("demo", "imagenet", "paper") == {}
    assert find_published("siglip-base-patch16-224", "imagenet", "model") == {}
