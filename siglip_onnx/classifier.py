"""A compiled classifier: one ONNX file with the labels inside, made by ``siglip-onnx compile``.

The graph takes ``pixel_values`` and gives ``logits`` and ``probabilities``; its metadata entry ``siglip_onnx`` is a
JSON object with the labels and how images are prepared. Nothing else is needed to run it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .config import LevelsConfig, PreprocessorConfig
from .errors import BundleError
from .head import Floats, Match, match_texts
from .image.decode import ImageReader, ImageSource
from .image.preprocess import SquashPreprocessor
from .options import DEFAULTS, RuntimeOptions
from .session import LazySession

FACTS = "siglip_onnx"
FORMAT = "siglip_onnx.classifier/1"


class Classifier:
    """A compiled classifier, loaded."""

    def __init__(
        self,
        path: Path,
        options: RuntimeOptions = DEFAULTS,
    ) -> None:
        """Load ``path``; of the options, providers, threads, image limits and ``allow_truncated`` apply.

        Raises:
            BundleError: not a compiled classifier, or one of another format.
            ProviderError: a provider is not available.
        """
        self._session = LazySession(path, providers=options.providers, threads=options.threads)
        self._reader = ImageReader(options.image_limits, options.allow_truncated)
        self.providers = self._session.providers
        try:
            facts = json.loads(self._session.metadata[FACTS])
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']!r}, expected {FORMAT!r}")
            levels = LevelsConfig(facts["rescale_factor"], tuple(facts["image_mean"]), tuple(facts["image_std"]))
            self._preprocessor = SquashPreprocessor(
                PreprocessorConfig(facts["height"], facts["width"], facts["resample"], levels)
            )
            self.labels: list[str] = facts["labels"]
            self.templates: list[str] = facts["templates"]
            self.model_name: str = facts["model"]
            self.variant: str = facts["variant"]
            self.embedding_space: str = facts["embedding_space"]
            self._uint8 = facts["input"] == "uint8"
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path} is not a compiled classifier of this version ({error!r}). Make one with: siglip-onnx compile"
            ) from error

    def classify(self, image: ImageSource) -> list[Match]:
        """Return for each label how probably it describes the image, in the order of the labels.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.match(image)[0]

    def match(self, image: ImageSource) -> tuple[list[Match], bool]:
        """Do as :meth:`classify`, and return whether the image was truncated."""
        decoded = self._reader.read(image)
        return match_texts(self._run(decoded.rgb), self.labels), decoded.truncated

    def logits(self, image: ImageSource) -> Floats:
        """Return the image's logits f32 ``(M,)``."""
        return self._run(self._reader.read(image).rgb)

    def _run(self, image: Image.Image) -> Floats:
        if self._uint8:
            inputs = {"pixel_values": np.asarray(self._preprocessor.squash(image))[np.newaxis]}
        else:
            inputs = {"pixel_values": self._preprocessor(image)["pixel_values"]}
        logits: Floats = self._session.run("logits", inputs)[0]
        if not np.isfinite(logits).all():
            raise BundleError("The classifier returned NaN or infinity. Compile it again: siglip-onnx compile")
        return logits
