"""Write a ``tokenizer.json`` that gives the checkpoint's ids exactly, with cleaning, end token, padding, truncation.

Sources: ``SiglipTokenizer`` of transformers 4.57 for SentencePiece models (SigLIP), big_vision's
``proj/image_text`` for Gemma's vocabulary (SigLIP 2, trained on lower-cased texts).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..config import SENTENCEPIECE, TOKENIZER, TOKENIZER_CONFIG
from ..errors import CheckpointError
from ..system.files import read_small
from ..system.json_files import read_json_object
from ..text.growth import MAX_TOKENIZER_BYTES, check_document
from ..text.tokenizer import is_panic
from ..text.tokenizer_settings import EOS, TokenizerSettings, check_length, check_sides, named_pad, read_settings
from ..text.vocabulary import MAX_PIECE_CHARACTERS, PIECES, suits_table, write_pieces

LARGE_VOCABULARY = 50_000  # from this size on a few texts are tokenized by a model of only their pieces
_META = "▁"
_WAVE_DASH = "～"  # of Japanese keyboards, which SentencePiece's NFKC keeps, and the library's turns into "~"
_KEPT_WAVE_DASH = "\U0010fffd"  # what stands for it meanwhile: for private use, so no text has it
# Added tokens stand in normalized texts as characters for private use, which no other step changes.
_FIRST_MARK, _MARKS = 0x100000, "[\U00100000-\U0010ffff]"
# str.isspace() and string.punctuation of Python, as the reference uses them.
_WHITESPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_PUNCTUATION = r"[!-/:-@\[-`{-~]"

Json = dict[str, Any]


def write_tokenizer(
    source: Path, out: Path, *, text_length: int, vocab_size: int, min_tokens: int = 0, cleaning: str | None = None
) -> None:
    """Write ``out`` from ``spiece.model`` or ``tokenizer.json``; next to it its config and the table of its pieces.

    Args:
        source: one of these files, or their folder.
        out: the file to write.
        text_length: the number of tokens of every text.
        vocab_size: the rows of the text tower's table.
        min_tokens: the fewest tokens that a tokenizer of these rows may have.
        cleaning: open_clip's name of how it cleans texts; None cleans them as transformers does.

    Raises:
        CheckpointError: there is neither file, a kind that SigLIP does not use, or one of another vocabulary.
    """
    path = find_tokenizer(source)
    if path is None:
        problem = f"has neither {SENTENCEPIECE} nor {TOKENIZER}" if source.is_dir() else "is not a file"
        raise CheckpointError(f"{source} {problem}; SigLIP needs its tokenizer.")
    try:
        # A file that is not in the checkpoint has settings of its own beside it, or those of another tokenizer.
        folder = source if source.is_dir() and cleaning is None else None
        if folder is not None:
            check_length(folder, text_length)
        if folder is not None or cleaning is not None:
            check_sides(path.parent)
        is_fast = path.suffix == ".json"
        document = _from_fast_tokenizer(path, folder) if is_fast else _from_sentencepiece(path, folder)
        check_document(document)
        if cleaning is not None:
            document = _clean_as_open_clip(document, path, cleaning)
            check_document(document)
        _check_ids(document, vocab_size)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
    except (CheckpointError, MemoryError):
        raise
    except BaseException as error:  # the library raises Exception itself, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{path} is not a tokenizer of SigLIP ({error!r:.200}). Download it again.") from error
    num_tokens = tokenizer.get_vocab_size()
    if not min_tokens <= num_tokens <= vocab_size:
        raise CheckpointError(
            f"The tokenizer of {source} has {num_tokens:,} pieces, but the text tower {vocab_size:,} rows. The two do "
            "not belong together."
        )
    if any(len(piece) > MAX_PIECE_CHARACTERS for piece in tokenizer.get_vocab()):
        raise CheckpointError(f"{path} has a piece of more than {MAX_PIECE_CHARACTERS} characters. Download it again.")
    pad = document["post_processor"]["special_tokens"]["pad"]
    tokenizer.enable_truncation(text_length, direction="right")
    tokenizer.enable_padding(direction="right", pad_id=pad["ids"][0], pad_token=pad["tokens"][0], length=text_length)
    text = tokenizer.to_str(pretty=False)
    out.write_text(text, encoding="utf-8")
    config = _tokenizer_config(document, text_length)
    out.with_name(TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    num_pieces = len(document["model"]["vocab"])
    if num_pieces >= LARGE_VOCABULARY and suits_table(written := json.loads(text), num_pieces):
        write_pieces(written, out.with_name(PIECES))


def _check_ids(document: Json, vocab_size: int) -> None:
    """Check that every token has an id of its own, without gaps: the library would print and fill these.

    Raises:
        ValueError: one has not, or has no row in the text tower.
    """
    vocab = document["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if len(set(ids)) < len(ids):
        raise ValueError("two pieces have the same id")
    added = [token["id"] for token in document.get("added_tokens") or ()]
    for id_ in (*ids, *added):
        if type(id_) is not int or not 0 <= id_ < vocab_size:
            raise ValueError(f"a token has the id {id_!r:.30}, but the text tower has {vocab_size:,} rows")
    if ids and len({*ids, *added}) <= max(ids):
        raise ValueError(f"the ids of its {len(ids):,} pieces go up to {max(ids):,}, so that some are missing")


def _tokenizer_config(document: Json, text_length: int) -> Json:
    """Return ``tokenizer_config.json``, with which AutoTokenizer opens the tokenizer in Python and JavaScript.

    The class is the general one, which reads all of ``tokenizer.json``; SigLIP's own would clean texts a second time.
    """
    named = document["post_processor"]["special_tokens"]
    (eos,) = (tokens["tokens"][0] for name, tokens in named.items() if name != "pad")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text_length,
        "model_input_names": ["input_ids"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": named["pad"]["tokens"][0],
        "unk_token": "<unk>",
    }


def find_tokenizer(source: Path, names: Sequence[str] = (SENTENCEPIECE, TOKENIZER)) -> Path | None:
    """Return the tokenizer's file: ``source`` itself, or the first of ``names`` in its folder."""
    candidates = [source / name for name in names] if source.is_dir() else [source]
    return next((path for path in candidates if path.is_file()), None)


