"""Tokenize texts to ``input_ids`` of the model's full length: SigLIP pools the last position, padding included."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import BundleError, SiglipOnnxError, TextError
from ..system.fork import renewed_lock
from .growth import read_checked
from .templates import MAX_CHARACTERS
from .vocabulary import PIECES, PieceTable

_AT_ONCE, _TOKENS_AT_ONCE = 1024, 65_536  # texts; what the library returns for each is much larger than its ids
_log = logging.getLogger(__name__)


class Tokenizer:
    """A bundle's ``tokenizer.json``; export made its normalization, truncation and padding those of the reference."""

    def __init__(self, path: Path, text_length: int, *, use_pieces: bool = True) -> None:
        """Read ``path``; ``text_length`` is the number of positions of the text tower.

        ``use_pieces`` allows reading ``tokenizer_pieces.npz`` beside it, if there is one, instead of the whole file.

        Raises:
            BundleError: the file cannot be read, or does not pad and truncate to ``text_length``.
        """
        self._path = path
        self._loaded: Any = None
        self._lock = renewed_lock(self)
        self.text_length = text_length
        pieces_path = path.with_name(PIECES)
        self._pieces = PieceTable(pieces_path) if use_pieces and pieces_path.exists() else None
        if self._pieces is not None:
            lengths = self._pieces.lengths
        else:
            lengths = [(self._whole.padding or {}).get("length"), (self._whole.truncation or {}).get("max_length")]
        if lengths != [text_length, text_length]:
            raise BundleError(
                f"{path} pads to {lengths[0]} and truncates to {lengths[1]} tokens, but the text tower takes exactly "
                f"{text_length}. Export the model again with siglip-onnx export."
            )

    def __call__(self, texts: list[str]) -> NDArray[np.int64]:
        """Return token ids i64 ``(M, T)``; longer texts are truncated before the end token, which is logged.

        Raises:
            TextError: an item is not a str, has more than ``MAX_CHARACTERS``, or has a lone surrogate.
            BundleError: the tokenizer's file is damaged.
        """
        self.check(texts)
        rows = np.empty((len(texts), self.text_length), np.int64)
        at_once = min(_AT_ONCE, max(1, _TOKENS_AT_ONCE // self.text_length))
        for start in range(0, len(texts), at_once):
            chunk = texts[start : start + at_once]
            with _library_errors(f"{self._path} cannot tokenize"):
                encoded = self._encode(chunk)
                rows[start : start + len(chunk)] = [ids for ids, _ in encoded]
            for text, (_, truncated) in zip(chunk, encoded, strict=True):
                if truncated:
                    _log.warning("Only the first %d tokens of the text %r are read.", self.text_length, _short(text))
        return rows

    def truncated(self, texts: list[str]) -> list[bool]:
        """Return for each text whether it has more tokens than the tower takes.

        Raises:
            TextError: an item is not a str, has more than ``MAX_CHARACTERS``, or has a lone surrogate.
            BundleError: the tokenizer's file is damaged.
        """
        self.check(texts)
        with _library_errors(f"{self._path} cannot tokenize"):
            return [truncated for _, truncated in self._encode(texts)]

    def check(self, texts: list[str]) -> None:
        """Check texts before work on the first of them begins.

        Raises:
            TextError: an item is not a str, has more than ``MAX_CHARACTERS``, or has a lone surrogate.
        """
        for text in texts:
            _check_text(text, self.text_length)

    def _encode(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """Return the ids of each text, and whether it was truncated."""
        pieces = self._pieces  # another thread may set it to None
        if pieces is not None:
            normalized = pieces.normalize(texts)
            if normalized is not None:
                return [self._finish(ids, pieces) for ids in pieces.encode(texts, normalized)]
            self._pieces = None  # from now on the whole model is used for all texts
        return [(encoding.ids, bool(encoding.overflowing)) for encoding in self._whole.encode_batch(texts)]

    def _finish(self, ids: list[int], pieces: PieceTable) -> tuple[list[int], bool]:
        """Truncate, end and pad the ids of one text; also return whether they were truncated."""
        room = self.text_length - len(pieces.end)
        whole = ids[:room] + pieces.end
        return whole + [pieces.pad] * (self.text_length - len(whole)), len(ids) > room

    @property
    def _whole(self) -> Any:
        with self._lock:
            if self._loaded is None:
                with _library_errors(f"{self._path} cannot be read"):
                    self._loaded = tokenizers.Tokenizer.from_str(read_checked(self._path))
            return self._loaded


@contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Turn what the tokenizers library raises, Exception itself or a panic of its Rust code, into a BundleError."""
    try:
        yield
    except (SiglipOnnxError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if "ThreadPoolBuildError" in str(error):
            raise SiglipOnnxError(
                "The threads to tokenize texts cannot be started. Raise the limit of processes (ulimit -u)."
            ) from error
        raise BundleError(f"{problem}: {error}. Export or download the model again.") from error


def is_panic(error: BaseException) -> bool:
    """Say whether an exception is a panic of the library's Rust code, which is not a subclass of Exception."""
    return type(error).__name__ == "PanicException"


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
            f"The text {_short(text)!r} has a lone surrogate at position {error.start} and is not valid Unicode; "
            "decode its bytes with the right encoding."
        ) from error


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
