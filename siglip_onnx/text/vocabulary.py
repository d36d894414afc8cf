"""Tokenize a few short texts without loading the whole vocabulary.

The tokenizers library takes 0.5 GB and most of a second to load 250,000 pieces, longer than everything else together.
But the ids that a Unigram or BPE model returns for a text depend only on the pieces that are substrings of the text
(and in BPE on the merges that produce these). So export writes all pieces beside ``tokenizer.json`` as arrays that are
searched by hash, and this module builds a model of only the pieces that the texts need.

Example: the Unigram vocabulary 0 ``<unk>``, 1 ``▁dog``, 2 ``▁``, 3 ``▁a``, 4 ``s``, 5 ``▁cat``, 6 ``at`` and the text
``a cat``.

1. Normalize the text: ``▁a▁cat``.
2. Hash all its substrings of up to 4 characters, the length of the longest piece: ``▁``, ``a``, ``c``, ..., ``▁a``,
   ``a▁``, ..., ``▁cat``. The hash is a polynomial, so the hashes of all substrings of one length follow from those that
   are one character shorter, in one numpy operation.
3. Search them in the sorted hashes of the pieces. The hits are the pieces 2, 3, 5 and 6. A hit whose piece is not in
   the text had only the same hash, and is dropped.
4. Add the pieces that any text may need: 0 for unknown characters, and 4, the least probable piece, whose score sets
   the cost of an unknown character. ``kept`` is now ``[0, 2, 3, 4, 5, 6]``.
5. Build a Unigram model of these six. It splits the text into ``▁a`` and ``▁cat``, its own ids 2 and 4. The ids of the
   whole vocabulary are ``kept[[2, 4]]``, which is ``[3, 5]``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import BundleError
from ..system.npy_files import NPY_ERRORS
from .growth import check_text

PIECES = "tokenizer_pieces.npz"
# What numpy and zipfile raise for a damaged archive, and what a document or table of another form leads to.
_DAMAGED = (*NPY_ERRORS, LookupError, AttributeError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
FEW_CHARACTERS, _FEW_NORMALIZED = 2_000, 8_000
MAX_PIECE_CHARACTERS = 200  # of SigLIP's vocabularies at most 31
_MAX_CHARACTER_BYTES = 4  # of UTF-8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Json = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]
Numbers = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.uint64)


class PieceTable:
    """The pieces of a vocabulary, as :func:`write_pieces` wrote them."""

    def __init__(self, path: Path) -> None:
        """Read ``path``.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as table:
                self.document: Json = json.loads(check_text(table["document"].tobytes().decode()))
                self._arrays = {name: table[name] for name in table.files if name != "document"}
            self._model: Json = self.document["model"]
            self.lengths = [self.document["padding"]["strategy"]["Fixed"], self.document["truncation"]["max_length"]]
            self._suits = suits_table(self.document, self._arrays["ends"].size)
            tokens = self.document["added_tokens"]
            self._special = [token["content"] for token in tokens if not token["normalized"]]
            self._normalized_special = [token["content"] for token in tokens if token["normalized"]]
            _check_arrays(self._arrays, self._model)
            self.end, self.pad = self._read_ending()
            self._longest = int(self._arrays["longest"])
            self._required = self._find_required()
        except _DAMAGED as error:
            raise BundleError(f"{path} is damaged ({error!r}). Export or download the model again.") from error

    def _read_ending(self) -> tuple[list[int], int]:
        """Return the ids that end each text, and the one that pads it.

        Raises:
            ValueError: one is not the id of a piece, or they are more than a text has.
        """
        ending, count = self.document["post_processor"], self._arrays["ends"].size
        end = ending["special_tokens"][ending["single"][-1]["SpecialToken"]["id"]]["ids"]
        pad = self.document["padding"]["pad_id"]
        for id_ in (*end, pad):
            if type(id_) is not int or not 0 <= id_ < count:
                raise ValueError(f"a text ends or is padded with the id {id_!r:.40}, expected one of {count:,} ids")
        if len(end) > min(self.lengths):
            raise ValueError(f"{len(end):,} tokens end a text of {min(self.lengths):,}")
        return end, pad

    def normalize(self, texts: Sequence[str]) -> list[str] | None:
        """Return the normalized texts; None if they are not few, which the whole vocabulary then tokenizes.

        That is also so if one contains an added token, which the library would split off.
        """
        if not self._suits:
            return None
        if sum(map(len, texts)) > FEW_CHARACTERS or any(token in text for token in self._special for text in texts):
            return None
        normalize = self._bare.normalizer.normalize_str
        normalized = [normalize(text) for text in texts]
        if any(token in text for token in map(normalize, self._normalized_special) for text in normalized):
            return None
        return normalized if sum(map(len, normalized)) <= _FEW_NORMALIZED else None

    def encode(self, texts: Sequence[str], normalized: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without the end token; ``normalized`` is what :meth:`normalize` returned."""
        kept = _sorted_once(np.concatenate([self._required, *map(self._find, normalized)]))
        if self._model["type"] == "BPE":
            return [encoding.ids for encoding in self._tokenizer(self._bpe(kept)).encode_batch(list(texts))]
        encodings = self._tokenizer(self._unigram(kept)).encode_batch(list(texts))
        return [kept[encoding.ids].tolist() for encoding in encodings]

    def _find(self, text: str) -> Numbers:
        """Return the ids of all pieces that are substrings of ``text``."""
        ids = self._look_up(hash_substrings(text, self._longest))
        return np.array([id_ for id_ in ids if self._piece(id_) in text], np.int64)

    def _find_required(self) -> Numbers:
        """Return the ids of the pieces that any text may need: for unknown characters, and for bytes."""
        names = {f"<0x{byte:02X}>" for byte in range(256)} if self._model["byte_fallback"] else set()
        if self._model["type"] == "BPE":
            names |= {self._model["unk_token"]} - {None}
            required = []
        else:  # the least probable piece sets the cost of an unknown character
            required = [self._model["unk_id"], int(self._arrays["scores"].argmin())]
        ids = self._look_up(hash_pieces(names)) if names else []
        return np.array([*required, *(id_ for id_ in ids if self._piece(id_) in names)], np.int64)

    def _look_up(self, hashes: NDArray[np.uint64]) -> list[int]:
        """Return the ids of the pieces that have one of these hashes."""
        known = self._arrays["hashes"]
        rows = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return sorted(set(self._arrays["order"][rows[known[rows] == hashes]].tolist()))

    def _unigram(self, kept: Numbers) -> Any:
        """Return the Unigram model of some pieces; its ids are positions in ``kept``."""
        vocab = [(self._piece(id_), float(self._arrays["scores"][id_])) for id_ in kept.tolist()]
        unknown = int(np.searchsorted(kept, self._model["unk_id"]))
        return tokenizers.models.Unigram(vocab, unknown, self._model["byte_fallback"])

    def _bpe(self, kept: Numbers) -> Any:
        """Return the BPE model of some pieces, with their own ids and the merges that produce them, by rank."""
        starts = self._arrays["merge_starts"]
        rows = np.concatenate([np.arange(starts[id_], starts[id_ + 1]) for id_ in kept.tolist()])
        ranks, pairs = self._arrays["merge_ranks"][rows], self._arrays["merge_pairs"][rows]
        merges = [(self._piece(left), self._piece(right)) for left, right in pairs[np.argsort(ranks)].tolist()]
        options = {name: self._model[name] for name in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")}
        return tokenizers.models.BPE({self._piece(id_): id_ for id_ in kept.tolist()}, merges, **options)

    @cached_property
    def _bare(self) -> Any:
        """The normalizer and pre-tokenizer alone, with an empty model."""
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}
        bare: Json = {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None, "model": model}
        return tokenizers.Tokenizer.from_str(json.dumps(self.document | bare, ensure_ascii=False))

    def _tokenizer(self, model: Any) -> Any:
        """Return a tokenizer with the document's normalizer and this model, which appends no tokens."""
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = self._bare.normalizer
        if self._bare.pre_tokenizer is not None:
            tokenizer.pre_tokenizer = self._bare.pre_tokenizer
        return tokenizer

    def _piece(self, id_: int) -> str:
        ends = self._arrays["ends"]
        start = int(ends[id_ - 1]) if id_ else 0
        piece: str = self._arrays["pieces"][start : int(ends[id_])].tobytes().decode()
        return piece


def suits_table(document: Json, num_pieces: int) -> bool:
    """Say whether the pieces of a text are substrings of the normalized text, and end and padding are pieces.

    A pre-tokenizer may only split texts: ByteLevel, for one, writes other characters.
    """
    model, step = document["model"], document["pre_tokenizer"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    special = document["post_processor"]["special_tokens"].values()
    ids = [id_ for token in special for id_ in token["ids"]]
    return not affixes and (step is None or step["type"] == "Split") and max(ids) < num_pieces


def _check_archive(path: Path) -> None:
    """Refuse a compressed archive, which may be a bomb: export stores its arrays uncompressed."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def _check_arrays(arrays: Arrays, model: Json) -> None:
    """Check that the arrays are those of one vocabulary, and that ids and places lie inside it.

    Raises:
        ValueError: they are not, or do not.
        KeyError: one is missing.
    """
    count, longest = arrays["ends"].size, arrays["longest"]
    pieces = _take(arrays, "pieces", np.uint8, arrays["pieces"].size)
    ends = _take(arrays, "ends", np.uint32, count)
    _take(arrays, "hashes", np.uint64, count)
    _check_ids("order", _take(arrays, "order", np.uint32, count), count)
    _check_rising("ends", np.append(np.uint32(0), ends), pieces.size)
    if longest.shape != () or longest.dtype.kind not in "iu" or not 0 < longest <= MAX_PIECE_CHARACTERS:
        raise ValueError(f"its longest piece has {longest!s:.40} characters, expected 1 to {MAX_PIECE_CHARACTERS}")
    if (size_bytes := np.diff(ends, prepend=np.uint32(0)).max(initial=0)) > _MAX_CHARACTER_BYTES * longest:
        raise ValueError(f"a piece has {size_bytes:,} bytes, but the longest one {longest} characters")
    if model["type"] == "BPE":
        num_merges = arrays["merge_ranks"].size
        _take(arrays, "merge_ranks", np.uint32, num_merges)
        _check_ids("merge_pairs", _take(arrays, "merge_pairs", np.uint32, num_merges, 2), count)
        _check_rising("merge_starts", _take(arrays, "merge_starts", np.uint32, count + 1), num_merges)
        return
    if not np.isfinite(_take(arrays, "scores", np.float64, count)).all():
        raise ValueError("scores has NaN or infinity")
    if type(model["unk_id"]) is not int or not 0 <= model["unk_id"] < count:
        raise ValueError(f"unk_id is {model['unk_id']!r:.40}, expected one of {count:,} ids")


def _take(arrays: Arrays, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype!s:.40} of shape {array.shape!s:.40}"
        raise ValueError(f"{name} is {found}, expected {dtype.__name__} of shape {shape}")
    return array


def _check_ids(name: str, ids: NDArray[Any], count: int) -> None:
    if (largest := int(ids.max(initial=0))) >= count and ids.size:
        raise ValueError(f"{name} has the id {largest:,}, expected ids of {count:,} pieces")


def _check_rising(name: str, places: NDArray[Any], end: int) -> None:
    if places[0] != 0 or places[-1] != end or (places[1:] < places[:-1]).any():
        raise ValueError(f"{name} has places up to {places.max():,}, expected ones that rise from 0 to {end:,}")


def write_pieces(document: Json, path: Path) -> None:
    """Write the table of a parsed ``tokenizer.json``; pieces are in the order of their ids."""
    model = document["model"]
    is_bpe = model["type"] == "BPE"
    pieces = sorted(model["vocab"], key=model["vocab"].get) if is_bpe else [piece for piece, _ in model["vocab"]]
    hashes = hash_pieces(pieces)
    order = np.argsort(hashes)
    encoded = [piece.encode() for piece in pieces]
    arrays: dict[str, Any] = {
        "pieces": np.frombuffer(b"".join(encoded), np.uint8),
        "ends": np.cumsum([len(piece) for piece in encoded]).astype(np.uint32),
        "longest": np.array(max(map(len, pieces))),
        "hashes": hashes[order],
        "order": order.astype(np.uint32),
    }
    if is_bpe:
        arrays |= _merge_arrays(model)
    else:
        arrays["scores"] = np.array([score for _, score in model["vocab"]], np.float64)
    emptied = model | {"vocab": [], "merges": []}
    rest = json.dumps(document | {"model": emptied}).encode()
    np.savez(path, document=np.frombuffer(rest, np.uint8), **arrays)


def _merge_arrays(model: Json) -> dict[str, Any]:
    """Return the merges grouped by the piece they produce: pairs of ids, ranks, and where each group starts."""
    vocab = model["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    produced = np.array([vocab[left + right] for left, right in merges])
    order = np.argsort(produced, kind="stable")
    return {
        "merge_pairs": np.array([(vocab[left], vocab[right]) for left, right in merges], np.uint32)[order],
        "merge_ranks": order.astype(np.uint32),
        "merge_starts": np.searchsorted(produced[order], np.arange(len(vocab) + 1)).astype(np.uint32),
    }


def hash_pieces(pieces: Iterable[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each string: a polynomial in its characters."""
    pieces = list(pieces)
    codes = _codes("".join(pieces))
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    hashes = np.zeros(len(pieces), np.uint64)
    for position in range(int(lengths.max())):
        longer = lengths > position
        hashes[longer] = hashes[longer] * _FACTOR + codes[starts[longer] + position]
    return hashes


def hash_substrings(text: str, longest: int) -> NDArray[np.uint64]:
    """Return the hashes, those of :func:`hash_pieces`, of all substrings of up to ``longest`` characters."""
    codes = _codes(text)
    hashes = np.zeros(len(codes), np.uint64)
    by_length = [np.empty(0, np.uint64)]
    for position in range(min(longest, len(codes))):
        hashes = hashes[: len(codes) - position] * _FACTOR + codes[position:]
        by_length.append(hashes)
    return _sorted_once(np.concatenate(by_length))


def _sorted_once(values: NDArray[Number]) -> NDArray[Number]:
    """Return what ``np.unique`` does, which imports ``numpy.ma``: that takes longer than the search of a few texts."""
    values = np.sort(values)
    once: NDArray[Number] = values[np.append(True, values[1:] != values[:-1])[: len(values)]]
    return once


def _codes(text: str) -> NDArray[np.uint64]:
    """Return code points plus 1: a leading zero would not change a hash."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64) + np.uint64(1)
