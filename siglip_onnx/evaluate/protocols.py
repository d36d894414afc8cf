"""Named evaluation protocols: how images are resized, how class names become prompts, which captions count."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import PreprocessorConfig
from ..errors import TextError
from ..head import Floats
from ..image.preprocess import Inputs
from ..vision_tower import Preprocessor

_CROP = 0.875  # of the resized side, the part that big_vision keeps
_PUNCTUATION = str.maketrans("", "", string.punctuation.replace(",", ""))


@dataclass(frozen=True)
class Protocol:
    """The exact steps of an evaluation.

    Attributes:
        name: the name by which ``--protocol`` chooses it.
        crop: labelled images are resized to ``size / .875`` and the center is cut out; otherwise the model's own
            preprocessing is used.
        plain_bilinear: resize as TensorFlow does, bilinear without antialiasing.
        first_name: of a class, use only the name before the first comma.
        canonical: lower-case names and templates, and remove their punctuation except commas.
        add_plain_template: the template ``{}`` is added to the given ones.
        first_caption: use only the first caption of an image in a language, if there are several languages.
        steps: the same in words, for reports.
    """

    name: str
    crop: bool = False
    plain_bilinear: bool = False
    first_name: bool = False
    canonical: bool = False
    add_plain_template: bool = False
    first_caption: bool = False
    steps: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return what results record."""
        return asdict(self)

    def class_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the class names as the protocol writes them.

        Raises:
            TextError: nothing is left of a name.
        """
        written = [text.split(",")[0].strip() for text in texts] if self.first_name else list(texts)
        if self.canonical:
            written = [canonicalize(text) for text in written]
        empty = next((text for text, left in zip(texts, written, strict=True) if not left), None)
        if empty is not None:
            raise TextError(
                f"The protocol {self.name} leaves nothing of the class name {empty!r}; choose another name."
            )
        return written

    def templates(self, templates: Sequence[str]) -> list[str]:
        """Return the templates as the protocol writes them, each once."""
        given = [*templates, *(["{}"] if self.add_plain_template else [])]
        if self.canonical:
            given = ["{}".join(map(canonicalize_part, template.split("{}"))).strip() for template in given]
        return list(dict.fromkeys(given))

    def prepare(self, image: Image.Image, preprocess: Preprocessor, *, labelled: bool) -> Inputs:
        """Return the vision tower's inputs of one RGB image, labelled or captioned.

        NaFlex models, which do not crop, always use their own preprocessing.
        """
        config = preprocess.config
        own = not (self.crop and labelled) and not self.plain_bilinear
        if own or not isinstance(config, PreprocessorConfig):
            return preprocess(image)
        width, height = config.width, config.height
        if self.crop and labelled:
            resized = self._resize(image, int(width / _CROP), int(height / _CROP), config)
            left, top = (resized.width - width) // 2, (resized.height - height) // 2
            return preprocess(resized.crop((left, top, left + width, top + height)))
        return preprocess(self._resize(image, width, height, config))

    def _resize(self, image: Image.Image, width: int, height: int, config: PreprocessorConfig) -> Image.Image:
        if self.plain_bilinear:
            return resize_plain(image, width, height)
        return image.resize((width, height), Image.Resampling(config.resample))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("model", steps=("images: the model's own preprocessing", "names and templates as given")),
        Protocol(
            "paper",
            crop=True,
            plain_bilinear=True,
            first_name=True,
            canonical=True,
            add_plain_template=True,
            steps=(
                "labelled images: resized to size / .875, both sides, then the central size x size",
                "captioned images: resized to size x size",
                "bilinear without antialiasing, as in big_vision; NaFlex models: their own preprocessing",
                "class names: the first before a comma, lower-cased, without punctuation",
                "templates: those given and {}; the mean of the unit embeddings of a class, of length 1 again",
            ),
        ),
        Protocol(
            "open_clip",
            first_caption=True,
            steps=(
                "images: squashed to size x size by the model's own filter",
                "names and templates as given; the mean of the unit embeddings of a class, of length 1 again",
                "several languages: the first caption of each image and language",
            ),
        ),
    )
}


def canonicalize(text: str) -> str:
    """Return a name in lower case, without punctuation except commas, with single spaces.

    Source: ``_canonicalize_string_op`` of big_vision's ``prompt_engineering.py``.
    """
    return " ".join(canonicalize_part(text).split())


def canonicalize_part(text: str) -> str:
    """Do as :func:`canonicalize`, but keep spaces at the ends: the text is a part of a template."""
    return text.replace("_", " ").translate(_PUNCTUATION).lower()


def resize_plain(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize bilinearly without antialiasing, as ``tf.image.resize``; levels are truncated to whole numbers."""
    pixels = np.asarray(image)
    top, bottom, down = _neighbors(pixels.shape[0], height)
    left, right, across = _neighbors(pixels.shape[1], width)
    down, across = down[:, np.newaxis, np.newaxis], across[np.newaxis, :, np.newaxis]

    def blend(rows: NDArray[np.int64]) -> Floats:
        """Return some rows, resized across; only the pixels that they need become floats."""
        first, second = (pixels[np.ix_(rows, columns)].astype(np.float32) for columns in (left, right))
        blended: Floats = first + (second - first) * across
        return blended

    upper, lower = blend(top), blend(bottom)
    return Image.fromarray((upper + (lower - upper) * down).astype(np.uint8))


def _neighbors(size_in: int, size_out: int) -> tuple[Any, Any, Floats]:
    """Return for each output its two neighbors, and the second one's weight: half-pixel centers."""
    place = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * np.float32(size_in / size_out) - np.float32(0.5)
    floor = np.floor(place)
    first, second = np.maximum(floor, 0).astype(np.int64), np.minimum(floor + 1, size_in - 1).astype(np.int64)
    return first, second, (place - floor).astype(np.float32)
