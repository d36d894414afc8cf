"""From text to ``input_ids``, always of the model's full length: SigLIP reads the last position, padding included."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .errors import BundleError, TextError

MAX_CHARACTERS = 20_000

_log = logging.getLogger(__name__)


class Tokenizer:
    """A ``tokenizer.json`` whose cleaning, truncation and padding were made exact at export."""

    def __init__(self, path: Path, text_length: int) -> None:
        """Read ``path``; ``text_length`` is the number of positions of the text tower.

        Raises:
            BundleError: the file cannot be read, or does not pad and truncate to ``text_length``.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} cannot be read: {error}. Export or download the model again.") from error
        padding, truncation = self._tokenizer.padding or {}, self._tokenizer.truncation or {}
        found = [padding.get("length"), truncation.get("max_length")]
        if found != [text_length, text_length]:
            raise BundleError(
                f"{path} pads to {found[0]} and truncates to {found[1]} tokens, but the text tower takes exactly "
                f"{text_length}. Export the model again with siglip-onnx export."
            )
        self.text_length = text_length

    def __call__(self, texts: list[str]) -> NDArray[np.int64]:
        """Return token ids i64 ``(M, T)``; longer texts are cut, keeping the end token last, which is logged.

        Raises:
            TextError: an item is no str, has more than ``MAX_CHARACTERS``, or lone surrogates.
        """
        for text in texts:
            _check_text(text, self.text_length)
        encodings = self._tokenizer.encode_batch(texts)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                _log.warning("Only the first %d tokens of the text %r are read.", self.text_length, _short(text))
        return np.array([encoding.ids for encoding in encodings], np.int64).reshape(len(texts), self.text_length)


def _check_text(text: str, text_length: int) -> None:
    if not isinstance(text, str):
        raise TextError(f"A text cannot be a {type(text).__name__}; give a str.")
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"The text {_short(text)!r} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted, and the "
            f"model reads only the first {text_length} tokens. Shorten it."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"The text {_short(text)!r} has a lone surrogate at position {error.start} and is no valid Unicode; "
            "decode its bytes with the right encoding."
        ) from error


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
