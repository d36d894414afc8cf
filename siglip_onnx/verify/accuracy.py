"""Accuracy of a variant against a reference: cosines of sample embeddings, and errors of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import Bundle
from ..bundle.manifest import MANIFEST
from ..errors import BundleError
from ..head import Floats, compute_logits
from ..image.decode import ImageSource
from ..model import SigLIP
from ..system.files import write_atomic
from .samples import quiet_samples

REFERENCE = "fp32"
# Default of the smallest cosine to fp32 that any sample embedding may have; 4 bits do not come closer.
MIN_COSINE = {"fp32": 0.999, "fp16": 0.999, "int8": 0.999, "q4": 0.95}


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How close embeddings and logits are to those of a reference: absolute logit errors, cosines of embeddings."""

    vision_cosine_min: float
    vision_cosine_mean: float
    text_cosine_min: float
    text_cosine_mean: float
    logit_error_mean: float
    logit_error_max: float

    @property
    def cosine_min(self) -> float:
        """The worst embedding of both towers."""
        return float(np.min([self.vision_cosine_min, self.text_cosine_min]))  # nan if either is


@dataclass(frozen=True, kw_only=True)
class Accuracy(Closeness):
    """A variant against fp32, on the same images and texts.

    ``top1_agreement`` is the share of images with the same best text, ``order_agreement`` that of pairs of texts in the
    same order.
    """

    num_images: int
    num_texts: int
    top1_agreement: float
    order_agreement: float

    def to_card(self, inputs: str = "built-in samples") -> dict[str, Any]:
        """Return the accuracy card of the manifest."""
        return {"reference": REFERENCE, "inputs": inputs} | {
            key: round(value, 7) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def compare(
    images: Floats,
    texts: Floats,
    expected_images: Floats,
    expected_texts: Floats,
    /,
    *,
    logit_scale: float,
    logit_bias: float,
) -> Accuracy:
    """Compare unit embeddings of images f32 ``(N, D)`` and texts f32 ``(M, D)`` with those of a reference.

    ``logit_scale`` and ``logit_bias`` are the model's head, see :func:`.compute_logits`.
    """
    vision = (images * expected_images).sum(axis=1)
    text = (texts * expected_texts).sum(axis=1)
    logits, expected = (
        compute_logits(*embeddings, logit_scale=logit_scale, logit_bias=logit_bias)
        for embeddings in ((images, texts), (expected_images, expected_texts))
    )
    return Accuracy(
        **asdict(summarize_closeness(vision, text, np.abs(logits - expected))),
        num_images=len(vision),
        num_texts=len(text),
        top1_agreement=float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
        order_agreement=_order_agreement(logits, expected),
    )


def summarize_closeness(
    vision_cosines: NDArray[np.floating[Any]],
    text_cosines: NDArray[np.floating[Any]],
    logit_errors: NDArray[np.floating[Any]],
) -> Closeness:
    """Return the minimum and mean of the cosines, and the mean and maximum of the absolute errors; any shapes."""
    return Closeness(
        vision_cosine_min=float(vision_cosines.min()),
        vision_cosine_mean=float(vision_cosines.mean()),
        text_cosine_min=float(text_cosines.min()),
        text_cosine_mean=float(text_cosines.mean()),
        logit_error_mean=float(logit_errors.mean()),
        logit_error_max=float(logit_errors.max()),
    )


def verify_variants(bundle: Bundle, images: Sequence[ImageSource], texts: Sequence[str]) -> dict[str, Accuracy]:
    """Compare every variant of a bundle with its fp32 variant, on the same images and texts.

    Raises:
        BundleError: the bundle has no fp32 variant.
    """
    if REFERENCE not in bundle.manifest.variants:
        raise BundleError(
            f"{bundle.path} has no {REFERENCE} variant to compare with; it has {', '.join(bundle.manifest.variants)}. "
            f"Export it with --precision {REFERENCE} as well, or compare with PyTorch: --reference CHECKPOINT"
        )
    head = {"logit_scale": bundle.manifest.logit_scale, "logit_bias": bundle.manifest.logit_bias}
    reference = _embed(bundle, REFERENCE, images, texts)
    return {
        name: compare(*(reference if name == REFERENCE else _embed(bundle, name, images, texts)), *reference, **head)
        for name in bundle.manifest.variants
    }


def _embed(bundle: Bundle, variant: str, images: Sequence[ImageSource], texts: Sequence[str]) -> tuple[Floats, Floats]:
    with SigLIP(bundle, variant=variant) as model, quiet_samples(texts):
        return model.encode_images(images), model.encode_texts(texts)


def write_cards(bundle: Bundle, accuracies: Mapping[str, Accuracy], inputs: str) -> None:
    """Write accuracy cards into the bundle's manifest, which is replaced atomically.

    Raises:
        BundleError: it cannot be written.
    """
    variants = bundle.manifest.variants
    cards = {name: replace(variants[name], accuracy=accuracy.to_card(inputs)) for name, accuracy in accuracies.items()}
    manifest = replace(bundle.manifest, variants={**variants, **cards})
    path = bundle.path / MANIFEST
    try:
        write_atomic(path, manifest.to_json().encode())
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror or error}. The old cards were kept.") from error


def _order_agreement(logits: Floats, expected: Floats) -> float:
    """Return the share of pairs of texts in the same order, over all images; 1 if there are no pairs."""
    first, second = np.triu_indices(logits.shape[1], k=1)
    same = (logits[:, first] > logits[:, second]) == (expected[:, first] > expected[:, second])
    return float(same.mean()) if same.size else 1.0