def _from_sentencepiece(path: Path, folder: Path | None) -> Json:
    from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only these checkpoints need it

    proto: Any = sentencepiece_model_pb2  # generated at run time, so without types
    model = proto.ModelProto()
    try:
        model.ParseFromString(read_small(path, MAX_TOKENIZER_BYTES))
    except Exception as error:  # protobuf's DecodeError has no public home
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}. Download it again.") from error
    if model.trainer_spec.model_type != proto.TrainerSpec.UNIGRAM:
        raise CheckpointError(
            f"{path} is not a Unigram model, as all SentencePiece models of SigLIP are. Download it again."
        )
    pieces = [[piece.piece, piece.score] for piece in model.pieces]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    settings = TokenizerSettings() if folder is None else read_settings(folder)
    return _unigram_document(
        pieces, model.trainer_spec.unk_id, charsmap, settings, byte_fallback=model.trainer_spec.byte_fallback
    )


def _from_fast_tokenizer(path: Path, folder: Path | None) -> Json:
    try:
        document = read_json_object(path, MAX_TOKENIZER_BYTES)
        kind = document["model"]["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no tokenizer of the tokenizers library ({error!r}). Download it again."
        ) from error
    if kind == "BPE":
        return _gemma_document(document, "" if folder is None else named_pad(folder))
    if kind == "Unigram":
        model = document["model"]
        added = document.get("added_tokens") or ()
        return _unigram_document(
            model["vocab"],
            model["unk_id"],
            _find_charsmap(document),
            TokenizerSettings() if folder is None else read_settings(folder, added),
            byte_fallback=model.get("byte_fallback", False),
        )
    raise CheckpointError(f"{path} holds a {kind} model, expected Unigram (SigLIP) or BPE (SigLIP 2).")


