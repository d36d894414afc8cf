"""From text to ``input_ids``, always of the model's full length: SigLIP reads the last position, padding included."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .errors import BundleError, TextError

MAX_CHARACTERS = 20_000
# A Unigram model of 250,000 pieces takes the tokenizers library 0.5 GB and as long to load as all else together. Its
# answer for a text depends only on the pieces that occur in the text, so few short texts get a model of just those.
LARGE_VOCABULARY = 50_000
FEW_CHARACTERS = 2_000

_log = logging.getLogger(__name__)

Json = dict[str, Any]


class Tokenizer:
    """A ``tokenizer.json`` whose cleaning, truncation and padding were made exact at export."""

    def __init__(self, path: Path, text_length: int) -> None:
        """Read ``path``; ``text_length`` is the number of positions of the text tower.

        Raises:
            BundleError: the file cannot be read, or does not pad and truncate to ``text_length``.
        """
        self._path = path
        self.text_length = text_length
        try:
            self._document: Json | None = json.loads(path.read_bytes())
            steps = {name: self._document[name] for name in ("padding", "truncation", "model")}
            found = [steps["padding"]["strategy"]["Fixed"], steps["truncation"]["max_length"]]
            self._may_prune = steps["model"]["type"] == "Unigram" and len(steps["model"]["vocab"]) >= LARGE_VOCABULARY
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{path} cannot be read as the tokenizer that export writes ({error!r}). Export or download the model "
                "again."
            ) from error
        if found != [text_length, text_length]:
            raise BundleError(
                f"{path} pads to {found[0]} and truncates to {found[1]} tokens, but the text tower takes exactly "
                f"{text_length}. Export the model again with siglip-onnx export."
            )
        if not self._may_prune:
            self._document = None

    def __call__(self, texts: list[str]) -> NDArray[np.int64]:
        """Return token ids i64 ``(M, T)``; longer texts are cut, keeping the end token last, which is logged.

        Raises:
            TextError: an item is no str, has more than ``MAX_CHARACTERS``, or lone surrogates.
        """
        for text in texts:
            _check_text(text, self.text_length)
        rows = []
        for text, (ids, cut) in zip(texts, self._encode(texts), strict=True):
            if cut:
                _log.warning("Only the first %d tokens of the text %r are read.", self.text_length, _short(text))
            rows.append(ids)
        return np.array(rows, np.int64).reshape(len(texts), self.text_length)

    def _encode(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """Return the ids of each text, and whether it was cut."""
        if self._document is not None:
            if sum(map(len, texts)) <= FEW_CHARACTERS and not _has_special_token(self._document, texts):
                return _encode_with_their_pieces(self._document, texts)
            self._document = None  # the whole model serves all texts from now on
        return [(encoding.ids, bool(encoding.overflowing)) for encoding in self._whole.encode_batch(texts)]

    @cached_property
    def _whole(self) -> Any:
        try:
            return tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{self._path} cannot be read: {error}. Export or download the model again.") from error


def _encode_with_their_pieces(document: Json, texts: list[str]) -> list[tuple[list[int], bool]]:
    """Encode with a Unigram model of only those pieces that occur in the cleaned texts."""
    model = document["model"]
    cleaner = _tokenizer(document, {**model, "vocab": [["<unk>", 0.0]], "unk_id": 0, "byte_fallback": False})
    # Newlines, which cleaning leaves in no text, keep pieces from reaching into the next text.
    cleaned = "\n".join(cleaner.normalizer.normalize_str(text) for text in texts)
    vocab = model["vocab"]
    # The rarest piece sets the cost of an unknown character; bytes stand for one where the model falls back to them.
    rarest = min(range(len(vocab)), key=lambda number: vocab[number][1])
    kept = [
        number
        for number, (piece, _) in enumerate(vocab)
        if piece in cleaned
        or number in (model["unk_id"], rarest)
        or (model["byte_fallback"] and piece.startswith("<0x"))
    ]
    small = {**model, "vocab": [vocab[number] for number in kept], "unk_id": kept.index(model["unk_id"])}
    tokenizer = _tokenizer(document, small)
    length, pad = document["truncation"]["max_length"], document["padding"]["pad_id"]
    end = document["post_processor"]["special_tokens"]["</s>"]["ids"]
    results = []
    for encoding in tokenizer.encode_batch(texts):
        ids = [kept[number] for number in encoding.ids]
        whole = ids[: length - len(end)] + end
        results.append((whole + [pad] * (length - len(whole)), len(ids) > length - len(end)))
    return results


def _tokenizer(document: Json, model: Json) -> Any:
    """Make a tokenizer with the document's cleaning and this model, and nothing added behind it."""
    bare: Json = {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None, "model": model}
    return tokenizers.Tokenizer.from_str(json.dumps(document | bare, ensure_ascii=False))


def _has_special_token(document: Json, texts: list[str]) -> bool:
    return any(token["content"] in text for token in document["added_tokens"] for text in texts)


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
