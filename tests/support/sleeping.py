"""A backend for the tests of the benchmark: its towers sleep for a known time.

Variants: ``reference``; ``wrong`` with other features; ``nan`` with NaN in them; ``failing``, which cannot be loaded.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_onnx.bench.backend import Configuration, Inputs
from siglip_onnx.head import Floats, compute_logits, l2_normalize

VISION_S, TEXT_S = 0.020, 0.010


class Sleeping:
    """Its features follow from the image's file name, so that every image has different ones."""

    def __init__(self, configuration: Configuration) -> None:
        if configuration.variant == "failing":
            raise RuntimeError("no such kernel")
        self.variant = configuration.variant

    def decode(self, path: Path) -> NDArray[np.float32]:
        return np.random.default_rng(int(path.stem)).standard_normal((1, 3, 4, 4)).astype(np.float32)

    def preprocess(self, image: Any) -> Inputs:
        return {"pixel_values": image}

    def tokenize(self, text: str) -> NDArray[np.int64]:
        return np.array([[len(text), 1]], np.int64)

    def vision(self, inputs: Inputs) -> Floats:
        time.sleep(VISION_S)
        features: Floats = inputs["pixel_values"].reshape(len(inputs["pixel_values"]), -1).copy()
        if self.variant == "wrong":
            features[:, 0] += 1
        if self.variant == "nan":
            features[:, 0] = np.nan
        return features

    def text(self, input_ids: NDArray[Any]) -> Floats:
        time.sleep(TEXT_S)
        return np.random.default_rng(int(input_ids[0, 0])).standard_normal((1, 48)).astype(np.float32)

    def head(self, images: Floats, texts: Floats) -> Floats:
        return compute_logits(l2_normalize(images), l2_normalize(texts), logit_scale=4.0, logit_bias=-5.0)


def load(configuration: Configuration) -> Sleeping:
    return Sleeping(configuration)


def files(_configuration: Configuration) -> list[Path]:
    return [Path(__file__)]


def packages(_configuration: Configuration) -> tuple[str, ...]:
    return ("numpy", "no-such-package")