def _unigram_document(
    vocab: list[list[Any]], unk_id: int, charsmap: str, settings: TokenizerSettings, *, byte_fallback: bool
) -> Json:
    """SigLIP: lower-case, no ASCII punctuation, single spaces, NFKC; ``</s>`` ends and pads, if settings do not differ.

    Lowercase works letter by letter, as ``SiglipTokenizer`` does: Σ becomes σ, also at the end of a word.
    ``docs/export.md`` lists the texts whose ids differ from the reference's.
    """
    pieces = [piece for piece, _ in vocab]
    if EOS not in pieces:
        raise CheckpointError(
            "The tokenizer has no </s> piece, with which SigLIP ends and pads texts. Download it again."
        )
    eos = pieces.index(EOS)
    marked = [{**token, "mark": chr(_FIRST_MARK + number)} for number, token in enumerate(settings.marked(pieces))]
    by_id = {token["id"]: token["mark"] for token in marked}
    named = {token["content"]: token["id"] for token in marked}
    # The reference does not lower-case special tokens.
    special, others = (_mark(token for token in marked if token["special"] is kind) for kind in (True, False))
    pad = settings.pad or EOS
    pad_id = _find_pad(pad, named | {EOS: eos}, pieces)
    return {
        "version": "1.0",
        "added_tokens": [
            _special_token(eos, EOS),
            _special_token(unk_id, "<unk>"),
            *(_marked_token(id_, mark) for id_, mark in by_id.items()),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                _replace(_META, " "),
                *special,
                {"type": "Prepend", "prepend": _META},
                *([{"type": "Lowercase"}] if settings.lower else []),
                *others,
                _replace_regex(_PUNCTUATION, ""),
                _replace_regex(_WHITESPACE, " "),
                *(_normalize_as_sentencepiece(charsmap) if charsmap else []),
                _replace_regex(" {2,}", " "),
                _replace_regex(f"[ {_META}]+$", ""),
                *(_JOIN_MARKS if marked else []),
                _replace(" ", _META),
            ],
        },
        "post_processor": _end_with(EOS, eos, by_id.get(pad_id, pad), pad_id),
        "decoder": {"type": "Metaspace", "replacement": _META, "prepend_scheme": "always", "split": False},
        "model": {
            "type": "Unigram",
            "unk_id": unk_id,
            "vocab": [[by_id.get(number, piece), score] for number, (piece, score) in enumerate(vocab)],
            "byte_fallback": byte_fallback,
        },
    }


def _find_pad(pad: str, added: Mapping[str, int], pieces: Sequence[str]) -> int:
    """Return the id of the token that pads texts."""
    if pad not in added and pad not in pieces:
        raise CheckpointError(f"The tokenizer pads texts with {pad!r:.60}, which its vocabulary does not have.")
    return added[pad] if pad in added else pieces.index(pad)


def _mark(tokens: Iterable[Json]) -> list[Json]:
    """Replace added tokens by their marks, the longest first."""
    longest_first = sorted(tokens, key=lambda token: len(token["content"]), reverse=True)
    return [_replace(token["content"], token["mark"]) for token in longest_first]


def _marked_token(token_id: int, mark: str) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": token_id, "content": mark} | flags


def _normalize_as_sentencepiece(charsmap: str) -> list[Json]:
    """Return the steps of a table of SentencePiece.

    Precompiled alone does not change long graphemes, such as decomposed Japanese, which is why NFKC comes before it.
    """
    return [
        _replace(_WAVE_DASH, _KEPT_WAVE_DASH),
        {"type": "NFKC"},
        _replace(_KEPT_WAVE_DASH, _WAVE_DASH),
        {"type": "Precompiled", "precompiled_charsmap": charsmap},
    ]


def _gemma_document(document: Json, pad: str) -> Json:
    """SigLIP 2: the published file, plus the lower-casing of training; ``<eos>`` ends, ``<pad>`` or ``pad`` pads.

    Lowercase is the step that ``Siglip2Tokenizer`` of transformers 5 adds, letter by letter: Σ always becomes σ.
    """
    vocab = document["model"]["vocab"]
    if not {"<eos>", "<pad>"} <= vocab.keys():
        raise CheckpointError(
            "The tokenizer has no <eos> or no <pad>, with which SigLIP 2 ends and pads texts. Download it again."
        )
    pad = pad or "<pad>"
    pad_id = _find_pad(pad, vocab | {token["content"]: token["id"] for token in document.get("added_tokens") or ()}, ())
    published = document.get("normalizer")
    steps = [{"type": "Lowercase"}, *([published] if published else [])]
    return document | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "post_processor": _end_with("<eos>", vocab["<eos>"], pad, pad_id),
        "padding": None,
        "truncation": None,
    }


