"""Refuse a tokenizer that may take much more memory or time than its file and its texts, before it is loaded.

The library applies normalizers even while it loads, to the added tokens. Thirty replacements of a character by two
turn one character into a gigabyte.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..system.files import read_small
from .expressions import Pattern, read_expression, replace_expressions
from .tokenizer_format import Json, read_parts

# A text of n characters, between two added tokens, may become one of ``MAX_GROWTH * n + MAX_ADDED``. Real tokenizers
# reach 36 and 18: tables of characters turn one Arabic ligature into 18, and Metaspace may add a character to each.
MAX_GROWTH = 40.0
MAX_ADDED = 40.0
MAX_PATTERN_STEPS = 500  # of all patterns for each character of a text
MAX_TOKENIZER_BYTES = 200_000_000  # five times the largest one known
MAX_APPENDED = 100  # tokens
MAX_ADDED_WORK = 25e6  # squares of the lengths of added tokens, one second; those of Gemma have 5e4
# How many characters one may become. ByteLevel writes four bytes, as characters such as ½, of which NFKC makes three.
_FACTORS = {"ByteLevel": 12.0, "Metaspace": 2.0}


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
    steps, added_tokens = read_parts(text)
    _check_patterns(step["pattern"] for part in steps.values() for step in part if "pattern" in step)
    _check_growth(steps["normalizer"] + steps["pre_tokenizer"])
    _check_added_tokens(added_tokens, *_check_growth(steps["normalizer"]))
    _check_templates(step for step in steps["post_processor"] if step["type"] == "TemplateProcessing")
    return text


def _check_patterns(patterns: Iterable[Json]) -> None:
    if (num_steps := sum(_read_pattern(pattern).num_steps for pattern in patterns)) > MAX_PATTERN_STEPS:
        raise ValueError(f"patterns of {num_steps:,} steps for each character, expected at most {MAX_PATTERN_STEPS}")


def _read_pattern(pattern: Json) -> Pattern:
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
        content, least = _length(step.get("content", "")), _read_pattern(step["pattern"]).least
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


def _check_added_tokens(tokens: Iterable[Json], growth: float, added: float) -> None:
    """Check tokens that the library looks for in texts: its automaton takes a time of the square of their lengths."""
    work = 0.0
    for token in tokens:
        length = _length(token.get("content", ""))
        work += max(1.0, length * growth + added if token.get("normalized", True) else length) ** 2
    if work > MAX_ADDED_WORK:
        raise ValueError("added tokens that are too many or too long")


def _check_templates(templates: Iterable[Json]) -> None:
    """Check what is added to the tokens of a text: few tokens, and never the text once more."""
    num_appended = 0
    for template in templates:
        tokens = template.get("special_tokens", {})
        for pieces in (template.get("single", []), template.get("pair", [])):
            texts = [piece["Sequence"].get("id") for piece in pieces if "Sequence" in piece]
            if len(set(texts)) < len(texts):
                raise ValueError("a post_processor that repeats a text")
            special = [tokens.get(piece["SpecialToken"].get("id"), {}) for piece in pieces if "SpecialToken" in piece]
            num_appended += sum(max(len(token.get("ids", [])), len(token.get("tokens", []))) for token in special)
    if num_appended > MAX_APPENDED:
        raise ValueError(f"a post_processor that adds {num_appended:,} tokens, expected at most {MAX_APPENDED}")
