"""Built-in sample images and texts, on which variants are compared and calibrated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..demo import IMAGES_PATH
from ..image import ImageSource

SAMPLE_TEXTS = (
    "a photo of a cat",
    "two dogs playing on the beach",
    "a red circle",
    "six brown eggs in a white bowl",
    "This is a photo of a street at night.",
    "the word open on a green sign",
    "a bowl of ramen with an egg on top",
    "ein alter Mann liest Zeitung",
    "une voiture rouge garée dans la rue",
    "un gato negro duerme en el sofá",
    "猫が二匹、ソファの上で寝ている",
    "暗い背景に赤い丸",
    "桜の木の下を歩く人々",
    "一只熊猫在吃竹子",
    "собака бежит по снегу",
    "",
)


def sample_images() -> list[ImageSource]:
    """Return the built-in sample images: the demo model's drawings, and two images of noise and two of gradients.

    The drawings are flat; noise and gradients add the textures that they lack.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 240, 320, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 320, dtype=np.float32)[np.newaxis, :, np.newaxis]
    phases = rng.uniform(0, np.pi, (2, 240, 1, 3))
    waves = (ramp * (0.5 + 0.5 * np.sin(phases + np.linspace(0, 9, 240)[:, np.newaxis, np.newaxis]))).astype(np.uint8)
    return [*sorted(IMAGES_PATH.glob("*.png")), *noise, *waves]


@contextmanager
def quiet_samples(texts: Sequence[str]) -> Iterator[None]:
    """Do not log that sample texts are truncated, which says nothing about the user's texts."""
    log = logging.getLogger("siglip_onnx.text.tokenizer")
    log.disabled = texts is SAMPLE_TEXTS
    try:
        yield
    finally:
        log.disabled = False
