"""The vision tower: from images to unit embeddings."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bundle import Bundle
from .bundle.manifest import FEATURES, POOLED
from .config import VISION, NaflexPreprocessorConfig
from .errors import BundleError, ImageError, OptionError
from .head import Floats
from .image.decode import DecodedImage, ImageSource, as_images, is_open_file, is_single_image, keep_content
from .image.decoder_pool import DecoderPool, open_reader
from .image.preprocess import Inputs, NaflexPreprocessor, SquashPreprocessor
from .options import MAX_NUM_PATCHES, RuntimeOptions
from .session import open_tower
from .system.workers import in_batches, map_in_order

Preprocessor = SquashPreprocessor | NaflexPreprocessor
Prepared = tuple[Inputs, DecodedImage] | ImageError
Run = Callable[[Mapping[str, NDArray[Any]]], Floats]  # of a batch
RAISE, SKIP = "raise", "skip"  # what to do with an image that cannot be read
_BATCH = 16
_DRAFT, _REDUCING_GAP = 4, 3.0
_log = logging.getLogger(__name__)


class EmbeddedImage(NamedTuple):
    """An image's unit embedding f32 ``(D,)``, whether its file was truncated, and its upright size in pixels."""

    embedding: Floats
    truncated: bool
    width: int
    height: int


class ImageOutput(NamedTuple):
    """One image's row of an output of the graph, and the image's other facts as in :class:`EmbeddedImage`."""

    values: Floats
    truncated: bool
    width: int
    height: int


@dataclass(frozen=True)
class _ReadAhead:
    """An image that was prepared already, so that nothing that users give is taken for one."""

    result: Prepared


