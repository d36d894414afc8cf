"""The self-test of the demo model: its answers here beside stored fp32 ones.

``demo/golden.npz`` holds unit embeddings f32 of the sample pictures and of some texts, made by
``scripts/make_golden.py``, and says what made them.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.folder import Bundle
from ..bundle.manifest import graph_path
from ..errors import BundleError
from ..head import Floats, l2_normalize
from ..model import SigLIP
from ..session import Session

MIN_COSINE = 0.99  # whatever the CPU; int8 itself is above .999


@dataclass(frozen=True)
class Golden:
    """Stored answers: file names of pictures and texts, their unit embeddings f32 ``(N, D)``, and what made them."""

    pictures: tuple[str, ...]
    texts: tuple[str, ...]
    image_embeddings: Floats
    text_embeddings: Floats
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """The lowest cosine to the stored answers, of pictures and of texts."""

    image_cosine_min: float
    text_cosine_min: float

    @property
    def holds(self) -> bool:
        """Whether the model can be trusted here; what is no number cannot."""
        return self.image_cosine_min >= MIN_COSINE and self.text_cosine_min >= MIN_COSINE


def read_golden(path: Path) -> Golden:
    """Read what :func:`write_golden` wrote.

    Raises:
        BundleError: it cannot be read.
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
    """Write answers for :func:`read_golden`."""
    np.savez_compressed(
        path,
        pictures=np.array(golden.pictures),
        texts=np.array(golden.texts),
        image_embeddings=golden.image_embeddings,
        text_embeddings=golden.text_embeddings,
        provenance=np.array(json.dumps(golden.provenance)),
    )


def compare(golden: Golden, image_embeddings: Floats, text_embeddings: Floats) -> Agreement:
    """Return how near embeddings are to the stored ones."""
    return Agreement(
        _cosine_min(golden.image_embeddings, image_embeddings), _cosine_min(golden.text_embeddings, text_embeddings)
    )


def answer(
    bundle: Bundle, variant: str, pictures: list[Path], texts: list[str], *, saturation_safe: bool | None = None
) -> tuple[Floats, Floats]:
    """Return unit embeddings f32 ``(N, D)`` of pictures and texts.

    ``saturation_safe`` chooses the int8 kernels instead of the manifest: False takes exact ones on every CPU.
    """
    model = SigLIP(bundle, variant=variant)
    if saturation_safe is None:
        return model.encode_images(pictures), model.encode_texts(texts)
    vision, text = (
        Session(bundle.path / graph_path(tower, variant), saturation_safe=saturation_safe)
        for tower in ("vision", "text")
    )
    images = [vision.run("pooler_output", inputs)[0] for inputs in model.preprocess(pictures)]
    rows = [text.run("pooler_output", {"input_ids": row[np.newaxis]})[0] for row in model.tokenize(texts)]
    return l2_normalize(np.array(images, np.float32)), l2_normalize(np.array(rows, np.float32))


def _cosine_min(expected: Floats, found: Floats) -> float:
    if expected.shape != found.shape:
        raise BundleError(
            f"The stored answers have shape {expected.shape}, the model's {found.shape}; they are of different models. "
            "Install siglip_onnx again."
        )
    return float((expected * found).sum(axis=1).min())
