"""Turn an RGB image into the vision tower's inputs, bit-equal to transformers' slow image processors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import LevelsConfig, NaflexPreprocessorConfig, PreprocessorConfig
from ..head import Floats

Inputs = dict[str, NDArray[np.float32] | NDArray[np.int32]]


@dataclass(frozen=True)
class SquashFit:
    """Resize an image to one size, whatever its aspect.

    ``resample`` is the number of a Pillow filter; ``reducing_gap`` is Pillow's: faster for large images, but not the
    same pixels.
    """

    width: int
    height: int
    resample: int
    reducing_gap: float | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image at that size."""
        return _resize(image, (self.width, self.height), self.resample, self.reducing_gap)


@dataclass(frozen=True)
class NaflexFit:
    """Resize an image, its aspect nearly kept, to at most ``max_num_patches`` whole patches; see :class:`SquashFit`."""

    patch_size: int
    max_num_patches: int
    resample: int
    reducing_gap: float | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image at the size of its grid of patches."""
        rows, columns = choose_grid(image.height, image.width, self.patch_size, self.max_num_patches)
        return _resize(image, (columns * self.patch_size, rows * self.patch_size), self.resample, self.reducing_gap)


@dataclass(frozen=True)
class ShrinkFit:
    """Shrink an image to a longest side in pixels, its aspect kept, for people; a smaller one stays as it is."""

    side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image at that size."""
        scale = min(1.0, self.side / max(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return _resize(image, size, Image.Resampling.BICUBIC, 2.0)


Fit = SquashFit | NaflexFit | ShrinkFit


class SquashPreprocessor:
    """Squash an image to the model's size, whatever its aspect, and normalize it: SigLIP of fixed resolution.

    Source: ``SiglipImageProcessor.preprocess`` of transformers 4.57.
    """

    def __init__(self, config: PreprocessorConfig, *, reducing_gap: float | None = None) -> None:
        """Store the config; see :class:`SquashFit`."""
        self.config = config
        self.fit = SquashFit(config.width, config.height, config.resample, reducing_gap)
        self._levels = normalized_levels(config.levels)

    @property
    def largest_side(self) -> int:
        """Longest side of a prepared image, in pixels."""
        return max(self.config.width, self.config.height)

    def __call__(self, image: Image.Image) -> Inputs:
        """Return ``pixel_values`` f32 ``(1, 3, H, W)`` of one RGB image."""
        return self.to_inputs(self.fit(image))

    def to_inputs(self, fitted: Image.Image) -> Inputs:
        """Return the same of an image that was resized by ``fit``."""
        pixels = np.asarray(fitted)
        planes = [self._levels[channel][pixels[..., channel]] for channel in range(3)]
        return {"pixel_values": np.stack(planes)[np.newaxis]}

    def squash(self, image: Image.Image) -> Image.Image:
        """Return the image at the model's size."""
        return self.fit(image)


class NaflexPreprocessor:
    """Cut an image into patches, its aspect nearly kept: SigLIP 2 NaFlex.

    Sources: ``Siglip2ImageProcessor.preprocess`` and ``Siglip2VisionEmbeddings.resize_positional_embeddings`` of
    transformers 4.57. Patches are not padded to ``max_num_patches``: masked padding would not change the answer.
    """

    def __init__(
        self, config: NaflexPreprocessorConfig, positions: Floats, *, reducing_gap: float | None = None
    ) -> None:
        """Store the learned positions, f32 ``(num_patches, D)`` of a square grid; see :class:`SquashPreprocessor`."""
        self.config = config
        self.fit = NaflexFit(config.patch_size, config.max_num_patches, config.resample, reducing_gap)
        self._levels = normalized_levels(config.levels)
        side = math.isqrt(len(positions))
        self._positions = positions.reshape(side, side, -1)

    @property
    def largest_side(self) -> int:
        """Longest side of a prepared image of an aspect up to 4 to 1, in pixels."""
        return 2 * math.isqrt(self.config.max_num_patches) * self.config.patch_size

    def __call__(self, image: Image.Image) -> Inputs:
        """Return the inputs of one RGB image of ``P`` patches.

        ``pixel_values`` f32 ``(1, P, patch_size * patch_size * 3)``, ``pixel_attention_mask`` i32 ``(1, P)``, and
        ``position_embeddings`` f32 ``(1, P, D)``.
        """
        return self.to_inputs(self.fit(image))

    def to_inputs(self, fitted: Image.Image) -> Inputs:
        """Return the same of an image that was resized by ``fit``."""
        side = self.config.patch_size
        rows, columns = fitted.height // side, fitted.width // side
        pixels = np.asarray(fitted)
        values = np.stack([self._levels[channel][pixels[..., channel]] for channel in range(3)], axis=-1)
        patches = values.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(1, rows * columns, -1)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": np.ones((1, rows * columns), np.int32),
            "position_embeddings": resize_positions(self._positions, rows, columns)[np.newaxis],
        }


def normalized_levels(config: LevelsConfig) -> Floats:
    """Return the normalized value of each of the 256 levels, f32 ``(3, 256)``: images are uint8."""
    rescaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.image_mean, np.float32)[:, np.newaxis]
    std = np.array(config.image_std, np.float32)[:, np.newaxis]
    levels: Floats = (rescaled - mean) / std
    return levels


def choose_grid(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Return rows and columns of the largest grid of whole patches that an image of that size may have.

    The bisection is the reference's, step by step: another method would round some sizes differently.
    Source: ``get_image_size_for_max_num_patches`` of transformers 4.57.
    """

    def num_patches(size: int, scale: float) -> int:
        return max(1, math.ceil(size * scale / patch_size))

    precision = 1e-5
    low, high = precision / 10, 100.0
    while high - low >= precision:
        scale = (low + high) / 2
        if num_patches(height, scale) * num_patches(width, scale) <= max_num_patches:
            low = scale
        else:
            high = scale
    return num_patches(height, low), num_patches(width, low)


def resize_positions(positions: Floats, rows: int, columns: int) -> Floats:
    """Resize a grid ``(H, W, D)`` bilinearly, antialiased, to f32 ``(rows * columns, D)``.

    Source: ``torch.nn.functional.interpolate(..., mode="bilinear", antialias=True, align_corners=False)``. For one
    column and a number of rows other than the table's, PyTorch 2.13 mixes up rows and channels on the CPU; this
    function does not.
    """
    height, width, dim = positions.shape
    across = _triangle_weights(width, columns) @ positions  # (H, columns, D)
    resized = _triangle_weights(height, rows) @ across.reshape(height, -1)
    return resized.reshape(rows * columns, dim)


def _triangle_weights(size_in: int, size_out: int) -> Floats:
    """Return f32 ``(size_out, size_in)``: each output's weights of the inputs under a triangle around its center."""
    half = np.float32(0.5)
    scale = np.float32(size_in) / np.float32(size_out)
    support = max(scale, np.float32(1))  # the triangle is stretched when shrinking, which is what antialias means
    centers = scale * (np.arange(size_out, dtype=np.float32)[:, np.newaxis] + half)
    distances = np.abs(np.arange(size_in, dtype=np.float32)[np.newaxis] - centers + half)
    weights = np.maximum(np.float32(0), 1 - distances / support)
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _resize(image: Image.Image, size: tuple[int, int], resample: int, reducing_gap: float | None) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling(resample), reducing_gap=reducing_gap)
