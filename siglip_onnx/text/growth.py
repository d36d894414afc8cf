"""Refuse a tokenizer that may take much more memory or time than its file and its texts, before it is loaded.

Only what the tables below list is accepted: parts of these types, with these keys. The library applies normalizers even
while it loads, to the added tokens. Thirty replacements of a character by two turn one character into a gigabyte.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from ..system.files import read_small
from .expressions import Pattern, read_expression, replace_expressions

# A text of n characters may become one of ``MAX_GROWTH * n + MAX_ADDED``. Real tokenizers reach a factor of 36: tables
# of characters turn one Arabic ligature into 18, and Metaspace may add a character to each. They add up to 18.
MAX_GROWTH = 40.0
MAX_ADDED = 100.0
MAX_STEPS = 64  # of a normalizer, and of each other part
MAX_PATTERN_STEPS = 500  # of all patterns for each character of a text
MAX_TOKENIZER_BYTES = 200_000_000  # five times the largest one known
MAX_OTHER_CHARACTERS = 4_000_000  # besides the vocabulary; real tokenizers have up to 2 million
MAX_STRING = 200  # characters; the library copies many strings for each token
MAX_APPENDED = 100  # tokens
MAX_ADDED_WORK = 25e6  # squares of the lengths of added tokens, one second; those of Gemma have 5e4

Json = dict[str, Any]
_Keys = Mapping[str, type | UnionType]
_LONG_STRINGS = {"precompiled_charsmap": MAX_OTHER_CHARACTERS, "Regex": MAX_OTHER_CHARACTERS}  # both have own checks
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
# The types of each part, besides "type" itself. A sequence has one key, that of its parts.
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
# How many characters one may become. ByteLevel writes four bytes, as characters such as ½, of which NFKC makes three.
_FACTORS = {"ByteLevel": 12.0, "Metaspace": 2.0}
# The pieces and merges of a model, of which a file may have a million: they are matched, not parsed.
_SPACE = r"[ \t\r\n]*+"
_STRING = rf'"(?:[^"\\]|\\.){{0,{2 * MAX_STRING + 1}}}+"'  # two pieces, as merges have; of them, or as escapes
_NUMBER = r"-?[0-9][0-9.eE+-]*+"
_ENTRY = (
    rf"(?:{_STRING}(?:{_SPACE}:{_SPACE}{_NUMBER})?+"
    rf"|\[{_SPACE}{_STRING}{_SPACE},{_SPACE}(?:{_STRING}|{_NUMBER}){_SPACE}\])"
)
_VOCABULARY = re.compile(rf'("(?:vocab|merges)"{_SPACE}:{_SPACE})[\[{{]{_SPACE}(?:{_ENTRY}{_SPACE},?{_SPACE})*+[\]}}]')


def read_checked(path: Path) -> str:
    """Return the text of a ``tokenizer.json`` to load; see :func:`check_text`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is refused.
    """
    return check_text(read_small(path, MAX_TOKENIZER_BYTES).decode())


def check_document(document: Json) -> None:
    """Check a parsed ``tokenizer.json`` that is to be written, and loaded by :func:`read_checked`.

    Raises:
        ValueError: it is refused.
    """
    check_text(json.dumps(document, ensure_ascii=False))


def check_text(text: str) -> str:
    """Check the text of a ``tokenizer.json``, without parsing its vocabulary.

    Returns the text to load, in which slow regular expressions that export writes are replaced.

    Raises:
        ValueError: it is damaged, has a type or key that is not known, or could take too much memory or time.
    """
    text = replace_expressions(text)
    outline = _VOCABULARY.sub(r"\1[]", text)
    if len(outline) > MAX_OTHER_CHARACTERS:
        raise ValueError(f"{len(outline):,} characters besides a vocabulary, expected at most {MAX_OTHER_CHARACTERS:,}")
    document = json.loads(outline, object_pairs_hook=_read_object)
    _check_keys("the tokenizer", document, _DOCUMENT)
    steps = {name: _read_steps(name, document.get(name)) for name in _TYPES}
    _check_patterns([step["pattern"] for part in steps.values() for step in part if "pattern" in step])
    _check_growth(steps["normalizer"] + steps["pre_tokenizer"])
    _check_added_tokens(document.get("added_tokens", []), *_check_growth(steps["normalizer"]))
    _check_templates([step for step in steps["post_processor"] if step["type"] == "TemplateProcessing"])
    _check_lengths(document.get("truncation"), document.get("padding"))
    if any(model.get(name) for model in steps["model"] for name in ("vocab", "merges")):
        raise ValueError(f"a vocabulary of an unknown form, or with pieces of more than {MAX_STRING} characters")
    return text


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


def _check_patterns(patterns: Iterable[Any]) -> None:
    if (num_steps := sum(_read_pattern(pattern).num_steps for pattern in patterns)) > MAX_PATTERN_STEPS:
        raise ValueError(f"patterns of {num_steps:,} steps for each character, expected at most {MAX_PATTERN_STEPS}")


def _read_pattern(pattern: Any) -> Pattern:
    _check_keys("a pattern", pattern, {"String": str, "Regex": str})
    if len(pattern) != 1:
        raise ValueError(f"a pattern with {len(pattern)} keys, expected either String or Regex")
    if "Regex" in pattern:
        return read_expression(pattern["Regex"])
    return Pattern(len(pattern["String"]), len(pattern["String"]))


def _check_growth(steps: Iterable[Json]) -> tuple[float, float]:
    """Return how many times as long steps can make a text, and how many characters they can then add."""
    growth, added = 1.0, 0.0
    for step in steps:
        factor, new = _read_growth(step)
        growth, added = growth * factor, added * factor + new
        if growth > MAX_GROWTH or added > MAX_ADDED:
            raise ValueError(
                f"steps that make a text {growth:,.0f} times as long and add {added:,.0f} characters, expected at most "
                f"{MAX_GROWTH:.0f} times and {MAX_ADDED:.0f} characters"
            )
    return growth, added


def _read_growth(step: Json) -> tuple[float, float]:
    """Return by which factor a step can lengthen a text, and how many characters it can then add.

    Lengths are those of :func:`_length`, so that the forms of Unicode, and lower-casing, lengthen nothing.
    """
    kind = step["type"]
    if kind == "Replace":
        content, least = _length(step.get("content", "")), _read_pattern(step.get("pattern")).least
        # A pattern that may match nothing does so before each character and at the end.
        return (max(1.0, content / least), 0.0) if least else (1.0 + content, content)
    if kind == "Prepend":
        return 1.0, _length(step.get("prepend", ""))
    if kind == "Precompiled":
        return _longest_replacement(base64.b64decode(step.get("precompiled_charsmap", ""), validate=True)), 0.0
    return _FACTORS.get(kind, 1.0), 0.0


def _length(text: str) -> float:
    """Return the length of the longest form of a text, which no normalization of Unicode and no lower-casing exceeds.

    The library's tables are those of Unicode 13, and Python's newer.
    """
    return float(len(unicodedata.normalize("NFKD", text)))


def _longest_replacement(charsmap: bytes) -> float:
    """Return the length of the longest string in sentencepiece's table: strings that end with a zero, after a trie."""
    if not charsmap:
        return 1.0
    strings_start = 4 + int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < strings_start:  # the library would allocate what it states
        raise ValueError(f"a table of characters that states {strings_start:,} bytes, and has {len(charsmap):,}")
    strings = charsmap[strings_start:].decode(errors="replace")
    return max(1.0, *map(_length, strings.split("\0")))


