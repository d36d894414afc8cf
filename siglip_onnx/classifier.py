"""A compiled classifier: one ONNX file with the labels inside, made by ``siglip-onnx compile``.

The graph takes ``pixel_values`` and gives ``logits`` and ``probabilities``; its metadata entry ``siglip_onnx`` is
:class:`ClassifierFacts` as JSON. Nothing else is needed to run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from .config import LevelsConfig, PreprocessorConfig
from .errors import BundleError
from .head import Floats, Match, match_texts
from .image.decode import ImageReader, ImageSource, as_images, is_single_image
from .image.preprocess import SquashPreprocessor
from .options import DEFAULTS, RuntimeOptions
from .session import LazySession

FACTS = "siglip_onnx"
FORMAT = "siglip_onnx.classifier/1"


@dataclass(frozen=True)
class ClassifierFacts:
    """The metadata of a compiled classifier: its origin, its labels, and how images are prepared.

    ``input`` is ``"uint8"`` for pixels u8 ``(N, height, width, 3)``, or ``"float32"`` for normalized f32
    ``(N, 3, height, width)``; the fields after it are those of :class:`.PreprocessorConfig`.
    """

    model: str
    variant: str
    embedding_space: str
    labels: list[str]
    templates: list[str]
    input: str
    height: int
    width: int
    resample: int
    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @property
    def preprocessor(self) -> PreprocessorConfig:
        """How images are prepared."""
        levels = LevelsConfig(self.rescale_factor, tuple(self.image_mean), tuple(self.image_std))
        return PreprocessorConfig(self.height, self.width, self.resample, levels)

    def to_json(self) -> str:
        """Return the metadata entry."""
        return json.dumps({"format": FORMAT} | asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> ClassifierFacts:
        """Read the metadata entry; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: it is damaged, or of another format.
        """
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, expected {FORMAT!r}")
        return ClassifierFacts(**{field.name: document[field.name] for field in fields(ClassifierFacts)})


class Classifier:
    """A compiled classifier, loaded."""

    def __init__(self, path: Path, options: RuntimeOptions = DEFAULTS) -> None:
        """Load ``path``; of the options, providers, threads and those of reading images apply.

        Raises:
            BundleError: not a compiled classifier, or one of another format.
            ProviderError: a provider is not available.
        """
        self._session = LazySession(path, providers=options.providers, threads=options.threads)
        self._reader = ImageReader(options.image_limits, options.allow_truncated, background=options.background)
        self.providers = self._session.providers
        try:
            self.facts = ClassifierFacts.from_json(self._session.metadata[FACTS])
            self._preprocessor = SquashPreprocessor(self.facts.preprocessor)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path} is not a compiled classifier of this version ({error!r}). Make one with: siglip-onnx compile"
            ) from error
        self.labels = self.facts.labels
        self.templates = self.facts.templates
        self.model_name = self.facts.model
        self.variant = self.facts.variant
        self.embedding_space = self.facts.embedding_space

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one image, although it is an iterable of str
        self, image: ImageSource
    ) -> list[Match]: ...

    @overload
    def classify(self, image: Iterable[ImageSource]) -> list[list[Match]]: ...

    def classify(self, image: ImageSource | Iterable[ImageSource]) -> list[Match] | list[list[Match]]:
        """Return for each label how likely it is to describe the image, in the order of the labels.

        Several images give one such list per image; see :meth:`.SigLIP.classify`.

        Raises:
            ImageError: an image cannot be read.
        """
        if is_single_image(image):
            return self.match(image)[0]
        return [self.match(each)[0] for each in as_images(image)]

    def match(self, image: ImageSource) -> tuple[list[Match], bool]:
        """Do as :meth:`classify`, and return whether the image was truncated."""
        decoded = self._reader.read(image)
        return match_texts(self._run(decoded.rgb), self.labels), decoded.truncated

    def logits(self, image: ImageSource) -> Floats:
        """Return the image's logits f32 ``(M,)``."""
        return self._run(self._reader.read(image).rgb)

    def _run(self, image: Image.Image) -> Floats:
        if self.facts.input == "uint8":
            inputs = {"pixel_values": np.asarray(self._preprocessor.squash(image))[np.newaxis]}
        else:
            inputs = {"pixel_values": self._preprocessor(image)["pixel_values"]}
        logits: Floats = self._session.run("logits", inputs)[0]
        if not np.isfinite(logits).all():
            raise BundleError("The classifier returned NaN or infinity. Compile it again: siglip-onnx compile")
        return logits
