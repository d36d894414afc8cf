"""How near a variant is to fp32: cosine of the embeddings of sample pictures and texts, and error of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..bundle.folder import Bundle
from ..bundle.manifest import MANIFEST
from ..errors import BundleError
from ..head import Floats
from ..image.decode import ImageSource
from ..model import SigLIP
from ..system.files import write_atomic
from .samples import quiet_samples

REFERENCE = "fp32"
# Smallest cosine to fp32 of any sample embedding that a variant may have by default; 4 bits cannot be nearer.
MIN_COSINE = {"fp32": 0.999, "fp16": 0.999, "int8": 0.999, "q4": 0.95}


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How close embeddings and logits are to a reference's: cosines of one tower, and absolute logit errors."""

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
    """One variant against fp32 on the same pictures and texts."""

    num_pictures: int
    num_texts: int
    top1_agreement: float
    order_agreement: float

    def to_card(self, inputs: str = "built-in samples") -> dict[str, Any]:
        """Return the accuracy card of the manifest."""
        return {"reference": REFERENCE, "inputs": inputs} | {
            key: round(value, 7) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def embed_samples(model: SigLIP, pictures: Sequence[ImageSource], texts: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the embeddings ``(N, D)`` and ``(M, D)`` that :func:`compare` takes."""
    with quiet_samples(texts):
        return model.encode_images(pictures), model.encode_texts(texts)


def compare(model: SigLIP, found: tuple[Floats, Floats], reference: tuple[Floats, Floats]) -> Accuracy:
    """Compare a variant's embeddings with those of fp32; ``model`` gives the head."""
    vision = (found[0] * reference[0]).sum(axis=1)
    text = (found[1] * reference[1]).sum(axis=1)
    logits, expected = model.logits(*found), model.logits(*reference)
    error = np.abs(logits - expected)
    return Accuracy(
        num_pictures=len(vision),
        num_texts=len(text),
        vision_cosine_min=float(vision.min()),
        vision_cosine_mean=float(vision.mean()),
        text_cosine_min=float(text.min()),
        text_cosine_mean=float(text.mean()),
        logit_error_mean=float(error.mean()),
        logit_error_max=float(error.max()),
        top1_agreement=float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
        order_agreement=_order_agreement(logits, expected),
    )


def verify_variants(bundle: Bundle, pictures: Sequence[ImageSource], texts: Sequence[str]) -> dict[str, Accuracy]:
    """Compare every variant of a bundle with its fp32 variant, on the same pictures and texts.

    Raises:
        BundleError: the bundle has no fp32 variant.
    """
    if REFERENCE not in bundle.manifest.variants:
        raise BundleError(
            f"{bundle.path} has no {REFERENCE} variant to compare with; it has {', '.join(bundle.manifest.variants)}. "
            f"Export it with --precision {REFERENCE} as well, or compare with PyTorch: --reference CHECKPOINT"
        )
    model = SigLIP(bundle, variant=REFERENCE)
    reference = embed_samples(model, pictures, texts)
    accuracies = {}
    for name in bundle.manifest.variants:
        found = reference if name == REFERENCE else embed_samples(SigLIP(bundle, variant=name), pictures, texts)
        accuracies[name] = compare(model, found, reference)
    return accuracies


def write_cards(bundle: Bundle, accuracies: Mapping[str, Accuracy], inputs: str) -> None:
    """Put accuracy cards into the bundle's manifest, which is replaced at once.

    Raises:
        BundleError: it cannot be written.
    """
    variants = bundle.manifest.variants
    cards = {name: replace(variants[name], accuracy=found.to_card(inputs)) for name, found in accuracies.items()}
    manifest = replace(bundle.manifest, variants=variants | cards)
    path = bundle.path / MANIFEST
    try:
        write_atomic(path, manifest.to_json().encode())
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror or error}. Its old cards are kept.") from error


def _order_agreement(logits: Floats, expected: Floats) -> float:
    """Return how many pairs of texts stand in the same order, over all pictures; 1 if there are no pairs."""
    first, second = np.triu_indices(logits.shape[1], k=1)
    same = (logits[:, first] > logits[:, second]) == (expected[:, first] > expected[:, second])
    return float(same.mean()) if same.size else 1.0
