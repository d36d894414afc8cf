"""Refuse a tokenizer that could lengthen a text without bound, or take too long for it, before it is loaded.

The library applies normalizers even while it loads, to the added tokens. Thirty replacements of a character by two
turn one character into a gigabyte.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..system.files import read_small
from .expressions import count_steps, replace_expressions

MAX_GROWTH = 256.0  # characters per character; real tokenizers stay below 80, most of it for one Arabic ligature
MAX_SPLIT_GROWTH = 16.0  # the same of a pre-tokenizer; those of real tokenizers stay at 2
MAX_STEPS = 64
MAX_PATTERN_STEPS = 500  # of all patterns for each character of a text
MAX_PREPENDED = 100  # characters
MAX_TOKENIZER_BYTES = 200_000_000  # five times the largest one known
MAX_APPENDED = 100  # tokens
MAX_ADDED_WORK = 25e6  # squares of the lengths of added tokens, one second; those of Gemma have 5e4
_CHECKED = ("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding", "added_tokens")
_WITH_PATTERNS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}  # and the keys of their sequences
# How much longer each kind of step can make a text, apart from those that :func:`_growth` computes. Those of Unicode
# alone do not add up, and count as 1.
_NORMALIZERS = {
    "NFC": 1.0, "NFD": 1.0, "NFKC": 1.0, "NFKD": 1.0, "Lowercase": 1.0, "Strip": 1.0, "StripAccents": 1.0, "Nmt": 1.0,
    "BertNormalizer": 3.0, "ByteLevel": 2.0, "Prepend": 1.0, "Precompiled": 1.0,
}  # fmt: skip
_PRE_TOKENIZERS = {
    "BertPreTokenizer": 1.0, "CharDelimiterSplit": 1.0, "Digits": 1.0, "FixedLength": 1.0, "Punctuation": 1.0,
    "Split": 1.0, "UnicodeScripts": 1.0, "Whitespace": 1.0, "WhitespaceSplit": 1.0,
    "Metaspace": 2.0,  # a character before each part
    "ByteLevel": 4.0,  # bytes above 127 as characters of two, and a space before each part
}  # fmt: skip
# A key that may be one of these, before an array or object; in a vocabulary a number would follow. JSON may spell each
# of its characters as an escape.
_KEY = re.compile(r'("(?:[a-z_]|\\u00[4-7][0-9a-fA-F]){7,14}")[ \t\r\n]*:[ \t\r\n]*(?=[\[{])')


def read_checked(path: Path) -> str:
    """Return the text of a ``tokenizer.json`` to load; see :func:`check_text`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is refused.
    """
    return check_text(read_small(path, MAX_TOKENIZER_BYTES).decode())


def check_text(text: str) -> str:
    """Check the text of a ``tokenizer.json``, without parsing its vocabulary.

    Returns the text to load, in which slow regular expressions that export writes are replaced.

    Raises:
        ValueError: it could lengthen a text too much or take too long for it, or is damaged where it says so.
    """
    text = replace_expressions(text)
    _check_parts(list(_find_values(text)))
    return text


def check_document(document: dict[str, Any]) -> None:
    """Check a parsed ``tokenizer.json`` that is to be written, and loaded by :func:`read_checked`.

    Raises:
        ValueError: it could lengthen a text too much or take too long for it.
    """
    parts = {name: document.get(name) for name in _CHECKED}
    for name in _WITH_PATTERNS:
        parts[name] = json.loads(replace_expressions(json.dumps(parts[name])))
    _check_parts(list(parts.items()))


def _check_parts(parts: Sequence[tuple[str, Any]]) -> None:
    """Check the values of :data:`_CHECKED`, of which the last one of a name counts for the library, but all here."""
    growth = max(
        (_check_growth("a normalizer", map(_growth, _steps(value, "normalizers")), MAX_GROWTH)
         for name, value in parts if name == "normalizer"),
        default=1.0,
    )  # fmt: skip
    patterns = (step.get("pattern") for name, value in parts if (key := _WITH_PATTERNS.get(name))
                for step in _steps(value, key))  # fmt: skip
    if (num_steps := sum(map(_pattern_steps, patterns))) > MAX_PATTERN_STEPS:
        raise ValueError(f"patterns of {num_steps:,} steps for each character, expected at most {MAX_PATTERN_STEPS}")
    for name, value in parts:
        if name == "added_tokens":
            _check_added_tokens(value, growth)
        else:
            _check_part(name, value)


def _check_part(name: str, value: Any) -> None:
    if name == "pre_tokenizer":
        kinds = (step.get("type") for step in _steps(value, "pretokenizers"))
        _check_growth("a pre-tokenizer", (_known(_PRE_TOKENIZERS, kind) for kind in kinds), MAX_SPLIT_GROWTH)
    elif name == "truncation":
        if isinstance(value, dict) and value.get("stride"):
            raise ValueError("a truncation whose parts overlap: the library would make one of each few tokens")
    elif name == "padding":
        if isinstance(value, dict) and value.get("pad_to_multiple_of"):
            raise ValueError("a padding to multiples, expected one to a fixed length")
    elif name == "post_processor" and _appended(value) > MAX_APPENDED:
        raise ValueError(f"a post-processor that adds more than {MAX_APPENDED} tokens")


def _find_values(text: str) -> Iterator[tuple[str, Any]]:
    """Yield what follows the keys to check, wherever they are: they may occur twice, and be spelled with escapes.

    The time is proportional to the length of the text: keys are short, and values are not searched again for keys.
    """
    decoder = json.JSONDecoder()
    match = _KEY.search(text)
    while match:
        name, end = json.loads(match[1]), match.end()
        if name in _CHECKED:
            value, end = decoder.raw_decode(text, end)
            yield name, value
        match = _KEY.search(text, end)


def _check_added_tokens(tokens: Any, growth: float) -> None:
    """Check tokens that the library looks for in texts: its automaton takes a time of the square of their lengths."""
    work = 0.0
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict) and isinstance(content := token.get("content"), str):
            work += max(1.0, len(content) * (growth if token.get("normalized", True) else 1.0)) ** 2
    if work > MAX_ADDED_WORK:
        raise ValueError("added tokens that are too many or too long")


def _check_growth(what: str, growths: Iterable[float], maximum: float) -> float:
    total = 1.0
    for number, growth in enumerate(growths, 1):
        total *= growth
        if number > MAX_STEPS:
            raise ValueError(f"{what} of more than {MAX_STEPS} steps")
        if total > maximum:
            raise ValueError(f"{what} that makes texts {total:,.0f} times as long")
    return total


def _pattern_steps(pattern: Any) -> int:
    """Return how many steps the pattern of a step may take for each character of a text."""
    if not isinstance(pattern, dict):
        return 0
    expression = pattern.get("Regex")
    return len(str(pattern.get("String", ""))) if expression is None else count_steps(str(expression))


def _known(kinds: Mapping[str, float], kind: object) -> float:
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"a step of the unknown kind {kind!r:.50}, which may lengthen texts")
    return kinds[kind]


def _steps(value: Any, parts: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, in order; ``parts`` is the key of those of a sequence."""
    pending = [value]
    while pending:
        step = pending.pop()
        if not isinstance(step, dict):
            continue
        nested = step.get(parts)
        if isinstance(nested, list):
            pending.extend(reversed(nested))
        else:
            yield step


