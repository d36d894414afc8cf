"""The answers that a configuration gave while it was timed, and how near they are to the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import Bundle
from ..errors import BenchmarkError
from ..head import Floats, l2_normalize
from .schema import Fidelity

_CARD = "the model's accuracy card"


@dataclass(frozen=True)
class Answers:
    """What one process answered: the last output of each stage for each input.

    ``vision`` f32 ``(N, D)`` and ``text`` f32 ``(M, D)`` of any length, ``logits`` f32 ``(N, M)`` of the head,
    ``end_to_end`` f32 ``(N,)``: picture ``i`` with text ``i mod M``.
    """

    pixels: Sequence[NDArray[Any]]
    ids: NDArray[np.int64]
    vision: Floats
    text: Floats
    logits: Floats
    end_to_end: Floats

    def save(self, path: Path) -> None:
        """Write everything to an ``.npz`` file."""
        pixels = {f"pixels_{number}": one for number, one in enumerate(self.pixels)}
        arrays: dict[str, Any] = {
            "ids": self.ids, "vision": self.vision, "text": self.text, "logits": self.logits,
            "end_to_end": self.end_to_end, **pixels,
        }  # fmt: skip
        np.savez(path, **arrays)

    @staticmethod
    def read(path: Path) -> Answers:
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            found = dict(file)
        pixels = [found.pop(f"pixels_{number}") for number in range(sum(key.startswith("pixels_") for key in found))]
        return Answers(pixels=pixels, **found)


def compare_answers(rounds: Sequence[Path], reference: Answers, name: str) -> Fidelity:
    """Return the worst that any round's answers, read one after the other, differ from the reference's.

    Raises:
        BenchmarkError: answers of another shape, or that are no numbers.
    """
    found = [_compare(Answers.read(path), reference) for path in rounds]
    worst_up = {key: max(one[key] for one in found) for key in found[0] if not key.endswith(("_min", "cosine_mean"))}
    worst_down = {key: min(one[key] for one in found) for key in found[0] if key not in worst_up}
    return Fidelity(reference=name, **(worst_up | worst_down))


def fidelity_of_card(bundle: Bundle, variant: str) -> Fidelity:
    """Return what the manifest says of a variant, where neither PyTorch nor fp32 is at hand to compare with.

    Raises:
        BenchmarkError: the variant has no accuracy card.
    """
    card = bundle.manifest.variants[variant].accuracy
    names = ("vision_cosine_min", "vision_cosine_mean", "text_cosine_min", "text_cosine_mean", "logit_error_mean",
             "logit_error_max")  # fmt: skip
    if not set(names) <= card.keys():
        raise BenchmarkError(
            f"{bundle.path} has neither an fp32 variant to compare {variant} with nor its accuracy card. Export it "
            "with --precision fp32 too, or give the checkpoint: --reference CHECKPOINT"
        )
    return Fidelity(f"{card['reference']}, by {_CARD}", **{name: card[name] for name in names})


def cosines(found: Floats, expected: Floats) -> NDArray[np.float64]:
    """Return the cosine of each row, f64 ``(N,)``."""
    if found.shape != expected.shape:
        raise BenchmarkError(f"Embeddings of shape {found.shape} were expected as {expected.shape}: another model?")
    rows: NDArray[np.float64] = (
        l2_normalize(found).astype(np.float64) * l2_normalize(expected).astype(np.float64)
    ).sum(axis=1)
    return np.minimum(rows, 1.0)


def _compare(found: Answers, expected: Answers) -> dict[str, Any]:
    vision, text = cosines(found.vision, expected.vision), cosines(found.text, expected.text)
    errors = np.abs(
        np.concatenate([(found.logits - expected.logits).ravel(), (found.end_to_end - expected.end_to_end).ravel()])
    )
    pixels = [_pixel_error(one, other) for one, other in zip(found.pixels, expected.pixels, strict=True)]
    return {
        "vision_cosine_min": float(vision.min()),
        "vision_cosine_mean": float(vision.mean()),
        "text_cosine_min": float(text.min()),
        "text_cosine_mean": float(text.mean()),
        "logit_error_mean": float(errors.mean()),
        "logit_error_max": float(errors.max()),
        "pixel_error": max(pixels),
        "ids_different": int((found.ids != expected.ids).any(axis=1).sum()),
    }


def _pixel_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference; patches of NaFlex may be followed by padding on either side."""
    if found.ndim == 3:
        shared = min(found.shape[1], expected.shape[1])
        found, expected = found[:, :shared], expected[:, :shared]
    return float(np.abs(found - expected).max())
