"""Self-test of the demo model: compare its answers on this machine with stored fp32 ones.

``demo/golden.npz`` holds unit embeddings f32 of the sample images and of some texts, made by
``scripts/make_golden.py``, with their provenance.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..demo import IMAGES_PATH
from ..errors import BundleError
from ..head import Floats
from ..model import SigLIP
from .accuracy import Accuracy, compare

MIN_COSINE = 0.99  # on every CPU; int8 itself is above 0.999


@dataclass(frozen=True)
class Golden:
    """Stored answers: file names of images, texts, their unit embeddings f32 ``(N, D)``, and how they were made."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    image_embeddings: Floats
    text_embeddings: Floats
    provenance: dict[str, Any]


def read_golden(path: Path) -> Golden:
    """Read what :func:`write_golden` wrote.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Golden(
                tuple(map(str, stored["images"])),
                tuple(map(str, stored["texts"])),
                stored["image_embeddings"],
                stored["text_embeddings"],
                json.loads(str(stored["provenance"])),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read ({error!r}). Install siglip_onnx again.") from error


def write_golden(golden: Golden, path: Path) -> None:
    """Write answers for :func:`read_golden`."""
    np.savez_compressed(
        path,
        images=np.array(golden.images),
        texts=np.array(golden.texts),
        image_embeddings=golden.image_embeddings,
        text_embeddings=golden.text_embeddings,
        provenance=np.array(json.dumps(golden.provenance)),
    )


def self_test(model: SigLIP, golden: Golden) -> Accuracy:
    """Compare a model's embeddings of the sample images and texts with the stored ones.

    Raises:
        BundleError: the answers are of another model.
    """
    images = model.encode_images([IMAGES_PATH / name for name in golden.images])
    texts = model.encode_texts(golden.texts)
    if (images.shape, texts.shape) != (golden.image_embeddings.shape, golden.text_embeddings.shape):
        raise BundleError(
            f"The stored answers have shape {golden.image_embeddings.shape}, the model's {images.shape}; they are of "
            "different models. Install siglip_onnx again."
        )
    manifest = model.bundle.manifest
    return compare(
        images,
        texts,
        golden.image_embeddings,
        golden.text_embeddings,
        logit_scale=manifest.logit_scale,
        logit_bias=manifest.logit_bias,
    )


def holds(accuracy: Accuracy) -> bool:
    """Say whether the model can be trusted on this machine; not if a cosine is NaN."""
    return accuracy.cosine_min >= MIN_COSINE
