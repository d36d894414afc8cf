"""Self-test of the demo model: compare its embeddings on this machine with stored fp32 ones.

``demo/golden.npz`` holds unit embeddings f32 of the sample images and of some texts, and their provenance;
``scripts/make_golden.py`` writes it.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError
from ..head import Floats
from ..model import SigLIP
from . import IMAGES_PATH

MIN_COSINE = 0.99  # on every CPU; int8 itself is above .999


@dataclass(frozen=True)
class Golden:
    """Stored embeddings: file names of images, texts, unit embeddings f32 ``(N, D)`` of both, and their provenance."""

    images: tuple[str, ...]
    texts: tuple[str, ...]
    image_embeddings: Floats
    text_embeddings: Floats
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """The lowest cosine to the stored embeddings, of images and of texts."""

    image_cosine_min: float
    text_cosine_min: float

    @property
    def holds(self) -> bool:
        """Whether the model works correctly on this machine; NaN does not pass."""
        return self.image_cosine_min >= MIN_COSINE and self.text_cosine_min >= MIN_COSINE


def read_golden(path: Path) -> Golden:
    """Read what :func:`write_golden` wrote.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Golden(
                tuple(map(str, stored["pictures"])),
                tuple(map(str, stored["texts"])),
                stored["image_embeddings"],
                stored["text_embeddings"],
                json.loads(str(stored["provenance"])),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read ({error!r}). Install siglip_onnx again.") from error


def write_golden(golden: Golden, path: Path) -> None:
    """Write embeddings for :func:`read_golden`."""
    np.savez_compressed(
        path,
        pictures=np.array(golden.images),
        texts=np.array(golden.texts),
        image_embeddings=golden.image_embeddings,
        text_embeddings=golden.text_embeddings,
        provenance=np.array(json.dumps(golden.provenance)),
    )


def compare(golden: Golden, image_embeddings: Floats, text_embeddings: Floats) -> Agreement:
    """Compare embeddings with the stored ones."""
    return Agreement(
        _cosine_min(golden.image_embeddings, image_embeddings), _cosine_min(golden.text_embeddings, text_embeddings)
    )


def self_test(model: SigLIP, golden: Golden) -> Agreement:
    """Compare a model's embeddings of the sample images and texts with the stored ones.

    Raises:
        BundleError: the stored embeddings are of another model.
    """
    images = model.encode_images([IMAGES_PATH / name for name in golden.images])
    return compare(golden, images, model.encode_texts(golden.texts))


def _cosine_min(expected: Floats, embeddings: Floats) -> float:
    if expected.shape != embeddings.shape:
        raise BundleError(
            f"The stored embeddings have shape {expected.shape}, the model's {embeddings.shape}; they are of different "
            "models. Install siglip_onnx again."
        )
    return float((expected * embeddings).sum(axis=1).min())
