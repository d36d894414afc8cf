"""From text to ``input_ids``, always of the model's full length: SigLIP reads the last position, padding included."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .errors import BundleError, SiglipOnnxError, TextError
from .fork import renewed_lock

MAX_CHARACTERS = 20_000
# A Unigram model of 250,000 pieces takes the tokenizers library 0.5 GB and as long to load as all else together. Its
# answer for a text depends only on the pieces that occur in the text, so few short texts get a model of just those,
# from a table that export writes beside tokenizer.json.
PIECES = "tokenizer_pieces.npz"
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
        self._loaded: Any = None
        self._lock = renewed_lock(self)
        self.text_length = text_length
        pieces_path = path.with_name(PIECES)
        self._pieces = _PieceTable(pieces_path) if pieces_path.exists() else None
        if self._pieces is not None:
            found = self._pieces.lengths
        else:
            found = [
                (self._whole.padding or {}).get("length"),
                (self._whole.truncation or {}).get("max_length"),
            ]
        if found != [text_length, text_length]:
            raise BundleError(
                f"{path} pads to {found[0]} and truncates to {found[1]} tokens, but the text tower takes exactly "
                f"{text_length}. Export the model again with siglip-onnx export."
            )

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
        with _library_errors(f"{self._path} cannot tokenize"):
            return self._encode_as_told(texts)

    def _encode_as_told(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        pieces = self._pieces  # another thread may give it up meanwhile
        if pieces is not None:
            if pieces.suits(texts):
                return pieces.encode(texts)
            self._pieces = None  # the whole model serves all texts from now on
        return [(encoding.ids, bool(encoding.overflowing)) for encoding in self._whole.encode_batch(texts)]

    @property
    def _whole(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Any:
        with _library_errors(f"{self._path} cannot be read"):
            return tokenizers.Tokenizer.from_file(str(self._path))


class _PieceTable:
    """The pieces of a large Unigram model as a table, and models of the few that a text needs."""

    def __init__(self, path: Path) -> None:
        """Read what :func:`write_pieces` wrote."""
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as table:
                self.document: Json = json.loads(table["document"].tobytes())
                self._pieces = table["pieces"].tobytes().decode().split("\n")
                self._scores: NDArray[np.float64] = table["scores"]
            padding, truncation = self.document["padding"], self.document["truncation"]
            self.lengths = [padding["strategy"]["Fixed"], truncation["max_length"]]
            if self._scores.shape != (len(self._pieces),):
                raise ValueError(f"{len(self._pieces)} pieces, and scores of shape {self._scores.shape}")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} is damaged ({error!r}). Export or download the model again.") from error
        # It sets the cost of an unknown character.
        self._rarest = int(self._scores.argmin())

    def suits(self, texts: list[str]) -> bool:
        """Say whether the texts are few enough, and without a literal special token, which is split off first."""
        special = [token["content"] for token in self.document["added_tokens"]]
        return sum(map(len, texts)) <= FEW_CHARACTERS and not any(one in text for one in special for text in texts)

    def encode(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """Return the ids of each text, and whether it was cut, by a model of only the pieces that occur in them."""
        document, model = self.document, self.document["model"]
        cleaner = self._tokenizer({**model, "vocab": [["<unk>", 0.0]], "unk_id": 0, "byte_fallback": False})
        # Newlines, which cleaning leaves in no text, keep pieces from reaching into the next text.
        cleaned = "\n".join(cleaner.normalizer.normalize_str(text) for text in texts)
        always = {model["unk_id"], self._rarest}
        if model["byte_fallback"]:
            always |= {number for number, piece in enumerate(self._pieces) if piece.startswith("<0x")}
        kept = sorted(always | {number for number, piece in enumerate(self._pieces) if piece in cleaned})
        vocab = [[self._pieces[number], float(self._scores[number])] for number in kept]
        tokenizer = self._tokenizer({**model, "vocab": vocab, "unk_id": kept.index(model["unk_id"])})
        length, pad = document["truncation"]["max_length"], document["padding"]["pad_id"]
        end = document["post_processor"]["special_tokens"]["</s>"]["ids"]
        results = []
        for encoding in tokenizer.encode_batch(texts):
            ids = [kept[number] for number in encoding.ids]
            whole = ids[: length - len(end)] + end
            results.append((whole + [pad] * (length - len(whole)), len(ids) > length - len(end)))
        return results

    def _tokenizer(self, model: Json) -> Any:
        """Make a tokenizer with the document's cleaning and this model, and nothing added behind it."""
        bare: Json = {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None, "model": model}
        return tokenizers.Tokenizer.from_str(json.dumps(self.document | bare, ensure_ascii=False))


@contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into a bundle's error: plain Exception, or a panic of its Rust code.

    A panic is no Exception. Whatever else is none, as Ctrl-C, passes.
    """
    try:
        yield
    except SiglipOnnxError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{problem}: {error}. Export or download the model again.") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it has: export stores its arrays as they are."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def write_pieces(document: Json, path: Path) -> None:
    """Write the table of a Unigram ``tokenizer.json``, given as its parsed document."""
    vocab = document["model"]["vocab"]
    rest = document | {"model": document["model"] | {"vocab": []}}
    np.savez(
        path,
        document=np.frombuffer(json.dumps(rest).encode(), np.uint8),
        pieces=np.frombuffer("\n".join(piece for piece, _ in vocab).encode(), np.uint8),
        scores=np.array([score for _, score in vocab], np.float64),
    )


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
