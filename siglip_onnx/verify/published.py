"""Compare a model with numbers that its checkpoint's authors and others published.

``published.json`` has the numbers; each entry names its source, the images (by SHA-256 where known), the texts, and the
tolerance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..bundle.folder import Bundle
from ..config import DUAL
from ..errors import BundleError
from ..head import Floats, sigmoid, softmax
from ..image.decode import ImageSource
from ..model import SigLIP

PUBLISHED_NUMBERS = Path(__file__).with_name("published.json")
Rows = NDArray[np.int64]
_DRAWN = "drawn "  # images that a test of transformers draws; "drawn 224x1024" is 224 wide


@dataclass(frozen=True)
class Check:
    """Published ``values`` of one quantity, and the largest difference that is allowed."""

    checkpoint: str
    quantity: str
    source: str
    images: list[dict[str, str]]
    texts: list[str]
    values: list[list[float]]
    tolerance: float
    max_num_patches: int | None = None


@dataclass(frozen=True)
class Finding:
    """The result of one check: the largest difference, or the names of the images that are missing."""

    quantity: str
    source: str
    tolerance: float
    max_abs: float | None
    missing: list[str]

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a check without its images has not failed."""
        return self.max_abs is None or self.max_abs <= self.tolerance


def read_checks(path: Path = PUBLISHED_NUMBERS) -> list[Check]:
    """Return all published numbers."""
    return [Check(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["checks"]]


def compare_with_published(bundle: Bundle, variant: str, images_dir: Path | None) -> list[Finding]:
    """Compare a variant with every published number of its checkpoint.

    Args:
        bundle: exported from a published checkpoint, which its manifest names.
        variant: only fp32 can be within the tolerances.
        images_dir: the folder in which the images are searched by name and SHA-256, at any depth.

    Raises:
        BundleError: there are no published numbers for the checkpoint.
    """
    if bundle.manifest.kind != DUAL:
        raise BundleError(
            f"{bundle.path} is of kind {bundle.manifest.kind!r}; the published numbers are of models with both towers. "
            "Compare it with its checkpoint instead: --reference CHECKPOINT"
        )
    name = bundle.manifest.source.get("checkpoint")
    checks = [check for check in read_checks() if check.checkpoint == name]
    if not checks:
        known = sorted({check.checkpoint for check in read_checks()})
        raise BundleError(
            f"{bundle.path} was exported from {name!r}, for which there are no published numbers; there are some for "
            f"{', '.join(known)}. Compare it with its checkpoint instead: --reference CHECKPOINT"
        )
    return [_compare(check, bundle, variant, images_dir) for check in checks]


def _compare(check: Check, bundle: Bundle, variant: str, images_dir: Path | None) -> Finding:
    finding = partial(Finding, check.quantity, check.source, check.tolerance)
    images = {entry["name"]: _find_image(entry, images_dir) for entry in check.images}
    missing = [name for name, image in images.items() if image is None]
    if missing:
        return finding(None, missing)
    model = SigLIP(bundle, variant=variant, max_num_patches=check.max_num_patches)
    present = [image for image in images.values() if image is not None]
    if check.quantity == "ids":
        values, expected = _align_ids(model.tokenize(check.texts).tolist(), check.values, model)
    else:
        values = _compute(check.quantity, model, present, check.texts)
        expected = np.array(check.values, np.float64)
    return finding(float(np.abs(values - expected).max()), [])


def _compute(quantity: str, model: SigLIP, images: Sequence[ImageSource], texts: list[str]) -> NDArray[Any]:
    """Return a quantity of images (rows) and texts (columns), or of the texts alone."""
    if quantity == "head":
        return np.array([[model.bundle.manifest.logit_scale, model.bundle.manifest.logit_bias]])
    text_embeddings = model.encode_texts(texts)
    if quantity == "text cosines":
        return text_embeddings @ text_embeddings.T
    image_embeddings = model.encode_images(images)
    logits = model.logits(image_embeddings, text_embeddings)
    quantities: dict[str, Floats] = {
        "cosines": image_embeddings @ text_embeddings.T,
        "logits": logits,
        "probabilities": sigmoid(logits),
        "shares": softmax(logits),
    }
    return quantities[quantity]


def _align_ids(ids: list[list[int]], published: list[list[float]], model: SigLIP) -> tuple[Rows, Rows]:
    """Pad ids and published ones, perhaps of another text length, to the same width."""
    pad = int(model.tokenize([""])[0, -1])
    width = max(len(row) for rows in (ids, published) for row in rows)
    return pad_ids(ids, width, pad), pad_ids(published, width, pad)


def pad_ids(rows: Sequence[Sequence[float]], length: int, pad: int) -> Rows:
    """Pad rows of ids, which are published without padding, to ``length``."""
    return np.array([[*row, *[pad] * (length - len(row))] for row in rows], np.int64)


def _find_image(entry: dict[str, str], folder: Path | None) -> ImageSource | None:
    name = entry["name"]
    if name.startswith(_DRAWN):
        width, height = map(int, name.removeprefix(_DRAWN).split("x"))
        return draw_circle(width, height)
    for path in sorted(folder.rglob(name)) if folder else []:
        if path.is_file() and entry.get("sha256", "") in ("", hashlib.sha256(path.read_bytes()).hexdigest()):
            return path
    return None


def draw_circle(width: int, height: int) -> Image.Image:
    """Draw the blue circle on red that ``Siglip2ModelIntegrationTest`` of transformers draws."""
    image = Image.new("RGB", (width, height), "red")
    radius = min(width // 2, height // 2) // 8 * 7
    box = (width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius)
    ImageDraw.Draw(image).ellipse(box, fill="blue", outline="green", width=width // 20)
    return image
