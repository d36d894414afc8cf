"""Compare a model with its PyTorch original, stage by stage; needs torch and transformers."""

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
from ..options import DROP

# Largest differences allowed for fp32: none of pixels and ids, rounding of other orders of summation otherwise.
ALLOWED = {"pixels": 0.0, "ids": 0.0, "vision embedding": 1e-5, "text embedding": 1e-5, "logits": 1e-4}


@dataclass(frozen=True)
class StageDifference:
    """One stage against PyTorch: the largest absolute difference, and the smallest cosine where rows are vectors."""

    stage: str
    max_abs: float
    cosine_min: float | None = None

    @property
    def allowed(self) -> float:
        """The largest difference that fp32 may have at this stage."""
        return ALLOWED[self.stage]


def compare_with_pytorch(
    model: SigLIP, checkpoint: Path, images: Sequence[ImageSource], texts: Sequence[str]
) -> list[StageDifference]:
    """Compare pixels, ids, embeddings and logits with those of transformers.

    Args:
        model: the variant to compare; only fp32 can be within the allowed differences.
        checkpoint: the folder that the model was exported from.
        images: as :func:`.image.load_image` takes them.
        texts: texts, as they are given to both tokenizers.

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
    image_rows, expected_rows, pixel_errors = [], [], [0.0]
    with torch.no_grad():
        for source in images:
            image = load_image(source, background=DROP)  # as transformers 4.57 decodes it
            expected_inputs = processor([image], return_tensors="pt")
            (inputs,) = model.preprocess(image)
            pixel_errors.append(_pixel_error(inputs["pixel_values"], expected_inputs["pixel_values"].numpy()))
            expected_rows.append(reference.get_image_features(**expected_inputs).numpy())
            image_rows.append(model.encode_images(image))
        expected_texts = _unit(reference.get_text_features(torch.from_numpy(ids)).numpy())
        scale, bias = reference.logit_scale.exp().item(), reference.logit_bias.item()
    image_embeddings, expected_images = np.concatenate(image_rows), _unit(np.concatenate(expected_rows))
    text_embeddings = model.encode_texts(texts)
    expected_logits = expected_images @ expected_texts.T * scale + bias
    logit_error = np.abs(model.logits(image_embeddings, text_embeddings) - expected_logits)
    return [
        StageDifference("pixels", float(np.max(pixel_errors))),
        StageDifference("ids", float(np.abs(model.tokenize(texts) - ids).max(initial=0))),
        _compare_rows("vision embedding", image_embeddings, expected_images),
        _compare_rows("text embedding", text_embeddings, expected_texts),
        StageDifference("logits", float(logit_error.max())),
    ]


def image_processor(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return the slow image processor; the fast one gives other pixels, and needs torchvision."""
    naflex = config.model_type == NAFLEX
    kind = transformers.Siglip2ImageProcessor if naflex else transformers.SiglipImageProcessor
    return kind.from_pretrained(checkpoint, local_files_only=True)


def tokenizer(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return a function from a text to its ids: SigLIP's slow tokenizer, or Gemma's on the lower-cased text."""
    settings = {"padding": "max_length", "truncation": True, "max_length": config.text.max_position_embeddings}
    if (checkpoint / SENTENCEPIECE).exists():
        slow = transformers.SiglipTokenizer(str(checkpoint / SENTENCEPIECE))
        return lambda text: slow(text, **settings).input_ids
    gemma = transformers.GemmaTokenizerFast.from_pretrained(
        checkpoint, local_files_only=True, add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    return lambda text: gemma(text.lower(), **settings).input_ids


def _pixel_error(pixels: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference; NaFlex's reference pads with zeros, this package does not pad."""
    if pixels.ndim == 3:
        padding = expected[:, pixels.shape[1] :]
        expected = expected[:, : pixels.shape[1]]
        if padding.any():
            return float(np.abs(padding).max())
    return float(np.abs(pixels - expected).max())


def _unit(features: Floats) -> Floats:
    unit: Floats = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _compare_rows(stage: str, rows: Floats, expected: Floats) -> StageDifference:
    return StageDifference(stage, float(np.abs(rows - expected).max()), float((rows * expected).sum(axis=1).min()))
