"""Evaluate variants of a model on one data set in one pass, with scores, their intervals, and differences to fp32."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bulk.progress import Progress
from ..errors import DataError, SiglipOnnxError
from ..head import Floats, sigmoid
from ..image.decode import ImageReader
from ..image.preprocess import Inputs
from ..model import SigLIP
from .datasets import ANY_LANGUAGE, CaptionedImages, LabeledImages
from .metrics import (
    RECALL_AT,
    Doubles,
    Interval,
    Labels,
    Reliability,
    answer,
    average_precision,
    best_threshold,
    bootstrap_mean,
    bootstrap_ratio,
    confusion,
    mean_per_class,
    mean_ratio,
    retrieve,
)
from .protocols import Protocol
from .published import TOLERANCE, find_published
from .store import Embedded, Store, embed_images, embed_texts, fingerprint

REFERENCE = "fp32"
CLASSIFICATION, MULTI_LABEL, RETRIEVAL = "classification", "multi-label classification", "retrieval"
_log = logging.getLogger(__name__)
_ROWS, _LOGITS = 4096, 8_000_000  # at the same time
MAX_MATRIX = 2000  # classes up to which there is a confusion matrix, which nobody could read beyond


@dataclass
class Scores:
    """What one variant reached.

    Attributes:
        units: per score, the values ``(N,)`` whose mean is the score: of images, or of labels for average precision.
        weights: per score that is a ratio of sums, those of its units: captions of each image. Of a mean of K ratios,
            units and weights are ``(N, K)``.
        values: scores without such parts.
        answers: what the variant answered, to compare with the reference's answers: numbers, or packed bits u8.
        num_answers: the number of answers that are packed as bits; 0 if they are numbers.
        per_class: per kind of number, one for each class, nan without images.
        confusion: images of each class (rows) by the class answered (columns); None beyond :data:`MAX_MATRIX` classes.
    """

    units: dict[str, NDArray[Any]] = field(default_factory=dict)
    weights: dict[str, Doubles] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    answers: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    num_answers: int = 0
    per_class: dict[str, Doubles] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None

    def value(self, key: str) -> float:
        """Return a score."""
        units = self.units[key]
        return mean_ratio(units, self.weights[key]) if key in self.weights else float(units.mean())

    def interval(self, key: str, reference: Scores | None = None) -> Interval:
        """Return a score with its interval, or its difference from that of a reference on the same units."""
        units = self.units[key].astype(np.float64)
        if reference is not None:
            units = units - reference.units[key]
        return bootstrap_ratio(units, self.weights[key]) if key in self.weights else bootstrap_mean(units)

    def agreement(self, reference: Scores) -> float:
        """Return the share of answers that equal those of a reference."""
        if not self.num_answers:
            return float((self.answers == reference.answers).mean())
        rows = zip(self.answers, reference.answers, strict=True)
        return 1 - sum(int(np.unpackbits(own ^ other).sum()) for own, other in rows) / self.num_answers


@dataclass(frozen=True)
class Evaluation:
    """All variants on one data set."""

    facts: dict[str, Any]
    task: str
    embedded: Embedded
    classes: list[str]
    class_sizes: list[int]
    scores: dict[str, Scores]
    errors: dict[str, str]

    @property
    def reference(self) -> str | None:
        """The variant that the others are compared with."""
        return REFERENCE if REFERENCE in self.scores else None

    def to_document(self) -> dict[str, Any]:
        """Return the result as JSON: shares from 0 to 1, published scores in percent."""
        return {
            **self.facts,
            "task": self.task,
            "num_images": len(self.embedded.rows),
            "errors": [{"image": name, "error": message} for name, message in self.errors.items()],
            "num_classes": len(self.classes),
            "reference": self.reference,
            "variants": {name: self._describe(name, scores) for name, scores in self.scores.items()},
            "published": self._published(),
            "per_class": self.class_rows(),
        }

    def class_rows(self) -> list[dict[str, Any]]:
        """Return what is known of each class: its images, and the numbers of each variant; null without images."""
        return [
            {"class": text, "images": self.class_sizes[number]}
            | {
                name: {key: _rounded(values[number]) for key, values in scores.per_class.items()}
                for name, scores in self.scores.items()
            }
            for number, text in enumerate(self.classes)
        ]

    def _describe(self, name: str, scores: Scores) -> dict[str, Any]:
        described: dict[str, Any] = {
            "scores": {key: asdict(scores.interval(key)) for key in scores.units}
            | {key: {"value": value} for key, value in scores.values.items()}
        }
        if self.reference is not None and name != self.reference:
            expected = self.scores[self.reference]
            described["difference"] = {key: asdict(scores.interval(key, expected)) for key in scores.units} | {
                key: {"value": value - expected.values[key]} for key, value in scores.values.items()
            }
            described["agreement"] = scores.agreement(expected)
        return described

    def _published(self) -> dict[str, Any]:
        """Return the published scores of this checkpoint and protocol, for a whole data set that was named."""
        benchmark, protocol = self.facts["benchmark"], self.facts["protocol"]["name"]
        if benchmark is None or self.facts["limit"] is not None:
            return {}
        found = {}
        for metric, score in find_published(self.facts["model"], benchmark, protocol).items():
            measured = {
                name: 100 * scores.value(key)
                for name, scores in self.scores.items()
                if (key := metric if metric == "top1" else f"{metric}@1") in scores.units
            }
            # Of some languages, the mean cannot be compared with the published one of all of them.
            if measured and (":" in metric or not self.facts["languages"]):
                found[metric] = {
                    "percent": score.value,
                    "source": score.source,
                    "tolerance": TOLERANCE,
                    "measured": measured,
                }
        return found


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def evaluate(
    models: Mapping[str, SigLIP],
    data: LabeledImages | CaptionedImages,
    protocol: Protocol,
    *,
    templates: Sequence[str] = ("{}",),
    benchmark: str | None = None,
    limit: int | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
) -> Evaluation:
    """Evaluate variants of one model; each image is read and decoded once.

    Args:
        models: by the names of their variants.
        data: the images with their labels or captions.
        protocol: how images and texts are prepared.
        templates: the prompts around the class names; not used for captions.
        benchmark: the name of the data set, where published scores are known.
        limit: use at most this number of images, evenly spaced.
        folder: where embeddings are kept, so that the same call resumes after an interruption.
        progress: is called as images are done.
        workers: images that are processed at the same time.

    Raises:
        DataError: no image can be read, or ``folder`` holds another evaluation.
        TextError: a class name or caption cannot be used.
    """
    chosen = data.take(limit)
    labelled = isinstance(chosen, LabeledImages)
    facts = _facts(models, data, protocol, templates, benchmark, limit)
    texts, owners = ([], {}) if isinstance(chosen, LabeledImages) else _list_captions(chosen, protocol)
    stamps = [f"{sample.name}\t{sample.stamp}" for sample in chosen.samples]
    paths = [os.path.abspath(sample.path) for sample in chosen.samples if sample.path is not None]  # noqa: PTH100
    store = Store(
        folder,
        {key: facts[key] for key in ("model", "embedding_spaces", "limit")}
        | {"protocol": protocol.name, "labelled": labelled, "preprocessing": _describe_reading(models)}
        | {"providers": next(iter(models.values())).providers}
        | {"data": os.path.realpath(data.path), "image_paths_sha256": fingerprint(paths)}
        | {"images_sha256": fingerprint(stamps), "texts_sha256": fingerprint(texts)},
    )

    def prepare(model: SigLIP, image: Image.Image) -> Inputs:
        return protocol.prepare(image, model.vision.preprocess, labelled=labelled)

    names = protocol.class_texts(chosen.texts) if isinstance(chosen, LabeledImages) else []
    written = protocol.templates(templates)
    # Names and captions come first: a text that cannot be used must not waste a pass over the images.
    if isinstance(chosen, LabeledImages):
        _report_biases(next(iter(models.values())), names)
        classes = {name: model.encode_labels(names, template=written) for name, model in models.items()}
    else:
        captions = embed_texts(models, texts, store)
    for model in models.values():
        model.text.session.unload()  # only vision towers are needed from here on
    embedded = embed_images(models, chosen.samples, prepare, store, progress or Progress(), workers)
    errors = {chosen.samples[row].name: str(error) for row, error in embedded.errors.items()}
    if isinstance(chosen, CaptionedImages):
        scores = _score_captions(embedded, captions, owners)
        return Evaluation(facts, RETRIEVAL, embedded, [], [], scores, errors)
    labels = [chosen.samples[row].labels for row in embedded.rows]
    if chosen.multi_label:
        several = Labels(labels, len(names))
        sizes = several.sizes
        scores = {
            name: _score_labels(model, embedded.embeddings[name], classes[name], names, several)
            for name, model in models.items()
        }
    else:
        right = np.array([min(each) for each in labels], np.int64)
        sizes = np.bincount(right, minlength=len(names))
        scores = {
            name: _score_classes(model, embedded.embeddings[name], classes[name], names, right)
            for name, model in models.items()
        }
    task = MULTI_LABEL if chosen.multi_label else CLASSIFICATION
    return Evaluation(facts, task, embedded, chosen.texts, sizes.tolist(), scores, errors)


def _report_biases(model: SigLIP, names: Sequence[str]) -> None:
    """Log if a calibration has biases of single texts, but not of all classes as the protocol writes them."""
    biases = {} if model.calibration is None else model.calibration.texts
    other = [name for name in names if name not in biases]
    if biases and other:
        _log.warning("The calibration has no bias of %d of the %d classes, such as %.100r; the common bias is used for "
                     "them.", len(other), len(names), other[0])  # fmt: skip


def _describe_reading(models: Mapping[str, SigLIP]) -> dict[str, Any]:
    """Return what decides the pixels of an image besides its file, and whether it can be read."""
    used = next(iter(models.values())).vision.reader
    reader = used if isinstance(used, ImageReader) else used.reader
    limits = asdict(reader.limits)
    return {"allow_truncated": reader.allow_truncated, "background": reader.background, "limits": limits}


def _facts(
    models: Mapping[str, SigLIP],
    data: LabeledImages | CaptionedImages,
    protocol: Protocol,
    templates: Sequence[str],
    benchmark: str | None,
    limit: int | None,
) -> dict[str, Any]:
    first = next(iter(models.values()))
    if any(model.bundle.path != first.bundle.path for model in models.values()):
        raise SiglipOnnxError("Variants of different models cannot be evaluated together; give those of one model.")
    labelled = isinstance(data, LabeledImages)
    return {
        "model": first.bundle.manifest.model_name,
        "embedding_spaces": {name: model.embedding_space for name, model in models.items()},
        "data": str(data.path),
        "benchmark": benchmark,
        "protocol": protocol.to_document(),
        "templates": protocol.templates(templates) if labelled else [],
        "calibration": None if first.calibration is None else first.calibration.data,
        "languages": [] if isinstance(data, LabeledImages) or not data.all_languages else list(data.captions),
        "limit": limit,
    }


def _logits(model: SigLIP, images: Floats, classes: Floats, names: Sequence[str]) -> Iterator[Floats]:
    """Yield the logits of images and classes, some rows at a time."""
    biases, rows = model.biases(names), max(1, min(_ROWS, _LOGITS // len(names)))
    for start in range(0, len(images), rows):
        yield model.logits(images[start : start + rows], classes, logit_bias=biases)


def _score_classes(
    model: SigLIP, images: Floats, classes: Floats, names: Sequence[str], right: NDArray[np.int64]
) -> Scores:
    pairs, top, answers = Reliability(), Reliability(), []
    start, numbers = 0, np.arange(len(names))
    for logits in _logits(model, images, classes, names):
        own = right[start : start + len(logits)]
        start += len(logits)
        answers.append(answer(logits, own))
        pairs.add(sigmoid(logits), own[:, np.newaxis] == numbers)
        top.add(answers[-1].confidence, answers[-1].best == own)
    best, rank = (np.concatenate([getattr(part, key) for part in answers]) for key in ("best", "rank"))
    hits = rank < 1
    shares = mean_per_class(hits, right, len(names))
    return Scores(
        units={"top1": hits} | ({"top5": rank < 5} if len(names) > 5 else {}),
        values={
            "mean_per_class": float(np.nanmean(shares)),
            "calibration_error": pairs.error,
            "calibration_error_top1": top.error,
        },
        answers=best,
        per_class={"recall": shares},
        confusion=confusion(right, best, len(names)) if len(names) <= MAX_MATRIX else None,
    )


def _score_labels(
    model: SigLIP, images: Floats, classes: Floats, names: Sequence[str], labels: Labels
) -> Scores:  # fmt: skip
    if not labels.sizes.any():
        raise DataError("No image that can be read has a label; expected at least one.")
    biases, reliability = model.biases(names), Reliability()
    precision, threshold, f1 = (np.full(len(names), np.nan) for _ in range(3))
    num_said = num_right = 0
    answers = []
    at_once = max(1, _LOGITS // len(images))
    for start in range(0, len(names), at_once):
        columns = slice(start, start + at_once)
        logits, truth = model.logits(images, classes[columns], logit_bias=biases[columns]), labels.truth(columns)
        reliability.add(sigmoid(logits), truth)
        said = logits >= 0
        num_said, num_right = num_said + int(said.sum()), num_right + int((said & truth).sum())
        answers.append(np.packbits(said, axis=0))
        for column in np.flatnonzero(labels.sizes[columns]):
            scores, own = logits[:, column], truth[:, column]
            precision[start + column] = average_precision(scores, own)
            best, f1[start + column] = best_threshold(scores, own)
            threshold[start + column] = sigmoid(np.array(best, np.float32))
    return Scores(
        units={"mean_average_precision": precision[~np.isnan(precision)]},
        values={
            "f1": 2 * num_right / max(1, num_said + int(labels.sizes.sum())),
            "calibration_error": reliability.error,
        },
        answers=np.concatenate(answers, axis=1),
        num_answers=len(images) * len(names),
        per_class={"average_precision": precision, "best_threshold": threshold, "f1": f1},
    )


def _list_captions(
    data: CaptionedImages, protocol: Protocol
) -> tuple[list[str], dict[str, list[tuple[int, int]]]]:  # fmt: skip
    """Return the captions to embed, each once, and per language pairs of caption and image, as positions.

    Raises:
        DataError: there are none, or only some have a language.
    """
    if ANY_LANGUAGE in data.captions and len(data.captions) > 1:
        raise DataError(
            f"{data.path} has captions in {', '.join(filter(None, data.captions)):.200} and captions without a "
            "language; state a language for all of them, or for none, or choose some with --language."
        )
    positions: dict[str, int] = {}
    owners: dict[str, list[tuple[int, int]]] = {}
    for language, rows in data.captions.items():
        owners[language] = [
            (positions.setdefault(text, len(positions)), row)
            for row, texts in rows.items()
            for text in (texts[:1] if protocol.first_caption and data.is_multilingual else texts)
        ]
    if not positions:
        raise DataError(f"{data.path} has no caption for the images and languages that were chosen.")
    return list(positions), owners


def _score_captions(
    embedded: Embedded, captions: Mapping[str, Floats], owners: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, Scores]:
    """Score each language, and their mean; captions of images that cannot be read are left out.

    Each unit belongs to an image, with the number of its captions as weight.
    """
    place = {row: number for number, row in enumerate(embedded.rows)}
    num_images = len(embedded.rows)
    scores = {}
    for name, images in embedded.embeddings.items():
        units, weights = dict[str, NDArray[Any]](), dict[str, Doubles]()
        answers = []
        languages: list[str] = []
        for language, pairs in owners.items():
            readable = np.array([(text, place[row]) for text, row in pairs if row in place], np.int64).reshape(-1, 2)
            if not len(readable):
                continue
            languages.append(language)
            owned = readable[:, 1]
            used, numbers = np.unique(readable[:, 0], return_inverse=True)
            result = retrieve(images, captions[name][used], numbers, owned)
            counts = np.bincount(owned, minlength=num_images)
            answers += [result.best_texts[counts > 0], result.best_images]
            prefix = f"{language}:" if language != ANY_LANGUAGE else ""
            for k in RECALL_AT:
                key = f"{prefix}text_to_image@{k}"
                units[key], weights[key] = np.bincount(owned, result.text_ranks < k, num_images), counts.astype(float)
                key = f"{prefix}image_to_text@{k}"
                units[key], weights[key] = (result.image_ranks < k) & (counts > 0), (counts > 0).astype(float)
        if not languages:
            raise DataError("No image that has a caption can be read; give the folder of the images with --images.")
        if languages != [ANY_LANGUAGE]:
            for key in [f"{way}@{k}" for k in RECALL_AT for way in ("text_to_image", "image_to_text")]:
                for parts in (units, weights):
                    parts[key] = np.stack([parts[f"{language}:{key}"] for language in languages], axis=1)
        scores[name] = Scores(units=units, weights=weights, answers=np.concatenate(answers))
    return scores
