"""Write a ``tokenizer.json`` that gives the checkpoint's ids exactly, with cleaning, end token, padding, truncation.

Sources: ``SiglipTokenizer`` of transformers 4.57 for SentencePiece models (SigLIP), big_vision's
``proj/image_text`` for Gemma's vocabulary (SigLIP 2, trained on lower-cased texts).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import tokenizers

from ..config import SENTENCEPIECE, TOKENIZER
from ..errors import CheckpointError
from ..text.vocabulary import PIECES, write_pieces

LARGE_VOCABULARY = 50_000  # from this size on a few texts are tokenized by a model of only their pieces
_META = "▁"
# str.isspace() and string.punctuation of Python, as the reference uses them.
_WHITESPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_PUNCTUATION = r"[!-/:-@\[-`{-~]"

Json = dict[str, Any]


def write_tokenizer(checkpoint: Path, out: Path, *, text_length: int, vocab_size: int) -> None:
    """Write ``out`` from the checkpoint's ``spiece.model`` or ``tokenizer.json``; next to it the table of its pieces.

    Raises:
        CheckpointError: the checkpoint has neither, or a kind that SigLIP does not use.
    """
    if (checkpoint / SENTENCEPIECE).exists():
        document = _from_sentencepiece(checkpoint / SENTENCEPIECE)
    elif (checkpoint / TOKENIZER).exists():
        document = _from_fast_tokenizer(checkpoint / TOKENIZER)
    else:
        raise CheckpointError(f"{checkpoint} has neither {SENTENCEPIECE} nor {TOKENIZER}; SigLIP needs its tokenizer.")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
    if tokenizer.get_vocab_size() > vocab_size:
        raise CheckpointError(
            f"The tokenizer of {checkpoint} has {tokenizer.get_vocab_size()} pieces, but the text tower only "
            f"{vocab_size}. The two do not belong together."
        )
    pad = document["post_processor"]["special_tokens"]["pad"]
    tokenizer.enable_truncation(text_length, direction="right")
    tokenizer.enable_padding(direction="right", pad_id=pad["ids"][0], pad_token=pad["tokens"][0], length=text_length)
    text = tokenizer.to_str(pretty=False)
    out.write_text(text, encoding="utf-8")
    if len(document["model"]["vocab"]) >= LARGE_VOCABULARY:
        write_pieces(json.loads(text), out.with_name(PIECES))


def _from_sentencepiece(path: Path) -> Json:
    from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only these checkpoints need it

    proto: Any = sentencepiece_model_pb2  # generated at run time, so without types
    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no public home
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}. Download it again.") from error
    if model.trainer_spec.model_type != proto.TrainerSpec.UNIGRAM:
        raise CheckpointError(
            f"{path} is not a Unigram model, as all SentencePiece models of SigLIP are. Download it again."
        )
    pieces = [[piece.piece, piece.score] for piece in model.pieces]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    return _unigram_document(
        pieces, model.trainer_spec.unk_id, charsmap, byte_fallback=model.trainer_spec.byte_fallback
    )


def _from_fast_tokenizer(path: Path) -> Json:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind = document["model"]["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds no tokenizer of the tokenizers library ({error!r}). Download it again."
        ) from error
    if kind == "BPE":
        return _gemma_document(document)
    if kind == "Unigram":
        model = document["model"]
        return _unigram_document(
            model["vocab"],
            model["unk_id"],
            _find_charsmap(document),
            byte_fallback=model.get("byte_fallback", False),
        )
    raise CheckpointError(f"{path} holds a {kind} model, expected Unigram (SigLIP) or BPE (SigLIP 2).")


def _unigram_document(vocab: list[list[Any]], unk_id: int, charsmap: str, *, byte_fallback: bool) -> Json:
    """SigLIP: lower-case, no ASCII punctuation, single spaces, NFKC; ``</s>`` ends and pads.

    Two differences from the reference remain: text after a literal ``</s>`` or ``<unk>`` starts a new word here, but
    not there; a combining accent at the start of a text is lost here.
    """
    pieces = [piece for piece, _ in vocab]
    if "</s>" not in pieces:
        raise CheckpointError(
            "The tokenizer has no </s> piece, with which SigLIP ends and pads texts. Download it again."
        )
    eos = pieces.index("</s>")
    return {
        "version": "1.0",
        "added_tokens": [_special_token(eos, "</s>"), _special_token(unk_id, "<unk>")],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                _replace(_META, " "),
                {"type": "Prepend", "prepend": _META},
                {"type": "Lowercase"},
                _replace_regex(_PUNCTUATION, ""),
                _replace_regex(_WHITESPACE, " "),
                # Precompiled alone does not change long graphemes, such as decomposed Japanese.
                *([{"type": "NFKC"}, {"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []),
                _replace_regex(" {2,}", " "),
                _replace_regex(f"[ {_META}]+$", ""),
                _replace(" ", _META),
            ],
        },
        "post_processor": _end_with("</s>", eos, "</s>", eos),
        "decoder": {"type": "Metaspace", "replacement": _META, "prepend_scheme": "always", "split": False},
        "model": {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": byte_fallback},
    }


def _gemma_document(document: Json) -> Json:
    """SigLIP 2: the published file, plus the lower-casing of training; ``<eos>`` ends, ``<pad>`` pads."""
    vocab = document["model"]["vocab"]
    if not {"<eos>", "<pad>"} <= vocab.keys():
        raise CheckpointError(
            "The tokenizer has no <eos> or no <pad>, with which SigLIP 2 ends and pads texts. Download it again."
        )
    published = document.get("normalizer")
    steps = [{"type": "Lowercase"}, *([published] if published else [])]
    return document | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "post_processor": _end_with("<eos>", vocab["<eos>"], "<pad>", vocab["<pad>"]),
        "padding": None,
        "truncation": None,
    }


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
