"""This engine as a contestant, and the front end that backends of plain graphs share with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.folder import open_bundle
from ..bundle.manifest import TOWERS, graph_path
from ..head import Floats, compute_logits, l2_normalize
from ..image.decode import load_image
from ..model import draft_size, make_preprocessor
from ..session import Session
from ..text.tokenizer import Tokenizer
from .contestant import Configuration, Inputs

FAST_DECODE = "fast decode"  # behind a variant's name


class FrontEnd:
    """Everything but the towers: decode, preprocess, tokenize, head; bit-equal to transformers' slow processors."""

    def __init__(self, bundle: Path, *, fast_decode: bool = False) -> None:
        self.bundle = open_bundle(bundle)
        self._preprocessor = make_preprocessor(self.bundle, None, fast_decode=fast_decode)
        self._draft_size = draft_size(self._preprocessor) if fast_decode else None
        self._tokenizer = Tokenizer(self.bundle.tokenizer_path, self.bundle.config.text.max_position_embeddings)

    def decode(self, path: Path) -> Image.Image:
        """Return an upright RGB picture."""
        return load_image(path, draft_size=self._draft_size)

    def preprocess(self, picture: Image.Image) -> Inputs:
        """Return the vision tower's inputs."""
        return self._preprocessor(picture)

    def tokenize(self, text: str) -> NDArray[np.int64]:
        """Return ``input_ids`` i64 ``(1, T)``."""
        return self._tokenizer([text])

    def head(self, images: Floats, texts: Floats) -> Floats:
        """Return logits f32 ``(N, M)``."""
        manifest = self.bundle.manifest
        return compute_logits(
            l2_normalize(images), l2_normalize(texts), logit_scale=manifest.logit_scale, logit_bias=manifest.logit_bias
        )


class Engine(FrontEnd):
    """One variant of a bundle, with the sessions that the commands use."""

    def __init__(self, configuration: Configuration) -> None:
        variant, _, option = configuration.variant.partition(", ")
        super().__init__(Path(configuration.bundle), fast_decode=option == FAST_DECODE)
        made = self.bundle.manifest.variants[variant].quantization
        self._vision, self._text = (
            Session(
                self.bundle.path / graph_path(tower, variant),
                threads=configuration.threads,
                saturation_safe=bool(made.get(tower, {}).get("reduce_range")),
            )
            for tower in TOWERS
        )

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``."""
        return self._vision.run("pooler_output", inputs)

    def text(self, input_ids: NDArray[np.int64]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``."""
        return self._text.run("pooler_output", {"input_ids": input_ids})


def load(configuration: Configuration) -> Engine:
    """Load both towers of a variant: ``int8``, or ``int8, fast decode``."""
    return Engine(configuration)


def files(configuration: Configuration) -> list[Path]:
    """Return the variant's graphs and weights, and the bundle's common files."""
    bundle = open_bundle(Path(configuration.bundle))
    variant = bundle.manifest.variants[configuration.variant.partition(", ")[0]]
    return [bundle.path / name for name in (*variant.files, *bundle.manifest.files)]


def packages(_configuration: Configuration) -> tuple[str, ...]:
    """Return what computes."""
    return ("onnxruntime",)
