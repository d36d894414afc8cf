"""Models that answer with fixed labels, without a text tower: fine-tuned classifiers, and compiled ones.

A compiled classifier is one ONNX file, made by ``siglip-onnx compile``. The graph takes ``pixel_values`` and gives
``logits`` and, except for a regression, ``probabilities``; its metadata entry ``siglip_onnx`` is
:class:`ClassifierFacts` as JSON. Nothing else is needed to run it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from .bundle import Bundle
from .bundle.integrity import OpenedFile
from .bundle.manifest import LOGITS, POOLED
from .config import (
    CLASSIFIER,
    MAX_IMAGE_SIZE,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    LevelsConfig,
    PreprocessorConfig,
)
from .errors import BundleError, ImageError, TextError
from .head import Floats, Match, check_finite, l2_normalize, match_texts
from .image.decode import ImageSource, as_images, is_single_image
from .image.decoder_pool import open_reader
from .image.preprocess import Fit, SquashPreprocessor
from .model import SigLIP
from .options import DEFAULTS, RuntimeOptions
from .session import LazySession, check_int8
from .system.files import make_absolute
from .system.json_files import to_json
from .system.records import read_record
from .text.templates import check_texts
from .vision_tower import ImageOutput

FACTS = "siglip_onnx"
INPUTS = ("float32", "uint8")
_MAX_LEVEL = 1000.0  # of mean and standard deviation
FORMAT = "siglip_onnx.classifier/1"  # of labels that are texts: the probabilities are sigmoids
FINE_TUNED_FORMAT = "siglip_onnx.classifier/2"  # has problem_type too


def match_labels(logits: Floats, labels: Sequence[str], problem_type: str) -> list[Match]:
    """Turn a classifier's logits f32 ``(M,)`` into one match per label, in the order given.

    The probability is the softmax of a single label, or the sigmoid of each of several labels. A regression has only
    scores, the logits: its probabilities and shares are nan.
    Source: ``ImageClassificationPipeline`` of transformers 4.57.
    """
    matches = match_texts(logits, list(labels))
    if problem_type == SINGLE_LABEL:
        return [match._replace(probability=match.relative) for match in matches]
    if problem_type == REGRESSION:
        return [match._replace(probability=math.nan, relative=math.nan) for match in matches]
    return matches


class FineTunedClassifier(SigLIP):
    """A SigLIP that was fine-tuned to fixed labels, which it has in place of a text tower.

    Attributes:
        labels: the labels, in the order of the logits.
        problem_type: what the logits mean, one of :data:`.PROBLEM_TYPES`.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULTS, **keywords: Any) -> None:
        """Put the parts together; see :class:`.SigLIP`."""
        super().__init__(bundle, options, **keywords)
        self.labels = list(bundle.manifest.labels)
        self.problem_type = bundle.manifest.problem_type

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one image, although it is an iterable of str
        self,
        image: ImageSource,
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match]: ...

    @overload
    def classify(
        self,
        image: Iterable[ImageSource],
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[list[Match]]: ...

    def classify(
        self,
        image: ImageSource | Iterable[ImageSource],
        texts: Iterable[str] = (),
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match] | list[list[Match]]:
        """Return for each label how likely it is, in the order of the labels; see :func:`match_labels`.

        Several images give one such list per image, in order; no images give ``[]``.

        Args:
            image: as :meth:`.SigLIP.classify` takes it.
            texts: none; the labels are fixed, and so are ``template`` and ``logit_bias``.
            template: the default.
            threshold: leave out labels of lower probability.
            logit_bias: the default.

        Raises:
            ImageError: an image cannot be read.
            OptionError: the threshold is not a number.
            TextError: texts, a template or a bias are given.
        """
        threshold = check_finite(threshold, "threshold")
        if check_texts(texts) or template not in ("{}", ["{}"], ("{}",)) or logit_bias is not None:
            raise TextError(
                f"{self.bundle.manifest.model_name} is a classifier, which answers with its own "
                f"{len(self.labels)} labels. Leave out texts, template and logit_bias."
            )
        answers = [
            [match for match in self.match(logits) if not match.probability < threshold]
            for logits in self.vision.outputs(LOGITS, image)
        ]
        return answers[0] if is_single_image(image) else answers

    def match(self, logits: Floats) -> list[Match]:
        """Return the match of each label from one image's logits f32 ``(M,)``."""
        return match_labels(logits, self.labels, self.problem_type)

    def run(self, fitted: Image.Image) -> tuple[Floats, Floats]:
        """Return the unit embedding f32 ``(D,)`` and the logits f32 ``(M,)`` of an RGB image; see VisionTower.run."""
        session = self.vision.session
        pooled, logits = session.run_many([POOLED, LOGITS], self.vision.preprocess.to_inputs(fitted))
        return session.check_finite(l2_normalize(pooled))[0], session.check_finite(logits)[0]

    def stream_logits(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageOutput | ImageError]:
        """Yield for each image its logits f32 ``(M,)``, or the error of one that cannot be read, in order."""
        return self.vision.stream_output(LOGITS, images)


def make_model(bundle: Bundle, options: RuntimeOptions = DEFAULTS, **keywords: Any) -> SigLIP:
    """Return the model of a bundle, of the class for its kind; the arguments are those of :class:`.SigLIP`."""
    kind = FineTunedClassifier if bundle.manifest.kind == CLASSIFIER else SigLIP
    return kind(bundle, options, **keywords)


@dataclass(frozen=True)
class ClassifierFacts:
    """The metadata of a compiled classifier: its origin, its labels, and how images are prepared.

    ``input`` is ``"uint8"`` for pixels u8 ``(N, height, width, 3)``, or ``"float32"`` for normalized f32
    ``(N, 3, height, width)``; the fields after it are those of :class:`.PreprocessorConfig`. ``problem_type`` is that
    of a fine-tuned classifier, and empty if the labels are texts.
    """

    model: str
    variant: str
    embedding_space: str
    labels: list[str]
    templates: list[str]
    input: str
    height: int
    width: int
    resample: int
    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    problem_type: str = ""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not possible.
        """
        problems = {
            "height and width": 1 <= min(self.height, self.width) <= max(self.height, self.width) <= MAX_IMAGE_SIZE,
            "labels": len(self.labels) > 0,
            "input": self.input in INPUTS,
            "resample": self.resample in list(Image.Resampling),
            "rescale_factor": 0 < self.rescale_factor <= _MAX_LEVEL,
            "image_mean": len(self.image_mean) == 3 and all(abs(each) <= _MAX_LEVEL for each in self.image_mean),
            "image_std": len(self.image_std) == 3 and all(1e-3 <= each <= _MAX_LEVEL for each in self.image_std),
        }  # fmt: skip
        for name, is_possible in problems.items():
            if not is_possible:
                values = [getattr(self, each) for each in name.split(" and ")]
                raise ValueError(f"{name} {', '.join(map(repr, values)):.100} not possible")

    @property
    def preprocessor(self) -> PreprocessorConfig:
        """How images are prepared."""
        levels = LevelsConfig(self.rescale_factor, tuple(self.image_mean), tuple(self.image_std))
        return PreprocessorConfig(self.height, self.width, self.resample, levels)

    def to_json(self) -> str:
        """Return the metadata entry."""
        entries = asdict(self)
        if not self.problem_type:
            del entries["problem_type"]
        return to_json({"format": FINE_TUNED_FORMAT if self.problem_type else FORMAT} | entries)

    @staticmethod
    def from_json(text: str) -> ClassifierFacts:
        """Read the metadata entry; unknown keys are ignored.

        Raises:
            ValueError: it is damaged, or of another format.
        """
        try:
            document = json.loads(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        format_ = document.get("format") if isinstance(document, dict) else None
        if format_ not in (FORMAT, FINE_TUNED_FORMAT):
            raise ValueError(f"format {format_!r:.100}, expected {FORMAT!r} or {FINE_TUNED_FORMAT!r}")
        facts = read_record(ClassifierFacts, document, ignore_unknown=True)
        if facts.problem_type not in (PROBLEM_TYPES if format_ == FINE_TUNED_FORMAT else ("",)):
            raise ValueError(f"problem_type {facts.problem_type!r:.100} in the format {format_!r}")
        return facts


class Classifier:
    """A compiled classifier, loaded."""

    def __init__(self, path: Path | str, options: RuntimeOptions = DEFAULTS) -> None:
        """Load ``path``; of the options, providers, threads and those of reading images but ``fast_decode`` apply.

        Raises:
            BundleError: not a compiled classifier, or one of another format.
            ProviderError: a provider is not available, or this CPU computes int8 incorrectly.
        """
        path = make_absolute(Path(path))  # it may be loaded again later
        self._arguments = path, options
        self._session = LazySession(
            path, providers=options.providers, threads=options.threads, check=OpenedFile(path).check
        )
        self._reader = open_reader(options)
        self.providers = self._session.providers
        try:
            self.facts = ClassifierFacts.from_json(self._session.metadata[FACTS])
            self._preprocessor = SquashPreprocessor(self.facts.preprocessor)
        except (KeyError, ValueError) as error:
            raise BundleError(
                f"{path} is not a compiled classifier of this version ({error!r}). Make one with: siglip-onnx compile"
            ) from error
        check_int8(self.facts.variant, options)
        self.path, self.size_bytes = path, path.stat().st_size
        self.labels = self.facts.labels
        self.problem_type = self.facts.problem_type
        self.templates = self.facts.templates
        self.model_name = self.facts.model
        self.variant = self.facts.variant
        self.embedding_space = self.facts.embedding_space

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, the options and the facts; unpickling is :func:`reopen_classifier`."""
        return reopen_classifier, (*self._arguments, self.facts)

    def __repr__(self) -> str:
        """Return the facts that distinguish one classifier from another."""
        return f"Classifier({self.model_name!r}, variant={self.variant!r}, {len(self.labels)} labels)"

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is one image, although it is an iterable of str
        self, image: ImageSource
    ) -> list[Match]: ...

    @overload
    def classify(self, image: Iterable[ImageSource]) -> list[list[Match]]: ...

    def classify(self, image: ImageSource | Iterable[ImageSource]) -> list[Match] | list[list[Match]]:
        """Return for each label how likely it is to describe the image, in the order of the labels.

        Several images give one such list per image; see :meth:`.SigLIP.classify`.

        Raises:
            ImageError: an image cannot be read.
        """
        if is_single_image(image):
            return self.match(image)[0]
        return [self.match(each)[0] for each in as_images(image)]

    def match(self, image: ImageSource) -> tuple[list[Match], bool]:
        """Do as :meth:`classify`, and return whether the image was truncated."""
        decoded = self._reader.read(image, self.fit)
        return match_labels(self.run(decoded.rgb), self.labels, self.problem_type), decoded.truncated

    def logits(self, image: ImageSource) -> Floats:
        """Return the image's logits f32 ``(M,)``."""
        return self.run(self._reader.read(image, self.fit).rgb)

    @property
    def fit(self) -> Fit:
        """Resizes an RGB image to the size that the graph takes."""
        return self._preprocessor.fit

    def run(self, fitted: Image.Image) -> Floats:
        """Return the logits f32 ``(M,)`` of an RGB image that was resized by ``fit``.

        Raises:
            BundleError: the graph returned NaN or infinity.
        """
        if self.facts.input == "uint8":
            inputs = {"pixel_values": np.asarray(fitted)[np.newaxis]}
        else:
            inputs = {"pixel_values": self._preprocessor.to_inputs(fitted)["pixel_values"]}
        logits: Floats = self._session.run(LOGITS, inputs)[0]
        if not np.isfinite(logits).all():
            raise BundleError("The classifier returned NaN or infinity. Compile it again: siglip-onnx compile")
        if logits.shape != (len(self.labels),):
            raise BundleError(
                f"The classifier has {len(self.labels)} labels, but returned logits of shape {logits.shape}. Compile "
                "it again: siglip-onnx compile"
            )
        return logits


def reopen_classifier(path: Path, options: RuntimeOptions, facts: ClassifierFacts) -> Classifier:
    """Load a compiled classifier that was pickled, from its file.

    Raises:
        BundleError: the file is missing, or now holds another classifier.
    """
    classifier = Classifier(path, options)
    if classifier.facts != facts:
        raise BundleError(f"{path} holds another classifier than the pickled one. Load it again.")
    return classifier
