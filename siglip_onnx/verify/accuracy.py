"""Accuracy of a variant against a reference: cosines of sample embeddings, and errors of the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle.folder import Bundle
from ..bundle.manifest import FEATURES, LOGITS, MANIFEST, POOLED, Manifest
from ..config import MULTI_LABEL, REGRESSION, TEXT, VISION
from ..errors import BundleError
from ..head import Floats, compute_logits, l2_normalize
from ..image.decode import ImageSource
from ..model import SigLIP
from ..system.files import write_atomic
from .samples import quiet_samples

REFERENCE = "fp32"
_MAX_PAIRS = 2_000_000  # of texts that are compared; the share is then right within .001
# Default of the smallest cosine to fp32 that any sample embedding may have; 4 bits do not come closer.
MIN_COSINE = {"fp32": 0.999, "fp16": 0.999, "int8": 0.999, "q4": 0.95, "qdq": 0.999}
DEFAULT_MIN_COSINE = f"{MIN_COSINE['int8']} by default, {MIN_COSINE['q4']} for q4"


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
class Accuracy:
    """A variant against fp32, on the same images and texts; None where the model does not have it.

    Attributes:
        vision_cosine_min, vision_cosine_mean: of image embeddings.
        features_cosine_min, features_cosine_mean: of ``last_hidden_state``, all patches of an image as one vector.
        text_cosine_min, text_cosine_mean: of text embeddings.
        logit_error_mean, logit_error_max: absolute errors of the logits of all pairs of images and texts or labels.
        num_images, num_texts: numbers of samples.
        top1_agreement: the share of images with the same best text.
        order_agreement: the share of pairs of texts in the same order.
        label_agreement: of a classifier, the share of images with the same best label; of several labels at once, the
            share of pairs of images and labels on the same side of probability 0.5.
    """

    vision_cosine_min: float | None = None
    vision_cosine_mean: float | None = None
    features_cosine_min: float | None = None
    features_cosine_mean: float | None = None
    text_cosine_min: float | None = None
    text_cosine_mean: float | None = None
    logit_error_mean: float | None = None
    logit_error_max: float | None = None
    num_images: int | None = None
    num_texts: int | None = None
    top1_agreement: float | None = None
    order_agreement: float | None = None
    label_agreement: float | None = None

    @property
    def cosines_min(self) -> dict[str, float]:
        """The worst cosine of each output."""
        worst = {
            "vision": self.vision_cosine_min, "features": self.features_cosine_min, "text": self.text_cosine_min,
        }  # fmt: skip
        return {name: value for name, value in worst.items() if value is not None}

    @property
    def cosine_min(self) -> float:
        """The worst cosine of all outputs."""
        return float(np.min(list(self.cosines_min.values())))  # nan if one is

    def to_document(self) -> dict[str, Any]:
        """Return what the model has, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def to_card(self, inputs: str = "built-in samples") -> dict[str, Any]:
        """Return the accuracy card of the manifest."""
        return {"reference": REFERENCE, "inputs": inputs} | {
            key: round(value, 7) if isinstance(value, float) else value for key, value in self.to_document().items()
        }


class Answers(NamedTuple):
    """What a variant answered on samples, None for what the model does not have.

    ``vision`` f32 ``(N, D)``, ``text`` f32 ``(M, D)`` and ``features`` f32 ``(N, P * D)`` are rows of length 1;
    ``logits`` f32 ``(N, L)`` are those of a classifier.
    """

    vision: Floats | None = None
    features: Floats | None = None
    text: Floats | None = None
    logits: Floats | None = None


def compare(answers: Answers, expected: Answers, manifest: Manifest) -> Accuracy:
    """Compare a variant's answers with those of a reference, on the same samples."""
    facts: dict[str, Any] = {}
    for name in ("vision", "features", "text"):
        rows, expected_rows = getattr(answers, name), getattr(expected, name)
        if rows is not None:
            cosines = (rows * expected_rows).sum(axis=1)
            facts |= {f"{name}_cosine_min": float(cosines.min()), f"{name}_cosine_mean": float(cosines.mean())}
    for name, rows in (("num_images", answers.features if answers.vision is None else answers.vision),
                       ("num_texts", answers.text)):  # fmt: skip
        facts |= {} if rows is None else {name: len(rows)}
    if answers.logits is not None and expected.logits is not None:
        facts |= _logit_errors(answers.logits, expected.logits)
        facts["label_agreement"] = label_agreement(answers.logits, expected.logits, manifest.problem_type)
    elif answers.vision is not None and answers.text is not None:
        logits, expected_logits = (
            compute_logits(each.vision, each.text, **manifest.head)  # type: ignore[arg-type] # both have both
            for each in (answers, expected)
        )
        facts |= _logit_errors(logits, expected_logits)
        facts["top1_agreement"] = float(np.mean(logits.argmax(axis=1) == expected_logits.argmax(axis=1)))
        facts["order_agreement"] = _order_agreement(logits, expected_logits)
    return Accuracy(**facts)


