"""PyTorch and transformers as a backend, which is the reference. Needs torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..bundle.folder import open_bundle
from ..config import CONFIG, read_document
from ..head import Floats
from ..image.decode import load_image
from ..verify.pytorch import image_processor, load_reference, tokenizer
from ..verify.sizes import check_sizes
from .backend import Configuration, Inputs


class PyTorch:
    """A checkpoint as transformers documents it: its slow processors, scaled dot product attention, no gradients."""

    def __init__(self, configuration: Configuration) -> None:
        torch.set_num_threads(configuration.threads)
        checkpoint, config = Path(configuration.checkpoint), open_bundle(Path(configuration.bundle)).config
        check_sizes(read_document(checkpoint / CONFIG), config, checkpoint)
        self.model = load_reference(checkpoint)
        self.dtype = torch.float32
        self._processor = image_processor(checkpoint, config)
        self._tokenize = tokenizer(checkpoint, config)

    def decode(self, path: Path) -> Image.Image:
        """Return an upright RGB image, the same for every engine."""
        return load_image(path)

    def preprocess(self, image: Image.Image) -> Inputs:
        """Return ``pixel_values`` f32 ``(1, 3, S, S)``, or NaFlex's three inputs."""
        return dict(self._processor([image], return_tensors="np"))

    def tokenize(self, text: str) -> NDArray[np.int64]:
        """Return ``input_ids`` i64 ``(1, T)``."""
        return np.array([self._tokenize(text)], np.int64)

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``."""
        return self._run(self.model.get_image_features, **inputs)

    def text(self, input_ids: NDArray[np.int64]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``."""
        return self._run(self.model.get_text_features, input_ids=input_ids)

    def head(self, images: Floats, texts: Floats) -> Floats:
        """Return logits f32 ``(N, M)``, computed as ``SiglipModel.forward`` does."""
        with torch.inference_mode():
            image, text = (torch.nn.functional.normalize(torch.from_numpy(features)) for features in (images, texts))
            scores = image @ text.T * self.model.logit_scale.float().exp() + self.model.logit_bias.float()
            logits: Floats = scores.numpy()
        return logits

    def _run(self, function: Any, **inputs: NDArray[Any]) -> Floats:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.asarray(values)) for name, values in inputs.items()}
            if "pixel_values" in tensors:
                tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
            features: Floats = function(**tensors).float().numpy()
        return features


load = PyTorch


def files(configuration: Configuration) -> list[Path]:
    """Return the checkpoint's files."""
    return [path for path in Path(configuration.checkpoint).iterdir() if path.is_file()]


def packages(_configuration: Configuration) -> tuple[str, ...]:
    """Return the packages that compute."""
    return ("torch", "transformers")
