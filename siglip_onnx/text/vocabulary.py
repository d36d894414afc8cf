"""A large vocabulary as a table, from which few short texts get a small model of only the pieces they contain.

The tokenizers library takes 0.5 GB and most of a second to load 250,000 pieces, longer than all else together. What a
Unigram or BPE model answers for a text depends only on the pieces that are substrings of it, and in BPE on the merges
that make those; so export writes all of them beside ``tokenizer.json`` as arrays in which they are found by hash.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import BundleError

PIECES = "tokenizer_pieces.npz"
FEW_CHARACTERS = 2_000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Json = dict[str, Any]
Numbers = NDArray[np.int64]


class PieceTable:
    """What :func:`write_pieces` wrote, opened."""

    def __init__(self, path: Path) -> None:
        """Read ``path``.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as table:
                self.document: Json = json.loads(table["document"].tobytes())
                self._arrays = {name: table[name] for name in table.files if name != "document"}
            self._model: Json = self.document["model"]
            self.lengths = [self.document["padding"]["strategy"]["Fixed"], self.document["truncation"]["max_length"]]
            self._special = [token["content"] for token in self.document["added_tokens"]]
            self._always = self._find_always()
        except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path} is damaged ({error!r}). Export or download the model again.") from error

    def suits(self, texts: Sequence[str]) -> bool:
        """Say whether the texts are few enough, and without a literal special token, which is split off first."""
        return sum(map(len, texts)) <= FEW_CHARACTERS and not any(
            one in text for one in self._special for text in texts
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without the end token, by a model of only the pieces that occur in them."""
        cleaned = [self._bare.normalizer.normalize_str(text) for text in texts]
        kept = np.unique(np.concatenate([self._always, *map(self._find, cleaned)]))
        if self._model["type"] == "BPE":
            return [encoding.ids for encoding in self._tokenizer(self._bpe(kept)).encode_batch(list(texts))]
        encodings = self._tokenizer(self._unigram(kept)).encode_batch(list(texts))
        return [kept[encoding.ids].tolist() for encoding in encodings]

    def _find(self, text: str) -> Numbers:
        """Return the numbers of all pieces that are substrings of ``text``."""
        found = self._look_up(hash_substrings(text, int(self._arrays["longest"])))
        return np.array([number for number in found if self._piece(number) in text], np.int64)

    def _find_always(self) -> Numbers:
        """Return the pieces that any text may need: for what is unknown, and for bytes."""
        names = {f"<0x{byte:02X}>" for byte in range(256)} if self._model["byte_fallback"] else set()
        if self._model["type"] == "BPE":
            names.add(self._model["unk_token"])
            always = []
        else:  # the rarest piece sets the cost of an unknown character
            always = [self._model["unk_id"], int(self._arrays["scores"].argmin())]
        found = self._look_up(hash_pieces(names)) if names else []
        return np.array([*always, *(number for number in found if self._piece(number) in names)], np.int64)

    def _look_up(self, wanted: NDArray[np.uint64]) -> list[int]:
        """Return the numbers of the pieces of these hashes, as far as there are any."""
        hashes = self._arrays["hashes"]
        places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        found: list[int] = np.unique(self._arrays["order"][places[hashes[places] == wanted]]).tolist()
        return found

    def _unigram(self, kept: Numbers) -> Any:
        """Return the Unigram model of some pieces; their ids are their places in ``kept``."""
        vocab = [(self._piece(number), float(self._arrays["scores"][number])) for number in kept.tolist()]
        unknown = int(np.searchsorted(kept, self._model["unk_id"]))
        return tokenizers.models.Unigram(vocab, unknown, self._model["byte_fallback"])

    def _bpe(self, kept: Numbers) -> Any:
        """Return the BPE model of some pieces, with their own ids, and the merges that make them, by rank."""
        starts = self._arrays["merge_starts"]
        rows = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in kept.tolist()])
        ranks, pairs = self._arrays["merge_ranks"][rows], self._arrays["merge_pairs"][rows]
        merges = [(self._piece(left), self._piece(right)) for left, right in pairs[np.argsort(ranks)].tolist()]
        options = {name: self._model[name] for name in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")}
        return tokenizers.models.BPE({self._piece(number): number for number in kept.tolist()}, merges, **options)

    @cached_property
    def _bare(self) -> Any:
        """The cleaning alone, without pieces."""
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}
        bare: Json = {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None, "model": model}
        return tokenizers.Tokenizer.from_str(json.dumps(self.document | bare, ensure_ascii=False))

    def _tokenizer(self, model: Any) -> Any:
        """Return a tokenizer with the document's cleaning and this model, and nothing added behind it."""
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = self._bare.normalizer
        if self._bare.pre_tokenizer is not None:
            tokenizer.pre_tokenizer = self._bare.pre_tokenizer
        return tokenizer

    def _piece(self, number: int) -> str:
        ends = self._arrays["ends"]
        start = int(ends[number - 1]) if number else 0
        piece: str = self._arrays["pieces"][start : int(ends[number])].tobytes().decode()
        return piece


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it has: export stores its arrays as they are."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def write_pieces(document: Json, path: Path) -> None:
    """Write the table of a ``tokenizer.json``, given as its parsed document; pieces are in the order of their ids."""
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
    """Return the merges grouped by the piece they make: pairs of piece numbers, ranks, and where each group starts."""
    vocab = model["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = np.array([vocab[left + right] for left, right in merges])
    order = np.argsort(made, kind="stable")
    return {
        "merge_pairs": np.array([(vocab[left], vocab[right]) for left, right in merges], np.uint32)[order],
        "merge_ranks": order.astype(np.uint32),
        "merge_starts": np.searchsorted(made[order], np.arange(len(vocab) + 1)).astype(np.uint32),
    }


def hash_pieces(pieces: Iterable[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each string: a polynomial in its characters."""
    pieces = list(pieces)
    codes = _codes("".join(pieces))
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    hashes = np.zeros(len(pieces), np.uint64)
    for place in range(int(lengths.max())):
        longer = lengths > place
        hashes[longer] = hashes[longer] * _FACTOR + codes[starts[longer] + place]
    return hashes


def hash_substrings(text: str, longest: int) -> NDArray[np.uint64]:
    """Return the hashes, as of :func:`hash_pieces`, of all substrings of up to ``longest`` characters."""
    codes = _codes(text)
    hashes = np.zeros(len(codes), np.uint64)
    found = [np.empty(0, np.uint64)]
    for place in range(min(longest, len(codes))):
        hashes = hashes[: len(codes) - place] * _FACTOR + codes[place:]
        found.append(hashes)
    return np.unique(np.concatenate(found))


def _codes(text: str) -> NDArray[np.uint64]:
    """Return the characters as numbers above 0, so that one more always changes a hash."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64) + np.uint64(1)