def label_agreement(logits: Floats, expected: Floats, problem_type: str) -> float | None:
    """Return the share of equal answers of a classifier, see :class:`Accuracy`; None for a regression."""
    if problem_type == REGRESSION:
        return None
    if problem_type == MULTI_LABEL:
        return float(np.mean((logits > 0) == (expected > 0)))
    return float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))


def _logit_errors(logits: Floats, expected: Floats) -> dict[str, float]:
    errors = np.abs(logits - expected)
    return {"logit_error_mean": float(errors.mean()), "logit_error_max": float(errors.max())}


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
            f"Export it with --variant {REFERENCE} as well, or compare with PyTorch: --reference CHECKPOINT"
        )
    answers = {name: _answer(bundle, name, images, texts) for name in bundle.manifest.variants}
    return {name: compare(each, answers[REFERENCE], bundle.manifest) for name, each in answers.items()}


def _answer(bundle: Bundle, variant: str, images: Sequence[ImageSource], texts: Sequence[str]) -> Answers:
    """Return the answers of a variant on the samples that the model can read."""
    manifest, answers = bundle.manifest, Answers()
    outputs = manifest.vision_outputs if VISION in manifest.towers else ()
    with SigLIP(bundle, variant=variant) as model, quiet_samples(texts):
        if POOLED in outputs:
            answers = answers._replace(vision=model.encode_images(images))
        if FEATURES in outputs:
            answers = answers._replace(features=unit_rows(model.encode_features(images)))
        if LOGITS in outputs:
            answers = answers._replace(logits=np.array(list(model.vision.outputs(LOGITS, images)), np.float32))
        if TEXT in manifest.towers:
            answers = answers._replace(text=model.encode_texts(texts))
    return answers


def unit_rows(outputs: Sequence[Floats]) -> Floats:
    """Return outputs of one image each as rows of length 1; those with fewer patches than others end with zeros."""
    width = max(values.size for values in outputs)
    return l2_normalize(np.array([np.pad(values.ravel(), (0, width - values.size)) for values in outputs]))


def write_cards(bundle: Bundle, accuracies: Mapping[str, Accuracy], inputs: str) -> None:
    """Write accuracy cards into the bundle's manifest, which is replaced atomically.

    Raises:
        BundleError: it cannot be written, or is a link, whose target belongs to another program.
    """
    variants = bundle.manifest.variants
    cards = {name: replace(variants[name], accuracy=accuracy.to_card(inputs)) for name, accuracy in accuracies.items()}
    manifest = replace(bundle.manifest, variants={**variants, **cards})
    path = bundle.path / MANIFEST
    if path.is_symlink():
        raise BundleError(
            f"{path} is a link, as in the cache of another program, so that no card was written. Write it in a copy of "
            "the folder with real files."
        )
    try:
        write_atomic(path, manifest.to_json().encode())
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror or error}. The old cards were kept.") from error


def _order_agreement(logits: Floats, expected: Floats) -> float:
    """Return the share of pairs of texts in the same order, over all images; 1 if there are no pairs.

    Of more than :data:`_MAX_PAIRS` of image and two texts so many are drawn, with the same result each time.
    """
    num_images, num_texts = logits.shape
    if num_texts < 2:
        return 1.0
    if num_images * num_texts * (num_texts - 1) // 2 <= _MAX_PAIRS:
        first, second = np.triu_indices(num_texts, k=1)
        rows = np.arange(num_images)[:, np.newaxis]
    else:
        rng = np.random.default_rng(0)
        rows, first = (rng.integers(count, size=_MAX_PAIRS) for count in (num_images, num_texts))
        second = (first + rng.integers(1, num_texts, size=_MAX_PAIRS)) % num_texts
    same = (logits[rows, first] > logits[rows, second]) == (expected[rows, first] > expected[rows, second])
    return float(same.mean())
