"""From an RGB picture to the vision tower's input, bit-equal to transformers' slow ``SiglipImageProcessor``."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import PreprocessorConfig


class SquashPreprocessor:
    """Squash a picture to the model's size, whatever its aspect, and normalise it. Fixed-resolution SigLIP.

    Source: ``SiglipImageProcessor.preprocess`` of transformers 4.57.
    """

    def __init__(self, config: PreprocessorConfig) -> None:
        self.config = config

    def __call__(self, image: Image.Image) -> dict[str, NDArray[np.float32]]:
        """Return ``pixel_values`` f32 ``(1, 3, H, W)`` of one RGB picture."""
        size = (self.config.width, self.config.height)
        resized = image if image.size == size else image.resize(size, Image.Resampling(self.config.resample))
        pixels = np.asarray(resized)
        planes = [self._levels[channel][pixels[..., channel]] for channel in range(3)]
        return {"pixel_values": np.stack(planes)[np.newaxis]}

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        """What each of the 256 levels becomes, f32 ``(3, 256)``: pictures are uint8, so a table is exact."""
        rescaled = (np.arange(256, dtype=np.float64) * self.config.rescale_factor).astype(np.float32)
        mean = np.array(self.config.image_mean, np.float32)[:, np.newaxis]
        std = np.array(self.config.image_std, np.float32)[:, np.newaxis]
        return (rescaled - mean) / std
