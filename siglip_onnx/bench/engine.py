"""This engine as a backend, and the front end that it shares with backends of plain graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.folder import open_bundle
from ..head import Floats, l2_normalize
from ..model import SigLIP
from ..options import DEFAULTS, RuntimeOptions
from ..session import OPENVINO
from .backend import Configuration, Inputs


class FrontEnd:
    """Everything but the towers: decode, preprocess, tokenize, head; bit-equal to transformers' slow processors."""

    def __init__(self, bundle: Path, options: RuntimeOptions = DEFAULTS) -> None:
        self.model = SigLIP(open_bundle(bundle), options)

    def decode(self, path: Path) -> Image.Image:
        """Return an upright RGB image."""
        return self.model.vision.reader.read(path).rgb

    def preprocess(self, image: Image.Image) -> Inputs:
        """Return the vision tower's inputs."""
        return self.model.vision.preprocess(image)

    def tokenize(self, text: str) -> NDArray[np.int64]:
        """Return ``input_ids`` i64 ``(1, T)``."""
        return self.model.tokenize([text])

    def head(self, images: Floats, texts: Floats) -> Floats:
        """Return logits f32 ``(N, M)``."""
        return self.model.logits(l2_normalize(images), l2_normalize(texts))


class Engine(FrontEnd):
    """One variant of a bundle, with the sessions that the commands use."""

    def __init__(self, configuration: Configuration) -> None:
        provider = (configuration.provider, configuration.settings)
        super().__init__(
            Path(configuration.bundle),
            RuntimeOptions(
                configuration.variant,
                [provider] if configuration.provider else None,
                threads=configuration.threads,
                fast_decode=configuration.fast_decode,
            ),
        )
        for tower in (self.model.vision, self.model.text):
            tower.session.load()

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``."""
        return self.model.vision.session.run("pooler_output", inputs)

    def text(self, input_ids: NDArray[np.int64]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``."""
        return self.model.text.session.run("pooler_output", {"input_ids": input_ids})


load = Engine


def files(configuration: Configuration) -> list[Path]:
    """Return the variant's graphs and weights, and the bundle's common files."""
    bundle = open_bundle(Path(configuration.bundle))
    variant = bundle.manifest.variants[configuration.variant]
    return [bundle.path / name for name in (*variant.files, *bundle.manifest.files)]


def packages(configuration: Configuration) -> tuple[str, ...]:
    """Return the packages that compute."""
    return ("openvino",) if configuration.provider == OPENVINO else ("onnxruntime",)
