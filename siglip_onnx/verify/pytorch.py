"""The PyTorch model beside ours, stage by stage: needs torch and transformers, which nothing else here does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ..config import NAFLEX, SENTENCEPIECE, SiglipConfig
from ..errors import CheckpointError
from ..head import Floats
from ..image.decode import ImageSource, load_image
from ..model import SigLIP

# What fp32 may differ by: pictures and ids not at all, the rest by what other orders of summation cost.
ALLOWED = {"pixels": 0.0, "ids": 0.0, "vision embedding": 1e-5, "text embedding": 1e-5, "logits": 1e-4}


@dataclass(frozen=True)
class StageDifference:
    """One stage against PyTorch: the largest absolute difference, and the smallest cosine where rows are vectors."""

    stage: str
    max_abs: float
    cosine_min: float | None = None

    @property
    def allowed(self) -> float:
        """What fp32 may differ by at this stage."""
        return ALLOWED[self.stage]


def compare_with_pytorch(
    model: SigLIP, checkpoint: Path, pictures: Sequence[ImageSource], texts: Sequence[str]
) -> list[StageDifference]:
    """Compare every stage with transformers, each on the reference's own inputs of the stages before.

    Args:
        model: the variant to compare; only fp32 can be within what is allowed.
        checkpoint: the folder that the model was exported from.
        pictures: as :func:`.image.load_image` takes them.
        texts: texts that the reference tokenizer takes.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    try:
        reference = transformers.AutoModel.from_pretrained(checkpoint, local_files_only=True).eval()
        processor = image_processor(checkpoint, model.bundle.config)
        tokenize = tokenizer(checkpoint, model.bundle.config)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {checkpoint}: {error}") from error
    ids = np.array([tokenize(text) for text in texts], np.int64)
    found_images, expected_images, pixel_error = [], [], 0.0
    with torch.no_grad():
        for source in pictures:
            picture = load_image(source)
            inputs = processor([picture], return_tensors="pt")
            (ours,) = model.preprocess(picture)
            pixel_error = max(pixel_error, _pixel_error(ours["pixel_values"], inputs["pixel_values"].numpy()))
            expected_images.append(reference.get_image_features(**inputs).numpy())
            found_images.append(model.encode_images(picture))
        expected_texts = reference.get_text_features(torch.from_numpy(ids)).numpy()
        scale, bias = reference.logit_scale.exp().item(), reference.logit_bias.item()
    images, texts_found = np.concatenate(found_images), model.encode_texts(texts)
    expected_image, expected_text = (_unit(features) for features in (np.concatenate(expected_images), expected_texts))
    logit_error = np.abs(model.logits(images, texts_found) - (expected_image @ expected_text.T * scale + bias))
    return [
        StageDifference("pixels", pixel_error),
        StageDifference("ids", float(np.abs(model.tokenize(texts) - ids).max(initial=0))),
        _compare_rows("vision embedding", images, expected_image),
        _compare_rows("text embedding", texts_found, expected_text),
        StageDifference("logits", float(logit_error.max())),
    ]


def image_processor(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return the slow processor: the fast one differs, and needs torchvision."""
    naflex = config.model_type == NAFLEX
    kind = transformers.Siglip2ImageProcessor if naflex else transformers.SiglipImageProcessor
    return kind.from_pretrained(checkpoint, local_files_only=True)


def tokenizer(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return the function from a text to its ids: SigLIP's slow tokenizer, or Gemma's after lower-casing."""
    settings = {
        "padding": "max_length",
        "truncation": True,
        "max_length": config.text.max_position_embeddings,
    }
    if (checkpoint / SENTENCEPIECE).exists():
        slow = transformers.SiglipTokenizer(str(checkpoint / SENTENCEPIECE))
        return lambda text: slow(text, **settings).input_ids
    gemma = transformers.GemmaTokenizerFast.from_pretrained(
        checkpoint, local_files_only=True, add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    return lambda text: gemma(text.lower(), **settings).input_ids


def _pixel_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference; NaFlex's reference pads with zeros where ours ends."""
    if found.ndim == 3:
        padding = expected[:, found.shape[1] :]
        expected = expected[:, : found.shape[1]]
        if padding.any():
            return float(np.abs(padding).max())
    return float(np.abs(found - expected).max())


def _unit(features: Floats) -> Floats:
    unit: Floats = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _compare_rows(stage: str, found: Floats, expected: Floats) -> StageDifference:
    return StageDifference(stage, float(np.abs(found - expected).max()), float((found * expected).sum(axis=1).min()))
