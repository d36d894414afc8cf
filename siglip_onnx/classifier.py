"""A compiled classifier: one ONNX file with the labels inside, made by ``siglip-onnx compile``.

The graph takes ``pixel_values`` and gives ``logits`` and ``probabilities``; its metadata entry ``siglip_onnx`` is a
JSON object with the labels and how pictures are prepared. Nothing else is needed to run it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .config import LevelsConfig, PreprocessorConfig
from .errors import BundleError
from .head import Floats, Match, match_texts
from .image.decode import DEFAULT_LIMITS, ImageLimits, ImageSource, open_image
from .image.preprocess import SquashPreprocessor
from .session import Session

FACTS = "siglip_onnx"
FORMAT = "siglip_onnx.classifier/1"


class Classifier:
    """A compiled classifier, loaded."""

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        image_limits: ImageLimits | None = None,
        allow_truncated: bool = False,
    ) -> None:
        """Load ``path``; see :func:`siglip_onnx.load` for the other arguments.

        Raises:
            BundleError: no compiled classifier, or one of another format.
            ProviderError: a provider is not available.
        """
        self._session = Session(path, providers=providers, threads=threads)
        self.providers = self._session.providers
        self._image_limits = DEFAULT_LIMITS if image_limits is None else image_limits
        self._allow_truncated = allow_truncated
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
                f"{path} is no compiled classifier of this version ({error!r}). Make one with: siglip-onnx compile"
            ) from error

    def classify(self, image: ImageSource) -> list[Match]:
        """Say for each label how probably it describes the picture, in the order of the labels.

        Raises:
            ImageError: the picture cannot be read.
        """
        return self.match(image)[0]

    def match(self, image: ImageSource) -> tuple[list[Match], bool]:
        """Do as :meth:`classify`, and say whether the picture was truncated."""
        picture = open_image(image, limits=self._image_limits, allow_truncated=self._allow_truncated)
        return match_texts(self._run(picture.rgb), self.labels), picture.truncated

    def logits(self, image: ImageSource) -> Floats:
        """Return the picture's logits f32 ``(M,)``."""
        return self._run(open_image(image, limits=self._image_limits, allow_truncated=self._allow_truncated).rgb)

    def _run(self, picture: Image.Image) -> Floats:
        if self._uint8:
            inputs = {"pixel_values": np.asarray(self._preprocessor.squash(picture))[np.newaxis]}
        else:
            inputs = {"pixel_values": self._preprocessor(picture)["pixel_values"]}
        logits: Floats = self._session.run("logits", inputs)[0]
        if not np.isfinite(logits).all():
            raise BundleError("The classifier gave values that are no numbers. Compile it again: siglip-onnx compile")
        return logits