class VisionTower:
    """Image reader, preprocessor and session of one variant's vision tower, for any number of threads.

    Attributes:
        reader: decodes an image to RGB, as :class:`.ImageReader` does; in processes of its own, if the options say so.
        preprocess: turns one RGB image into the tower's inputs by name, a batch of one.
        session: runs the tower, ``pooler_output`` f32 ``(N, D)``, and other outputs that the manifest names.
        workers: how many images run at once.
        draft_size: width and height to which a fast decode may reduce a JPEG, None without it.
    """

    def __init__(self, bundle: Bundle, variant: str, options: RuntimeOptions) -> None:
        """Prepare the parts; the graph loads at first use.

        Raises:
            BundleError: the model has no vision tower.
            OptionError: ``max_num_patches`` does not suit the model.
        """
        bundle.manifest.check_tower(VISION)
        self._manifest = bundle.manifest
        self.preprocess = make_preprocessor(bundle, options)
        self.draft_size = (_DRAFT * self.preprocess.largest_side,) * 2 if options.fast_decode else None
        self.reader = open_reader(options, self.draft_size)
        self.session = open_tower(bundle, VISION, variant, options)
        self.workers = options.workers
        self._embedding_dim = bundle.manifest.embedding_dim

    @property
    def batch_size(self) -> int:
        """Images per run; 1 on the CPU, where int8 vectors would depend on the other images of a batch."""
        fixed_size = isinstance(self.preprocess, SquashPreprocessor)
        return _BATCH if fixed_size and not self.session.runs_on_cpu else 1

    def embed(self, images: ImageSource | Iterable[ImageSource], *, on_error: str = RAISE) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one image or an iterable of images.

        Args:
            images: one image or several.
            on_error: ``"raise"``, or ``"skip"`` to leave out images that cannot be read, each of which is logged.

        Raises:
            ImageError: an image cannot be read; of several, ``index`` and the message say which.
            OptionError: ``on_error`` is neither.
            BundleError: the graph cannot be loaded or run.
        """
        if on_error not in (RAISE, SKIP):
            raise OptionError(f"on_error is {on_error!r}, expected {RAISE!r} or {SKIP!r}.")
        is_single, rows = is_single_image(images), []
        for index, result in enumerate(self.stream(images)):
            if not isinstance(result, ImageError):
                rows.append(result.embedding)
                continue
            error = result if is_single else result.at(index)
            if on_error == RAISE:
                raise error from result.__cause__
            _log.warning("%s It is skipped.", error)
        return np.array(rows, np.float32).reshape(len(rows), self._embedding_dim)

    def stream(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        """Yield for each image its embedding, or the error of one that cannot be read, in order.

        Images are read as they are needed, at most a few ahead; with several workers, those in memory are copied, so
        that a generator may fill one buffer again and again or close a file, but a path must keep its file. On the CPU
        each is a run of its own, so that a vector never depends on its neighbors; on other providers images of fixed
        resolution run in batches.

        Raises:
            ImageError: ``images`` is neither an image nor an iterable.
            BundleError: the tower has no pooled output; or the graph cannot be loaded or run, at the first image.
        """
        self.check_output(POOLED)
        rows = self._stream(images, self.session.embed)
        return (row if isinstance(row, ImageError) else EmbeddedImage(*row) for row in rows)

    def stream_output(
        self, name: str, images: ImageSource | Iterable[ImageSource]
    ) -> Iterator[ImageOutput | ImageError]:  # fmt: skip
        """Yield for each image its row of another output of the graph; otherwise as :meth:`stream`.

        Raises:
            BundleError: the graph does not have this output.
        """
        self.check_output(name)
        return self._stream(images, lambda inputs: self.session.check_finite(self.session.run(name, inputs)))

    def outputs(self, name: str, images: ImageSource | Iterable[ImageSource]) -> Iterator[Floats]:
        """Yield for each image its row of another output of the graph.

        Raises:
            ImageError: an image cannot be read; of several, ``index`` and the message say which.
            BundleError: the graph does not have this output, or cannot be loaded or run.
        """
        is_single = is_single_image(images)
        for index, result in enumerate(self.stream_output(name, images)):
            if isinstance(result, ImageError):
                raise (result if is_single else result.at(index)) from result.__cause__
            yield result.values

    def prepare(self, image: ImageSource) -> Inputs:
        """Return the tower's inputs for one image, a batch of one.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.preprocess.to_inputs(self.reader.read(image, self.preprocess.fit).rgb)

    def run(self, fitted: Image.Image) -> Floats:
        """Return the unit embedding f32 ``(D,)`` of an RGB image that was resized by ``preprocess.fit``.

        Raises:
            BundleError: the graph cannot be loaded or run.
        """
        row: Floats = self.session.embed(self.preprocess.to_inputs(fitted))[0]
        return row

    def close(self) -> None:
        """Free the memory of the graph for good, and end decoder processes."""
        self.session.close()
        if isinstance(self.reader, DecoderPool):
            self.reader.close()

    def check_output(self, name: str) -> None:
        """Check that the graph has an output.

        Raises:
            BundleError: it does not.
        """
        if name not in self._manifest.vision_outputs:
            advice = {
                POOLED: "it gives only last_hidden_state, one vector per patch: encode_features. Images have no "
                "embedding.",
                FEATURES: "export the checkpoint again with --features.",
            }
            raise BundleError(
                f"The vision tower of {self._manifest.model_name} has no output {name}; {advice.get(name, '')}"
            )

    def _stream(
        self, images: ImageSource | Iterable[ImageSource], run: Run
    ) -> Iterator[ImageOutput | ImageError]:  # fmt: skip
        def run_one(image: ImageSource | _ReadAhead) -> ImageOutput | ImageError:
            prepared = self._try_prepare(image)
            if isinstance(prepared, ImageError):
                return prepared
            return _output(run(prepared[0])[0], prepared[1])

        given = as_images(images)
        sources: Iterable[ImageSource | _ReadAhead] = given if self.workers == 1 else self._keep_ahead(given)
        if self.batch_size == 1:
            return map_in_order(run_one, sources, self.workers)
        return self._stream_batches(sources, run)

    def _keep_ahead(self, images: Iterable[ImageSource]) -> Iterator[ImageSource | _ReadAhead]:
        """Yield images that are read ahead, such that what happens to them later has no effect.

        A generator, or a sequence that makes its items when they are asked for, may fill one buffer again. Open files,
        also those that Pillow opened, are decoded here: only one thread may read them, and their generator may close
        them or go on to the next frame.
        """
        is_stored = type(images) in (list, tuple) or isinstance(images, np.ndarray)
        for image in images:
            if is_open_file(image):
                yield _ReadAhead(self._try_prepare(image))
            else:
                yield image if is_stored and not isinstance(image, io.BytesIO) else keep_content(image)

    def _stream_batches(
        self, images: Iterable[ImageSource | _ReadAhead], run: Run
    ) -> Iterator[ImageOutput | ImageError]:  # fmt: skip
        for batch in in_batches(map_in_order(self._try_prepare, images, self.workers), self.batch_size):
            pixels = [result[0]["pixel_values"] for result in batch if not isinstance(result, ImageError)]
            rows = iter(run({"pixel_values": np.concatenate(pixels)}) if pixels else ())
            for result in batch:
                yield result if isinstance(result, ImageError) else _output(next(rows), result[1])

    def _try_prepare(self, image: ImageSource | _ReadAhead) -> Prepared:
        if isinstance(image, _ReadAhead):
            return image.result
        try:
            decoded = self.reader.read(image, self.preprocess.fit)
        except ImageError as error:
            return error
        return self.preprocess.to_inputs(decoded.rgb), decoded


def make_preprocessor(bundle: Bundle, options: RuntimeOptions) -> Preprocessor:
    """Return the preprocessor of a bundle's vision tower.

    Raises:
        OptionError: ``max_num_patches`` is given for a model of fixed resolution, or is out of range.
    """
    config, reducing_gap = bundle.preprocessor, _REDUCING_GAP if options.fast_decode else None
    max_num_patches = options.max_num_patches
    if isinstance(config, NaflexPreprocessorConfig):
        if max_num_patches is not None:
            config = replace(config, max_num_patches=max_num_patches)
        if not 1 <= config.max_num_patches <= MAX_NUM_PATCHES:
            raise OptionError(f"max_num_patches is {config.max_num_patches}, expected 1 to {MAX_NUM_PATCHES}.")
        return NaflexPreprocessor(config, bundle.read_positions(), reducing_gap=reducing_gap)
    if config is None:
        raise BundleError(f"{bundle.path} has no settings of images. Export the model again.")
    if max_num_patches is not None:
        raise OptionError(
            f"{bundle.manifest.model_name} takes images of {config.width}x{config.height} pixels; max_num_patches "
            "is for NaFlex models only. Leave it out."
        )
    return SquashPreprocessor(config, reducing_gap=reducing_gap)


def _output(values: Floats, decoded: DecodedImage) -> ImageOutput:
    return ImageOutput(values, decoded.truncated, *decoded.size)