def _growth(step: dict[str, Any]) -> float:
    """Return how much longer a step of a normalizer can make a text."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(step.get("content") or "")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        if literal:
            return max(1.0, content / len(literal))
        return 1.0 + content  # a regular expression may match between characters
    if kind == "Prepend" and len(step.get("prepend") or "") > MAX_PREPENDED:
        raise ValueError(f"a normalizer that prepends more than {MAX_PREPENDED} characters")
    if kind == "Precompiled" and isinstance(step.get("precompiled_charsmap"), str):
        return _longest_replacement(base64.b64decode(step["precompiled_charsmap"]))
    return _known(_NORMALIZERS, kind)


def _longest_replacement(charsmap: bytes) -> float:
    """Return the length of the longest string in sentencepiece's table: strings that end with a zero, after a trie."""
    if not charsmap:
        return 1.0
    strings_start = 4 + int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < strings_start:  # the library would allocate what it states
        raise ValueError(f"a table of characters that states {strings_start:,} bytes, and has {len(charsmap):,}")
    strings = charsmap[strings_start:]
    return float(max(1, *(len(string.decode(errors="replace")) for string in strings.split(b"\0"))))


def _appended(processor: Any) -> int:
    """Return how many tokens and sequences the templates of a post-processor have."""
    count, pending = 0, [processor]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            pending.extend(value for key, value in node.items() if key != "tokens")
        elif isinstance(node, list):
            count += len(node)
            pending.extend(node if len(node) <= MAX_APPENDED else ())
    return count
