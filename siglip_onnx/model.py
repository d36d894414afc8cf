"""SigLIP: two towers and a head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .config import NaflexPreprocessorConfig
from .errors import ImageError, SiglipOnnxError, TextError
from .head import Floats, Match, compute_logits, match_texts
from .image.decode import ImageSource, as_images, is_single_image
from .image.preprocess import Inputs
from .options import DEFAULTS, RuntimeOptions
from .text.templates import check_texts
from .text_tower import TextTower
from .vision_tower import EmbeddedImage, VisionTower


class SigLIP:
    """A SigLIP model; open one with :func:`siglip_onnx.load`.

    Any number of threads may share a model. A child process that inherits one by fork loads its towers for itself.

    Attributes:
        bundle: the model folder.
        variant: the precision in use, such as ``"int8"``.
        vision: the vision tower, from images to embeddings.
        text: the text tower, from texts to embeddings.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULTS, **keywords: Any) -> None:
        """Put the parts together; graphs load at first use.

        Args:
            bundle: an opened model folder.
            options: how the model runs.
            keywords: single options, by their names in :class:`.RuntimeOptions`, which replace those of ``options``.

        Raises:
            BundleError: the bundle does not have the variant.
            SiglipOnnxError: options that contradict each other or do not suit the model.
        """
        if "cache" in keywords:  # the name in version 0.1
            keywords["label_cache"] = keywords.pop("cache")
        options = replace(options, **keywords)
        self.bundle = bundle
        self.variant = bundle.choose_variant(options.variant)
        self.vision = VisionTower(bundle, self.variant, options)
        self.text = TextTower(bundle, self.variant, options)

    def __enter__(self) -> SigLIP:
        """Return the model, which is closed at the end of the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the model."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: threads and mapped weights cannot be sent to another process.

        Raises:
            SiglipOnnxError: always.
        """
        raise SiglipOnnxError(
            f"A model cannot be sent to another process. Load it there: siglip_onnx.load({str(self.bundle.path)!r})"
        )

    def close(self) -> None:
        """Free the model's memory for good; runs in progress in other threads finish. Closing again does nothing."""
        self.vision.session.close()
        self.text.session.close()

    @property
    def embedding_dim(self) -> int:
        """Width ``D`` of an embedding."""
        return self.bundle.manifest.embedding_dim

    @property
    def embedding_space(self) -> str:
        """Id of the model's vectors; vectors of different spaces must not be compared."""
        space = self.bundle.manifest.variants[self.variant].embedding_space
        config = self.vision.preprocess.config
        if isinstance(config, NaflexPreprocessorConfig) and config != self.bundle.preprocessor:
            return f"{space}-{config.max_num_patches}patches"
        return space

    @property
    def providers(self) -> list[str]:
        """The execution providers in use: those requested, or the CPU; never silently replaced."""
        return self.vision.session.providers

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one image, although it is an iterable of str
        self,
        image: ImageSource,
        texts: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match]: ...

    @overload
    def classify(
        self,
        image: Iterable[ImageSource],
        texts: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[list[Match]]: ...

    def classify(
        self,
        image: ImageSource | Iterable[ImageSource],
        texts: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match] | list[list[Match]]:
        """Return for each text how likely it is to describe the image, in the order given.

        Several images give one such list per image, in order; no images give ``[]``.

        Args:
            image: path, bytes, PIL image or uint8 array; or an iterable of these, or an array ``(N, H, W, C)``.
            texts: descriptions in any language that the checkpoint was trained on.
            template: the prompt around each text, for example ``"This is a photo of {}."``; the embeddings of several
                templates are averaged.
            threshold: leave out texts of lower probability.
            logit_bias: replaces the checkpoint's bias, which is a little too low for many uses.

        Raises:
            ImageError: an image cannot be read.
            TextError: no texts, or one that cannot be tokenized.
        """
        texts = check_texts(texts)
        if not texts:
            raise TextError("There are no texts to compare with the image; give at least one.")
        labels = self.text.embed_labels(texts, template)
        rows = self.logits(self.vision.embed(image), labels, logit_bias=logit_bias)
        answers = [[match for match in match_texts(row, texts) if match.probability >= threshold] for row in rows]
        return answers[0] if is_single_image(image) else answers

    def encode_images(self, images: ImageSource | Iterable[ImageSource]) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one image or an iterable of images.

        Raises:
            ImageError: an image cannot be read.
            BundleError: the graph cannot be loaded or run.
            ProviderError: an execution provider is not available.
        """
        return self.vision.embed(images)

    def stream_images(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[Floats | ImageError]:
        """Yield for each image its unit embedding f32 ``(D,)``, or the error of one that cannot be read, in order.

        See :meth:`.VisionTower.stream`.
        """
        results = self.vision.stream(images)
        return (result if isinstance(result, ImageError) else result.embedding for result in results)

    def stream_embeddings(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        """Yield the same as :meth:`stream_images`, with each image's size and whether it was truncated."""
        return self.vision.stream(images)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``, each text run by itself.

        Raises:
            TextError: a text cannot be tokenized.
        """
        return self.text.embed(texts)

    def encode_labels(self, texts: Sequence[str], *, template: str | Sequence[str] = "{}") -> Floats:
        """Return unit embeddings f32 ``(M, D)`` of texts in templates; see :meth:`.TextTower.embed_labels`.

        Raises:
            TextError: a template has no ``{}``, or a text cannot be tokenized.
        """
        return self.text.embed_labels(texts, template)

    def missing_labels(self, texts: Sequence[str], *, template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`encode_labels` would have to embed."""
        return self.text.missing_labels(texts, template)

    def logits(self, image_embeddings: Floats, text_embeddings: Floats, *, logit_bias: float | None = None) -> Floats:
        """Return logits f32 ``(N, M)`` of unit embeddings ``(N, D)`` and ``(M, D)``; see :func:`.sigmoid`.

        A single embedding ``(D,)`` counts as ``(1, D)``.

        Raises:
            SiglipOnnxError: embeddings of another width, or a bias that is not finite.
        """
        manifest = self.bundle.manifest
        bias = manifest.logit_bias if logit_bias is None else logit_bias
        if not math.isfinite(bias):
            raise SiglipOnnxError(f"logit_bias is {bias}, expected a finite number.")
        images, texts = np.atleast_2d(image_embeddings), np.atleast_2d(text_embeddings)
        expected = (2, self.embedding_dim)
        for embeddings in (images, texts):
            if (embeddings.ndim, embeddings.shape[-1]) != expected:
                raise SiglipOnnxError(
                    f"Embeddings have shape {embeddings.shape}, expected (N, {self.embedding_dim}): this model's width."
                )
        return compute_logits(images, texts, logit_scale=manifest.logit_scale, logit_bias=bias)

    def preprocess(self, images: ImageSource | Iterable[ImageSource]) -> list[Inputs]:
        """Return the vision tower's inputs by name, one dictionary per image, each a batch of one.

        Fixed resolution: ``pixel_values`` f32 ``(1, 3, S, S)``. NaFlex: see :class:`.NaflexPreprocessor`.
        """
        return [self.vision.prepare(image) for image in as_images(images)]

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the text tower's ``input_ids`` i64 ``(M, T)``."""
        return self.text.tokenize(texts)
