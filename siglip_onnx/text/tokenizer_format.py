"""Read the parts of a ``tokenizer.json`` without its vocabulary, and refuse types and keys that are not listed here.

The list has what export writes, and what real tokenizers of the Unigram and BPE models have: SentencePiece models that
transformers converted, and byte-level BPE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple

MAX_CHARACTERS = 4_000_000  # besides the vocabulary; real tokenizers have up to 2 million
MAX_STEPS = 64  # of each part
MAX_STRING = 200  # characters; the library copies many strings for each token

Json = dict[str, Any]
_Keys = Mapping[str, type | UnionType]
_LONG_STRINGS = {"precompiled_charsmap": MAX_CHARACTERS, "Regex": MAX_CHARACTERS}  # both have their own checks
_DOCUMENT: _Keys = {
    "version": str, "truncation": dict | None, "padding": dict | None, "added_tokens": list,
    "normalizer": dict | None, "pre_tokenizer": dict | None, "post_processor": dict | None, "decoder": dict | None,
    "model": dict,
}  # fmt: skip
_TRUNCATION: _Keys = {"direction": str, "max_length": int, "strategy": str, "stride": int}
_PADDING: _Keys = {
    "strategy": dict | str, "direction": str, "pad_to_multiple_of": NoneType, "pad_id": int, "pad_type_id": int,
    "pad_token": str,
}  # fmt: skip
_ADDED_TOKEN: _Keys = {
    "id": int, "content": str, "single_word": bool, "lstrip": bool, "rstrip": bool, "normalized": bool, "special": bool,
}  # fmt: skip
_BYTE_LEVEL: _Keys = {"add_prefix_space": bool, "trim_offsets": bool, "use_regex": bool}
_METASPACE: _Keys = {
    "replacement": str, "prepend_scheme": str, "split": bool | None, "add_prefix_space": bool | None,
    "str_rep": str | None,
}  # fmt: skip
_REPLACE: _Keys = {"pattern": dict, "content": str}
# The types of each part, and their keys besides "type" itself. A sequence has one, that of its parts.
_TYPES: dict[str, dict[str, _Keys]] = {
    "normalizer": {
        "Sequence": {"normalizers": list},
        "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {}, "Lowercase": {}, "Nmt": {}, "StripAccents": {}, "ByteLevel": {},
        "Strip": {"strip_left": bool, "strip_right": bool},
        "Prepend": {"prepend": str},
        "Precompiled": {"precompiled_charsmap": str},
        "Replace": _REPLACE,
    },
    "pre_tokenizer": {
        "Sequence": {"pretokenizers": list},
        "Whitespace": {}, "WhitespaceSplit": {},
        "Digits": {"individual_digits": bool},
        "Punctuation": {"behavior": str},
        "Split": {"pattern": dict, "behavior": str, "invert": bool},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
    },
    "post_processor": {
        "Sequence": {"processors": list},
        "ByteLevel": _BYTE_LEVEL,
        "TemplateProcessing": {"single": list, "pair": list, "special_tokens": dict},
    },
    "decoder": {
        "Sequence": {"decoders": list},
        "Fuse": {}, "ByteFallback": {},
        "Strip": {"content": str, "start": int, "stop": int},
        "BPEDecoder": {"suffix": str},
        "Replace": _REPLACE,
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
    },
    "model": {
        "Unigram": {"unk_id": int | None, "byte_fallback": bool, "vocab": object, "merges": object},
        "BPE": {
            "dropout": NoneType, "unk_token": str | None, "continuing_subword_prefix": str | None,
            "end_of_word_suffix": str | None, "fuse_unk": bool | None, "byte_fallback": bool | None,
            "ignore_merges": bool | None, "vocab": object, "merges": object,
        },
    },
}  # fmt: skip
_PATTERN: _Keys = {"String": str, "Regex": str}
_PIECE: _Keys = {"Sequence": dict, "SpecialToken": dict}
# The pieces and merges of a model, of which a file may have a million: they are matched, not parsed.
_SPACE = r"[ \t\r\n]*+"
_CHARACTER = r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])'
_STRING = rf'"{_CHARACTER}{{0,{MAX_STRING}}}+"'
_TWO_STRINGS = rf'"{_CHARACTER}{{0,{2 * MAX_STRING + 1}}}+"'  # the two pieces of a merge, with a space between them
_NUMBER = r"-?[0-9][0-9.eE+-]*+"
_ENTRY = (
    rf"(?:{_TWO_STRINGS}(?:{_SPACE}:{_SPACE}{_NUMBER})?+"
    rf"|\[{_SPACE}{_STRING}{_SPACE},{_SPACE}(?:{_STRING}|{_NUMBER}){_SPACE}\])"
)
_VOCABULARY = re.compile(rf'("(?:vocab|merges)"{_SPACE}:{_SPACE})[\[{{]{_SPACE}(?:{_ENTRY}{_SPACE},?{_SPACE})*+[\]}}]')


class Parts(NamedTuple):
    """The steps of each part that has types, such as the normalizer, in their order, and the added tokens."""

    steps: dict[str, list[Json]]
    added_tokens: list[Json]


def read_parts(text: str) -> Parts:
    """Return the checked parts of a ``tokenizer.json``, in a time proportional to its text.

    Raises:
        ValueError: it is damaged, or has a type or key that is not known, or a value of another type.
    """
    outline = _VOCABULARY.sub(r"\1[]", text)
    if len(outline) > MAX_CHARACTERS:
        raise ValueError(f"{len(outline):,} characters besides a vocabulary, expected at most {MAX_CHARACTERS:,}")
    document = json.loads(outline, object_pairs_hook=_read_object)
    _check_keys("the tokenizer", document, _DOCUMENT)
    steps = {name: _read_steps(name, document.get(name)) for name in _TYPES}
    for step in (step for part in steps.values() for step in part):
        _check_step(step)
    _check_lengths(document.get("truncation") or {}, document.get("padding") or {})
    for token in document.get("added_tokens", []):
        _check_keys("an added token", token, _ADDED_TOKEN)
    return Parts(steps, document.get("added_tokens", []))


def _read_object(pairs: list[tuple[str, Any]]) -> Json:
    """Return a JSON object whose keys occur once: of a second one, the library may use either."""
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("an object with the same key twice")
    return document


def _check_keys(what: str, value: Any, types: _Keys) -> None:
    """Check that a value is an object with no other keys than these, and with values of their types."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {value!r:.50}, expected an object")
    for key, item in value.items():
        if key not in types:
            raise ValueError(f"{what} has the unknown key {key!r:.50}, expected {', '.join(types) or 'none'}")
        _check_value(f"{key} of {what}", item, types[key], _LONG_STRINGS.get(key, MAX_STRING))