def _clean_as_open_clip(document: Json, path: Path, cleaning: str) -> Json:
    """Clean texts as ``open_clip.tokenizer.HFTokenizer`` does, but without ftfy and html.unescape.

    Those two repair damaged text, which no normalizer can express. What follows the cleaning is the published
    tokenizer. Added tokens are looked for before the cleaning here and after it there, so those that the cleaning
    changes, such as ``</s>``, are dropped: no cleaned text contains them.
    """
    steps = OPEN_CLIP_CLEANING[cleaning]
    published = read_json_object(path, MAX_TOKENIZER_BYTES) if path.suffix == ".json" else {}
    following = _parts(published.get("normalizer"), "normalizers")
    if document["model"]["type"] == "Unigram":
        # The published Metaspace becomes a part of the normalizer; of the rest only the table changes letters.
        if not published:
            following = document["normalizer"]["normalizers"]
        tables = [step for step in following if step["type"] == "Precompiled"]
        spaces = _parts(published.get("pre_tokenizer"), "pretokenizers")
        no_prefix = any(step.get("prepend_scheme") == "never" for step in spaces)
        prefix = [] if no_prefix else [{"type": "Prepend", "prepend": _META}]
        following = [*tables, _replace_regex(" {2,}", " "), _STRIP, _replace(" ", _META), *prefix]
    cleaner = tokenizers.Tokenizer.from_str(json.dumps(_EMPTY | {"normalizer": _sequence(steps)})).normalizer
    tokens = [
        token for token in document["added_tokens"] if cleaner.normalize_str(token["content"]) == token["content"]
    ]
    cleaned = document | {"added_tokens": tokens, "normalizer": _sequence([*steps, *following])}
    pad = named_pad(path.parent)
    vocab = document["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    if pad in ids:
        cleaned["post_processor"]["special_tokens"]["pad"] = {"id": "pad", "ids": [ids[pad]], "tokens": [pad]}
    return cleaned


def _parts(step: Json | None, key: str) -> list[Json]:
    """Return the parts of a normalizer or pre-tokenizer, which may be a sequence."""
    return list(step.get(key, [step])) if step else []


def _sequence(steps: list[Json]) -> Json:
    return {"type": "Sequence", "normalizers": steps}


def _end_with(eos: str, eos_id: int, pad: str, pad_id: int) -> Json:
    """Append the end token; the padding token is named with it, for the code that enables padding."""
    return {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            eos: {"id": eos, "ids": [eos_id], "tokens": [eos]},
            "pad": {"id": "pad", "ids": [pad_id], "tokens": [pad]},
        },
    }


def _special_token(token_id: int, content: str) -> Json:
    flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": True}
    return {"id": token_id, "content": content} | flags


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _replace_regex(pattern: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}


def _find_charsmap(document: Json) -> str:
    """Return the NFKC table of a Unigram tokenizer.json, from any step of its normalizer."""
    normalizer = document.get("normalizer") or {}
    for step in [normalizer, *normalizer.get("normalizers", [])]:
        if step.get("type") == "Precompiled":
            return str(step["precompiled_charsmap"])
    return ""


# As the reference, which strips what is between two added tokens, and begins no word behind one.
_JOIN_MARKS = [
    _replace_regex(f" (?={_MARKS})", ""),
    _replace_regex(f"(?<={_MARKS}) ", ""),
    _replace_regex(f"^{_META}(?={_MARKS})", ""),
]
_STRIP: Json = {"type": "Strip", "strip_left": True, "strip_right": True}
_EMPTY: Json = {"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}}
_SINGLE_SPACES = [_replace_regex(_WHITESPACE, " "), _STRIP]
# str.lower() of Python: Σ at the end of a word becomes ς, which Lowercase, letter by letter, does not
# know. Source: SpecialCasing.txt of Unicode, Final_Sigma.
_CASED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
_LOWER = [
    _replace_regex(rf"(?<={_CASED}\p{{Case_Ignorable}}*)Σ(?!\p{{Case_Ignorable}}*{_CASED})", "ς"),
    {"type": "Lowercase"},
]
# Names are those of the argument ``clean`` in open_clip.
OPEN_CLIP_CLEANING: dict[str, list[Json]] = {
    "whitespace": _SINGLE_SPACES,
    "lower": [*_SINGLE_SPACES, *_LOWER],
    "canonicalize": [_replace("_", " "), _replace_regex(_PUNCTUATION, ""), *_LOWER, *_SINGLE_SPACES],
}
