"""What a checkpoint's authors, and others who ran it, published of its answers.

``published.json`` has the numbers; each entry names its source, the pictures (by SHA-256 where known) and texts, and
what may differ.
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
from ..errors import BundleError
from ..head import Floats, sigmoid, softmax
from ..image.decode import ImageSource
from ..model import SigLIP

PUBLISHED_NUMBERS = Path(__file__).with_name("published.json")
Rows = NDArray[np.int64]
_DRAWN = "drawn "  # pictures that transformers' test draws; "drawn 224x1024" is 224 wide


@dataclass(frozen=True)
class Check:
    """Published numbers of one quantity, ``values``, and by how much ours may differ."""

    checkpoint: str
    quantity: str
    source: str
    pictures: list[dict[str, str]]
    texts: list[str]
    values: list[list[float]]
    tolerance: float
    max_num_patches: int | None = None


@dataclass(frozen=True)
class Finding:
    """One check: the largest difference found, or the pictures that were not at hand."""

    quantity: str
    source: str
    tolerance: float
    max_abs: float | None
    missing: list[str]

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a check that could not be made has not failed."""
        return self.max_abs is None or self.max_abs <= self.tolerance


def read_checks(path: Path = PUBLISHED_NUMBERS) -> list[Check]:
    """Return all published numbers."""
    return [Check(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["checks"]]


def compare_with_published(bundle: Bundle, variant: str, pictures_dir: Path | None) -> list[Finding]:
    """Compare a variant with every published number of its checkpoint.

    Args:
        bundle: exported from a published checkpoint, which its manifest names.
        variant: fp32, if the differences are to be within the tolerances.
        pictures_dir: where the published pictures are looked for, by name and SHA-256, at any depth.

    Raises:
        BundleError: nothing is published of the checkpoint.
    """
    name = bundle.manifest.source.get("checkpoint")
    checks = [check for check in read_checks() if check.checkpoint == name]
    if not checks:
        known = sorted({check.checkpoint for check in read_checks()})
        raise BundleError(
            f"{bundle.path} was exported from {name!r}, of which no numbers are published; they are of "
            f"{', '.join(known)}. Compare it with its checkpoint instead: --reference CHECKPOINT"
        )
    return [_compare(check, bundle, variant, pictures_dir) for check in checks]


def _compare(check: Check, bundle: Bundle, variant: str, pictures_dir: Path | None) -> Finding:
    finding = partial(Finding, check.quantity, check.source, check.tolerance)
    pictures = {wanted["name"]: _find_picture(wanted, pictures_dir) for wanted in check.pictures}
    missing = [name for name, picture in pictures.items() if picture is None]
    if missing:
        return finding(None, missing)
    model = SigLIP(bundle, variant=variant, max_num_patches=check.max_num_patches)
    present = [picture for picture in pictures.values() if picture is not None]
    if check.quantity == "ids":
        found, expected = _align_ids(model.tokenize(check.texts).tolist(), check.values, model)
    else:
        found = _compute(check.quantity, model, present, check.texts)
        expected = np.array(check.values, np.float64)
    return finding(float(np.abs(found - expected).max()), [])


def _compute(quantity: str, model: SigLIP, pictures: Sequence[ImageSource], texts: list[str]) -> NDArray[Any]:
    """Return a quantity of pictures (rows) and texts (columns), or of the texts alone."""
    if quantity == "head":
        return np.array([[model.bundle.manifest.logit_scale, model.bundle.manifest.logit_bias]])
    labels = model.encode_texts(texts)
    if quantity == "text cosines":
        return labels @ labels.T
    images = model.encode_images(pictures)
    logits = model.logits(images, labels)
    found: dict[str, Floats] = {
        "cosines": images @ labels.T,
        "logits": logits,
        "probabilities": sigmoid(logits),
        "shares": softmax(logits),
    }
    return found[quantity]


def _align_ids(found: list[list[int]], published: list[list[float]], model: SigLIP) -> tuple[Rows, Rows]:
    """Bring our ids and published ones, perhaps of another text length, to the same width."""
    pad = int(model.tokenize([""])[0, -1])
    width = max(len(row) for rows in (found, published) for row in rows)
    return pad_ids(found, width, pad), pad_ids(published, width, pad)


def pad_ids(rows: Sequence[Sequence[float]], length: int, pad: int) -> Rows:
    """Continue rows of ids, which are published without their padding, to ``length``."""
    return np.array([[*row, *[pad] * (length - len(row))] for row in rows], np.int64)


def _find_picture(wanted: dict[str, str], folder: Path | None) -> ImageSource | None:
    name = wanted["name"]
    if name.startswith(_DRAWN):
        width, height = map(int, name.removeprefix(_DRAWN).split("x"))
        return draw_circle(width, height)
    for path in sorted(folder.rglob(name)) if folder else []:
        if "sha256" not in wanted or hashlib.sha256(path.read_bytes()).hexdigest() == wanted["sha256"]:
            return path
    return None


def draw_circle(width: int, height: int) -> Image.Image:
    """Draw the blue circle on red that ``Siglip2ModelIntegrationTest`` of transformers draws."""
    picture = Image.new("RGB", (width, height), "red")
    radius = min(width // 2, height // 2) // 8 * 7
    box = (width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius)
    ImageDraw.Draw(picture).ellipse(box, fill="blue", outline="green", width=width // 20)
    return picture