def _check_added_tokens(tokens: Iterable[Any], growth: float, added: float) -> None:
    """Check tokens that the library looks for in texts: its automaton takes a time of the square of their lengths."""
    work = 0.0
    for token in tokens:
        _check_keys("an added token", token, _ADDED_TOKEN)
        length = _length(token.get("content", ""))
        work += max(1.0, length * growth + added if token.get("normalized", True) else length) ** 2
    if work > MAX_ADDED_WORK:
        raise ValueError("added tokens that are too many or too long")


def _check_templates(templates: Iterable[Json]) -> None:
    """Check what is added to the tokens of a text: few tokens, and never the text once more."""
    num_appended = 0
    for template in templates:
        tokens = template.get("special_tokens", {})
        for token in tokens.values():
            _check_keys("a special token", token, {"id": str, "ids": list, "tokens": list})
            for item in token.get("tokens", []):
                _check_value("a token", item, str)
        for pieces in (template.get("single", []), template.get("pair", [])):
            ids = [_read_piece(piece) for piece in pieces]
            if any(ids.count(("Sequence", text)) > 1 for text in ("A", "B")):
                raise ValueError("a post_processor that repeats a text")
            special = [tokens.get(id_, {}) for _, id_ in ids]
            num_appended += sum(max(len(token.get("ids", [])), len(token.get("tokens", []))) for token in special)
    if num_appended > MAX_APPENDED:
        raise ValueError(f"a post_processor that adds {num_appended:,} tokens, expected at most {MAX_APPENDED}")


def _read_piece(piece: Any) -> tuple[str, str]:
    """Return the kind of a piece of a template, and the name of its text or special token."""
    _check_keys("a piece of a template", piece, {"Sequence": dict, "SpecialToken": dict})
    if len(piece) != 1:
        raise ValueError(f"a piece of a template with {len(piece)} keys, expected either Sequence or SpecialToken")
    ((kind, value),) = piece.items()
    _check_keys(kind, value, {"id": str, "type_id": int})
    return kind, value.get("id", "")


def _check_lengths(truncation: Json | None, padding: Json | None) -> None:
    """Check that a text is cut to one part, and padded to a fixed length or not at all."""
    _check_keys("truncation", truncation or {}, _TRUNCATION)
    if truncation and truncation.get("stride"):
        raise ValueError("a truncation whose parts overlap: the library would make one of each few tokens")
    _check_keys("padding", padding or {}, _PADDING)
    if padding and isinstance(padding.get("strategy"), dict):
        _check_keys("the strategy of padding", padding["strategy"], {"Fixed": int})