def _check_value(what: str, value: Any, expected: type | UnionType, max_length: int = MAX_STRING) -> None:
    if not isinstance(value, expected):
        raise ValueError(f"{what} is {value!r:.50}, expected {getattr(expected, '__name__', expected)}")
    if isinstance(value, str) and len(value) > max_length:
        raise ValueError(f"{what} has {len(value):,} characters, expected at most {max_length}")


def _read_steps(name: str, value: Any) -> list[Json]:
    """Return the checked steps of a part, in order."""
    steps, pending, count = [], [] if value is None else [value], 0
    while pending:
        step, count = pending.pop(), count + 1
        if count > MAX_STEPS:
            raise ValueError(f"a {name} of more than {MAX_STEPS} steps")
        kind = step.get("type") if isinstance(step, dict) else None
        if not isinstance(kind, str) or kind not in _TYPES[name]:
            raise ValueError(f"a {name} of the unknown type {kind!r:.50}, expected {', '.join(_TYPES[name])}")
        keys = _TYPES[name][kind]
        _check_keys(f"a {name} {kind}", step, {"type": str, **keys})
        if kind == "Sequence":
            (parts,) = keys
            pending.extend(reversed(step.get(parts, [])))
        else:
            steps.append(step)
    return steps


def _check_step(step: Json) -> None:
    """Check what the values of a step contain."""
    kind = step["type"]
    if kind in ("Replace", "Split"):
        _check_choice("a pattern", step.get("pattern"), _PATTERN)
    elif kind == "TemplateProcessing":
        for token in step.get("special_tokens", {}).values():
            _check_keys("a special token", token, {"id": str, "ids": list, "tokens": list})
            for item in token.get("tokens", []):
                _check_value("a token", item, str)
        for piece in (*step.get("single", []), *step.get("pair", [])):
            _check_choice("a piece of a template", piece, _PIECE)
            for name, value in piece.items():
                _check_keys(name, value, {"id": str, "type_id": int})
    elif step.get("vocab") or step.get("merges"):
        raise ValueError(f"a vocabulary of an unknown form, or with a piece of more than {MAX_STRING} characters")


def _check_choice(what: str, value: Any, types: _Keys) -> None:
    """Check that a value is an object with exactly one of these keys."""
    _check_keys(what, value, types)
    if len(value) != 1:
        raise ValueError(f"{what} with {len(value)} keys, expected either {' or '.join(types)}")


def _check_lengths(truncation: Json, padding: Json) -> None:
    """Check that a text is cut to one part, and padded to one length."""
    _check_keys("truncation", truncation, _TRUNCATION)
    if truncation.get("stride"):
        raise ValueError("a truncation whose parts overlap: the library would make one of each few tokens")
    _check_keys("padding", padding, _PADDING)
    if isinstance(padding.get("strategy"), dict):
        _check_keys("the strategy of padding", padding["strategy"], {"Fixed": int})
