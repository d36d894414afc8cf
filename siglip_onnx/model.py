"""SigLIP: two towers and a head."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, open_bundle
from .bundle.manifest import FEATURES
from .config import TEXT, VISION, NaflexPreprocessorConfig
from .errors import BundleError, DataError, ImageError, OptionError, TextError
from .head import Calibration, Floats, Match, check_bias, check_finite, compute_logits, match_texts, read_calibration
from .image.decode import ImageSource, as_images, is_single_image
from .image.preprocess import Inputs
from .options import DEFAULTS, RuntimeOptions
from .session import choose_variant
from .text.templates import check_texts
from .text_tower import TextTower
from .vision_tower import RAISE, EmbeddedImage, VisionTower

_log = logging.getLogger(__name__)


class SigLIP:
    """A SigLIP model; open one with :func:`siglip_onnx.load`.

    Any number of threads may share a model. A child process that inherits one by fork loads its towers for itself.
    Some models have only one of the towers: what needs the other raises a :class:`.BundleError`.

    Attributes:
        bundle: the model folder.
        variant: the precision in use, such as ``"int8"``.
        calibration: the scale and biases in place of the checkpoint's, or None.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULTS, **keywords: Any) -> None:
        """Put the parts together; graphs load at first use.

        Args:
            bundle: an opened model folder.
            options: how the model runs.
            keywords: single options, by their names in :class:`.RuntimeOptions`, which replace those of ``options``.

        Raises:
            BundleError: the bundle does not have the variant.
            ProviderError: it is an int8 variant, which this CPU computes incorrectly.
            OptionError: options that contradict each other or do not suit the model.
            DataError: the calibration cannot be read, or is that of another model.
        """
        if "cache" in keywords:  # the name in version 0.1
            keywords["label_cache"] = keywords.pop("cache")
        options = replace(options, **keywords)
        self.bundle = bundle
        self._options = options
        self.variant = choose_variant(bundle, options)
        self.calibration = None if options.calibration is None else self._read_calibration(options.calibration)
        self._has_compared = False
        towers = bundle.manifest.towers
        self._vision = VisionTower(bundle, self.variant, options) if VISION in towers else None
        self._text = TextTower(bundle, self.variant, options) if TEXT in towers else None

    @property
    def vision(self) -> VisionTower:
        """The vision tower, from images to embeddings.

        Raises:
            BundleError: the model has none.
        """
        self.bundle.manifest.check_tower(VISION)
        return cast(VisionTower, self._vision)

    @property
    def text(self) -> TextTower:
        """The text tower, from texts to embeddings.

        Raises:
            BundleError: the model has none.
        """
        self.bundle.manifest.check_tower(TEXT)
        return cast(TextTower, self._text)

    def __enter__(self) -> SigLIP:
        """Return the model, which is closed at the end of the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the model."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, the options and what :func:`reopen` compares with the model that unpickling opens again.

        Copies made by the module ``copy`` are opened in the same way.
        """
        options = replace(self._options, variant=self.variant)
        return reopen, (self.bundle.path, options, self.embedding_space, type(self), self.calibration)

    def __repr__(self) -> str:
        """Return the facts that distinguish one model from another."""
        return (
            f"{type(self).__name__}({self.bundle.manifest.model_name!r}, variant={self.variant!r}, "
            f"embedding_dim={self.embedding_dim}, providers={self.providers})"
        )

    def close(self) -> None:
        """Free the model's memory for good; runs in progress in other threads finish. Closing again does nothing."""
        if self._vision is not None:
            self._vision.close()
        if self._text is not None:
            self._text.session.close()

    def _towers(self) -> list[VisionTower | TextTower]:
        return [tower for tower in (self._vision, self._text) if tower is not None]

    @property
    def embedding_dim(self) -> int:
        """Width ``D`` of an embedding."""
        return self.bundle.manifest.embedding_dim

    @property
    def embedding_space(self) -> str:
        """Id of the model's vectors; vectors of different spaces must not be compared."""
        space = self.bundle.manifest.variants[self.variant].embedding_space
        config = self._vision.preprocess.config if self._vision is not None else None
        if isinstance(config, NaflexPreprocessorConfig) and config != self.bundle.preprocessor:
            return f"{space}-{config.max_num_patches}patches"
        return space

    @property
    def providers(self) -> list[str]:
        """The execution providers in use: those requested, or the CPU; never silently replaced."""
        return self._towers()[0].session.providers

    @property
    def logit_scale(self) -> float:
        """The raw, log-space scale in use: the checkpoint's, or the calibrated one."""
        scale: float = self.bundle.manifest.head["logit_scale"]
        return scale if self.calibration is None else scale + math.log(self.calibration.scale)

    def biases(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the bias in use of each text ``(M,)``: the checkpoint's, or the calibrated ones."""
        if self.calibration is None:
            return np.full(len(texts), self.bundle.manifest.head["logit_bias"], np.float64)
        return self.calibration.biases(texts)

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one image, although it is an iterable of str
        self,
        image: ImageSource,
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match]: ...

    @overload
    def classify(
        self,
        image: Iterable[ImageSource],
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[list[Match]]: ...

    def classify(
        self,
        image: ImageSource | Iterable[ImageSource],
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match] | list[list[Match]]:
        """Return for each text how likely it is to describe the image, in the order given.

        Several images give one such list per image, in order; no images give ``[]``.

        Args:
            image: path, bytes, binary file, PIL image or uint8 array; or an iterable of these, or an array
                ``(N, H, W, C)``.
            texts: descriptions in any language that the checkpoint was trained on; none for a classifier, see
                :class:`.FineTunedClassifier`.
            template: the prompt around each text, for example ``"This is a photo of {}."``; the embeddings of several
                templates are averaged.
            threshold: leave out texts of lower probability.
            logit_bias: replaces the checkpoint's bias, which is a little too low for many uses.

        Raises:
            ImageError: an image cannot be read.
            TextError: no texts, or one that cannot be tokenized.
        """
        texts, threshold = check_texts(texts), check_finite(threshold, "threshold")
        for tower in (TEXT, VISION):
            self.bundle.manifest.check_tower(tower)
        if not texts:
            raise TextError("There are no texts to compare with the image; give at least one.")
        labels = self.encode_labels(texts, template=template)
        bias = self.biases(texts) if logit_bias is None else logit_bias
        rows = self.logits(self.vision.embed(image), labels, logit_bias=bias)
        answers = [[match for match in match_texts(row, texts) if match.probability >= threshold] for row in rows]
        return answers[0] if is_single_image(image) else answers

    def encode_images(self, images: ImageSource | Iterable[ImageSource], *, on_error: str = RAISE) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one image or an iterable of images.

        With ``on_error="skip"``, images that cannot be read are logged and have no row; :meth:`stream_images` gives
        their errors in their places instead.

        Raises:
            ImageError: an image cannot be read; of several, ``index`` and the message say which.
            BundleError: the model has no vision tower, or its graph cannot be loaded or run.
            ProviderError: an execution provider is not available.
        """
        return self.vision.embed(images, on_error=on_error)

    def encode_features(self, images: ImageSource | Iterable[ImageSource]) -> list[Floats]:
        """Return ``last_hidden_state`` f32 ``(P, D)`` of each image, a row per patch; it is not normalized.

        Raises:
            ImageError: an image cannot be read.
            BundleError: the model was exported without ``--features``, or has no vision tower.
        """
        return list(self.vision.outputs(FEATURES, images))

    def stream_images(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[Floats | ImageError]:
        """Yield for each image its unit embedding f32 ``(D,)``, or the error of one that cannot be read, in order.

        See :meth:`.VisionTower.stream`.
        """
        results = self.vision.stream(images)
        return (result if isinstance(result, ImageError) else result.embedding for result in results)

    def stream_embeddings(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        """Yield the same as :meth:`stream_images`, with each image's size and whether it was truncated."""
        return self.vision.stream(images)

    def encode_texts(self, texts: Iterable[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``, each text run by itself.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the model has no text tower, or its graph cannot be loaded or run.
        """
        return self.text.embed(texts)

    def encode_labels(self, texts: Iterable[str], *, template: str | Sequence[str] = "{}") -> Floats:
        """Return unit embeddings f32 ``(M, D)`` of texts in templates; see :meth:`.TextTower.embed_labels`.

        Raises:
            TextError: a template has no ``{}``, or a text cannot be tokenized.
        """
        embeddings = self.text.embed_labels(texts, template)
        self._compare_templates([template] if isinstance(template, str) else list(template))
        return embeddings

    def missing_labels(self, texts: Iterable[str], *, template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`encode_labels` would have to embed."""
        return self.text.missing_labels(texts, template)

    def logits(
        self,
        image_embeddings: Floats,
        text_embeddings: Floats,
        *,
        logit_bias: float | NDArray[np.float64] | None = None,
    ) -> Floats:
        """Return logits f32 ``(N, M)`` of unit embeddings ``(N, D)`` and ``(M, D)``; see :func:`.sigmoid`.

        A single embedding ``(D,)`` counts as ``(1, D)``. ``logit_bias`` may be one number, or one of each text, as
        :meth:`biases` returns them; without it a calibration's common bias is used.

        Raises:
            OptionError: embeddings of another width, or a bias of another length, not finite, or beyond 10,000.
            BundleError: the model does not compare images with texts.
        """
        logit_bias = self.biases([""]) if logit_bias is None else check_bias(logit_bias)
        images, texts = np.atleast_2d(image_embeddings), np.atleast_2d(text_embeddings)
        expected = (2, self.embedding_dim)
        for embeddings in (images, texts):
            if (embeddings.ndim, embeddings.shape[-1]) != expected:
                raise OptionError(
                    f"Embeddings have shape {embeddings.shape}, expected (N, {self.embedding_dim}): this model's width."
                )
        if np.shape(logit_bias) not in ((), (1,), (len(texts),)):
            raise OptionError(f"logit_bias has shape {np.shape(logit_bias)}, expected one number or ({len(texts)},).")
        return compute_logits(images, texts, logit_scale=self.logit_scale, logit_bias=logit_bias)

    def _read_calibration(self, path: Path) -> Calibration:
        calibration = read_calibration(path)
        name = self.bundle.manifest.model_name
        if calibration.model != name:
            raise DataError(f"{path} is the calibration of {calibration.model}, not of {name}; calibrate this model.")
        if not calibration.suits(self.variant, self.bundle.manifest.spaces):
            raise DataError(f"{path} is the calibration of another model of the name {name}; calibrate this model.")
        if calibration.variant != self.variant:
            _log.info("%s was fitted to the variant %s, and is used for %s.", path, calibration.variant, self.variant)
        return calibration

    def _compare_templates(self, templates: Sequence[str]) -> None:
        """Log once if the calibration was fitted to other templates, which give other logits."""
        fitted = None if self.calibration is None else self.calibration.data.get("templates")
        if isinstance(fitted, list) and fitted != templates and not self._has_compared:
            self._has_compared = True
            _log.warning(
                "The calibration was fitted to texts in %s, and is used with %s, so that probabilities may be off.",
                fitted,
                templates,
            )

    def preprocess(self, images: ImageSource | Iterable[ImageSource]) -> list[Inputs]:
        """Return the vision tower's inputs by name, one dictionary per image, each a batch of one.

        Fixed resolution: ``pixel_values`` f32 ``(1, 3, S, S)``. NaFlex: see :class:`.NaflexPreprocessor`.
        """
        return [self.vision.prepare(image) for image in as_images(images)]

    def tokenize(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """Return the text tower's ``input_ids`` i64 ``(M, T)``."""
        return self.text.tokenize(texts)


def reopen(
    path: Path,
    options: RuntimeOptions,
    embedding_space: str,
    kind: type[SigLIP] = SigLIP,
    calibration: Calibration | EllipsisType | None = ...,
) -> SigLIP:
    """Open a model that was pickled, from its folder; a pickle of version 0.1 does not know its ``calibration``.

    Raises:
        BundleError: the folder is missing or damaged, or now holds another model.
        DataError: the file of its calibration is missing or damaged, or now holds another one.
    """
    bundle = open_bundle(path)
    bundle.check_unchanged(bundle.choose_variant(options.variant))
    model = kind(bundle, options)
    if model.embedding_space != embedding_space:
        raise BundleError(
            f"{path} holds a model of the embedding space {model.embedding_space}, but the pickled one had "
            f"{embedding_space}. Load the model again, or put back the files that it had."
        )
    if calibration is not ... and model.calibration != calibration:
        raise DataError(
            f"{options.calibration} holds another calibration than the pickled model had. Load the model again, or put "
            "back the file."
        )
    return model
