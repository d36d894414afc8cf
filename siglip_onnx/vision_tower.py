"""The vision tower: from images to unit embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .bundle import Bundle
from .bundle.manifest import VISION
from .config import NaflexPreprocessorConfig
from .errors import ImageError, SiglipOnnxError
from .head import Floats
from .image.decode import DecodedImage, ImageReader, ImageSource, as_images
from .image.preprocess import Inputs, NaflexPreprocessor, SquashPreprocessor
from .options import MAX_NUM_PATCHES, RuntimeOptions
from .session import CPU_PROVIDER, open_tower
from .system.workers import in_batches, map_in_order

Preprocessor = SquashPreprocessor | NaflexPreprocessor
_BATCH = 16
_DRAFT, _REDUCING_GAP = 4, 3.0


class EmbeddedImage(NamedTuple):
    """An image's unit embedding f32 ``(D,)``, whether its file was truncated, and its upright size in pixels."""

    embedding: Floats
    truncated: bool
    width: int
    height: int


class VisionTower:
    """Image reader, preprocessor and session of one variant's vision tower, for any number of threads.

    Attributes:
        reader: decodes an image to RGB, as :class:`.ImageReader` does.
        preprocess: turns one RGB image into the tower's inputs by name, a batch of one.
        session: runs the tower, ``pooler_output`` f32 ``(N, D)``.
    """

    def __init__(self, bundle: Bundle, variant: str, options: RuntimeOptions) -> None:
        """Prepare the parts; the graph loads at first use.

        Raises:
            SiglipOnnxError: ``max_num_patches`` does not suit the model.
        """
        self.preprocess = make_preprocessor(bundle, options)
        draft_size = (_DRAFT * self.preprocess.largest_side,) * 2 if options.fast_decode else None
        self.reader = ImageReader(options.image_limits, options.allow_truncated, draft_size, options.background)
        self.session = open_tower(bundle, VISION, variant, options)
        self._workers = options.workers
        self._embedding_dim = bundle.manifest.embedding_dim

    @property
    def batch_size(self) -> int:
        """Images per run; 1 on the CPU, where int8 vectors would depend on the other images of a batch."""
        fixed_size = isinstance(self.preprocess, SquashPreprocessor)
        return _BATCH if fixed_size and self.session.providers != [CPU_PROVIDER] else 1

    def embed(self, images: ImageSource | Iterable[ImageSource]) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one image or an iterable of images.

        Raises:
            ImageError: an image cannot be read.
            BundleError: the graph cannot be loaded or run.
        """
        rows = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            rows.append(result.embedding)
        return np.array(rows, np.float32).reshape(len(rows), self._embedding_dim)

    def stream(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        """Yield for each image its embedding, or the error of one that cannot be read, in order.

        Images are read as they are needed, at most a few ahead. On the CPU each is a run of its own, so that a vector
        never depends on its neighbors; on other providers images of fixed resolution run in batches.

        Raises:
            ImageError: ``images`` is neither an image nor an iterable.
            BundleError: the graph cannot be loaded or run, at the first image.
        """
        if self.batch_size == 1:
            return map_in_order(self._embed, as_images(images), self._workers)
        return self._stream_batches(as_images(images))

    def prepare(self, image: ImageSource) -> Inputs:
        """Return the tower's inputs for one image, a batch of one.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.preprocess(self.reader.read(image).rgb)

    def _embed(self, image: ImageSource) -> EmbeddedImage | ImageError:
        try:
            decoded = self.reader.read(image)
        except ImageError as error:
            return error
        return _embedded(self.session.embed(self.preprocess(decoded.rgb))[0], decoded)

    def _stream_batches(self, images: Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        for batch in in_batches(map_in_order(self._try_prepare, images, self._workers), self.batch_size):
            pixels = [result[0]["pixel_values"] for result in batch if not isinstance(result, ImageError)]
            rows = iter(self.session.embed({"pixel_values": np.concatenate(pixels)}) if pixels else ())
            for result in batch:
                yield result if isinstance(result, ImageError) else _embedded(next(rows), result[1])

    def _try_prepare(self, image: ImageSource) -> tuple[Inputs, DecodedImage] | ImageError:
        try:
            decoded = self.reader.read(image)
        except ImageError as error:
            return error
        return self.preprocess(decoded.rgb), decoded


def make_preprocessor(bundle: Bundle, options: RuntimeOptions) -> Preprocessor:
    """Return the preprocessor of a bundle's vision tower.

    Raises:
        SiglipOnnxError: ``max_num_patches`` is given for a model of fixed resolution, or is out of range.
    """
    config, reducing_gap = bundle.preprocessor, _REDUCING_GAP if options.fast_decode else None
    max_num_patches = options.max_num_patches
    if isinstance(config, NaflexPreprocessorConfig):
        if max_num_patches is not None:
            config = replace(config, max_num_patches=max_num_patches)
        if not 1 <= config.max_num_patches <= MAX_NUM_PATCHES:
            raise SiglipOnnxError(f"max_num_patches is {config.max_num_patches}, expected 1 to {MAX_NUM_PATCHES}.")
        return NaflexPreprocessor(config, bundle.read_positions(), reducing_gap=reducing_gap)
    if max_num_patches is not None:
        raise SiglipOnnxError(
            f"{bundle.manifest.model_name} takes images of {config.width}x{config.height} pixels; max_num_patches "
            "is for NaFlex models only. Leave it out."
        )
    return SquashPreprocessor(config, reducing_gap=reducing_gap)


def _embedded(embedding: Floats, decoded: DecodedImage) -> EmbeddedImage:
    return EmbeddedImage(embedding, decoded.truncated, *decoded.rgb.size)
