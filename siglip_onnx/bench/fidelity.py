"""Compare the answers that a configuration gave while it was timed with those of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import Bundle
from ..errors import BenchmarkError
from ..head import Floats, l2_normalize
from ..verify.accuracy import Closeness, summarize_closeness
from .schema import Fidelity

_CARD = "the model's accuracy card"


@dataclass(frozen=True)
class Answers:
    """The answers of one process: the last output of each stage for each input.

    ``vision`` f32 ``(N, D)`` and ``text`` f32 ``(M, D)`` of any length, ``logits`` f32 ``(N, M)`` of the head,
    ``end_to_end`` f32 ``(N,)``: image ``i`` with text ``i mod M``.
    """

    pixels: Sequence[NDArray[Any]]
    ids: NDArray[np.int64]
    vision: Floats
    text: Floats
    logits: Floats
    end_to_end: Floats

    def save(self, path: Path) -> None:
        """Write everything to an ``.npz`` file."""
        pixels = {f"pixels_{number}": values for number, values in enumerate(self.pixels)}
        arrays: dict[str, Any] = {
            "ids": self.ids, "vision": self.vision, "text": self.text, "logits": self.logits,
            "end_to_end": self.end_to_end, **pixels,
        }  # fmt: skip
        np.savez(path, **arrays)

    @staticmethod
    def read(path: Path) -> Answers:
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            arrays = dict(file)
        num_images = sum(key.startswith("pixels_") for key in arrays)
        pixels = [arrays.pop(f"pixels_{number}") for number in range(num_images)]
        return Answers(pixels=pixels, **arrays)


def compare_answers(rounds: Sequence[Path], reference: Answers, name: str) -> Fidelity:
    """Return the largest differences of any round's answers from the reference's; rounds are read one at a time.

    Raises:
        BenchmarkError: answers of another shape, or with NaN or infinity.
    """
    results = [_compare(Answers.read(path), reference) for path in rounds]
    worst = {
        key: (np.min if "cosine" in key else np.max)([result[key] for result in results]).item() for key in results[0]
    }  # of numpy, whose minimum and maximum keep NaN
    return Fidelity(reference=name, **worst)


def fidelity_of_card(bundle: Bundle, variant: str) -> Fidelity:
    """Return the manifest's accuracy card of a variant, for when there is neither PyTorch nor fp32 to compare with.

    Raises:
        BenchmarkError: the variant has no accuracy card.
    """
    card = bundle.manifest.variants[variant].accuracy
    names = {field.name for field in fields(Closeness)}
    if not names <= card.keys():
        raise BenchmarkError(
            f"{bundle.path} has neither an fp32 variant to compare {variant} with nor its accuracy card. Export it "
            "with --variant fp32 too, or give the checkpoint: --reference CHECKPOINT"
        )
    return Fidelity(reference=f"{card['reference']}, by {_CARD}", **{name: card[name] for name in names})


def cosines(features: Floats, expected: Floats) -> NDArray[np.float64]:
    """Return the cosine of each row, f64 ``(N,)``."""
    if features.shape != expected.shape:
        raise BenchmarkError(
            f"The embeddings have shape {features.shape}; expected {expected.shape}. Compare the same model."
        )
    rows: NDArray[np.float64] = (
        l2_normalize(features).astype(np.float64) * l2_normalize(expected).astype(np.float64)
    ).sum(axis=1)
    return np.minimum(rows, 1.0)


def _compare(answers: Answers, expected: Answers) -> dict[str, Any]:
    vision, text = cosines(answers.vision, expected.vision), cosines(answers.text, expected.text)
    differences = (answers.logits - expected.logits, answers.end_to_end - expected.end_to_end)
    closeness = summarize_closeness(vision, text, np.abs(np.concatenate([values.ravel() for values in differences])))
    return asdict(closeness) | {
        "pixel_error": np.max([_pixel_error(*pair) for pair in zip(answers.pixels, expected.pixels, strict=True)]),
        "ids_different": int((answers.ids != expected.ids).any(axis=1).sum()),
    }


def _pixel_error(pixels: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference; patches of NaFlex may be followed by padding on either side."""
    if pixels.ndim == 3:
        shared = min(pixels.shape[1], expected.shape[1])
        pixels, expected = pixels[:, :shared], expected[:, :shared]
    return float(np.abs(pixels - expected).max())
