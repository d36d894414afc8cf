"""Every stage against transformers with PyTorch, on random checkpoints of several shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from transformers import SiglipImageProcessor, SiglipModel, SiglipTokenizer

import siglip_onnx

TEXTS = [
    "a photo of a cat",
    "  Two DOGS, playing!  ",
    "",
    "!!!",
    "赤い丸が三つ、暗い背景に。",
    "ｆｕｌｌ　ｗｉｄｔｈ ㌔ ﬁ",
    "word " * 80,
    "a_b-c 😀 \u0130stanbul",
]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return SiglipModel.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def fp32(bundle: Path) -> siglip_onnx.SigLIP:
    return siglip_onnx.load(bundle, variant="fp32")


def reference_pixels(checkpoint: Path, images: list[Image.Image]) -> Any:
    return SiglipImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt").pixel_values


def reference_ids(checkpoint: Path, texts: list[str], length: int) -> Any:
    tokenizer = SiglipTokenizer(str(checkpoint / "spiece.model"))
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


@torch.no_grad()
def reference_embeddings(features: Any) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = torch.nn.functional.normalize(features).numpy()
    return unit


def test_pixels_are_bit_equal(checkpoint: Path, fp32: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    pixels = np.concatenate([inputs["pixel_values"] for inputs in fp32.preprocess(images)])
    assert_array_equal(pixels, reference_pixels(checkpoint, images).numpy())


def test_ids_are_equal(checkpoint: Path, fp32: siglip_onnx.SigLIP) -> None:
    expected = reference_ids(checkpoint, TEXTS, fp32.bundle.config.text.max_position_embeddings)
    assert_array_equal(fp32.tokenize(TEXTS), expected.numpy())


@torch.no_grad()
def test_fp32_image_embeddings(
    checkpoint: Path, fp32: siglip_onnx.SigLIP, reference: Any, images: list[Image.Image]
) -> None:
    expected = reference_embeddings(reference.get_image_features(reference_pixels(checkpoint, images)))
    assert_allclose(fp32.encode_images(images), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_fp32_text_embeddings(checkpoint: Path, fp32: siglip_onnx.SigLIP, reference: Any) -> None:
    ids = reference_ids(checkpoint, TEXTS, fp32.bundle.config.text.max_position_embeddings)
    expected = reference_embeddings(reference.get_text_features(ids))
    assert_allclose(fp32.encode_texts(TEXTS), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_and_probabilities(
    checkpoint: Path, fp32: siglip_onnx.SigLIP, reference: Any, images: list[Image.Image]
) -> None:
    expected = reference(
        pixel_values=reference_pixels(checkpoint, images),
        input_ids=reference_ids(checkpoint, TEXTS, fp32.bundle.config.text.max_position_embeddings),
    ).logits_per_image
    logits = fp32.logits(fp32.encode_images(images), fp32.encode_texts(TEXTS))
    assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
    assert_allclose(siglip_onnx.sigmoid(logits), expected.sigmoid().numpy(), atol=1e-5, rtol=1e-4)


def test_int8_stays_close_to_fp32(bundle: Path, fp32: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    int8 = siglip_onnx.load(bundle, variant="int8")
    for embeddings, expected in (
        (int8.encode_images(images), fp32.encode_images(images)),
        (int8.encode_texts(TEXTS), fp32.encode_texts(TEXTS)),
    ):
        assert (embeddings * expected).sum(axis=1).min() > 0.999
        assert not np.array_equal(embeddings, expected)


def test_fp32_towers_take_batches(fp32: siglip_onnx.SigLIP, images: list[Image.Image]) -> None:
    """The graphs have a dynamic batch dimension, which the runtime on the CPU does not use."""
    pixels = np.concatenate([inputs["pixel_values"] for inputs in fp32.preprocess(images)])
    ids = fp32.tokenize(TEXTS)
    for tower, name, inputs in (("vision", "pixel_values", pixels), ("text", "input_ids", ids)):
        session = {"vision": fp32.vision, "text": fp32.text}[tower].session
        together = session.run("pooler_output", {name: inputs})
        alone = np.concatenate([session.run("pooler_output", {name: row[np.newaxis]}) for row in inputs])
        assert_allclose(together, alone, atol=1e-5)
