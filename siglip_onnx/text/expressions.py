r"""Refuse regular expressions of a tokenizer whose matching may take more than time proportional to the text.

The library matches with backtracking: ``a*a*(?!a)\w`` takes a time of the cube of the text's length. What is allowed
is the form of real tokenizers: alternatives that fail after a bounded number of steps, or match as much as they read.

* At the start of an alternative: characters, classes, and groups of these without quantifiers. They may have bounded
  quantifiers, such as ``?`` and ``{1,3}``. Anchors and assertions about one character are allowed here too.
* Then at most one unbounded quantifier, of a character or class, and after it only what may be absent, so that the
  alternative cannot fail any more: ``[^\s\p{L}]+[\r\n]*``.

The few expressions that have another form, and yet take proportional time, are compared as a whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_STEPS = 500  # at one place of a text; Llama 3's expression, one of the longest, takes 40
MAX_CHARACTERS = 2_000  # of an expression
# A character, an escape of one, a class with classes in it, or a property.
_CLASS = r"\[\^?(?:[^\[\]\\]|\\.|\[\^?(?:[^\[\]\\]|\\.)+\])+\]"
_ATOM = rf"(?:[^\\^$.|?*+()\[\]{{}}]|\\[sSwWdDhHrntfv]|\\[^A-Za-z0-9]|\\[pP]\{{\^?\w+\}}|\.|{_CLASS})"
_ASSERTION = rf"(?:[\^$]|\\[AzZbB]|\(\?<?[=!]{_ATOM}\))"
_ITEM = re.compile(
    rf"(?P<assertion>{_ASSERTION})"
    rf"|(?P<body>\((?:\?i?:)?(?P<inside>(?:{_ATOM}|\|)+)\)|{_ATOM})"
    r"(?P<quantifier>[?*+]|\{(?P<least>\d{0,4})(?P<comma>,?)(?P<most>\d{0,4})\})?",
    re.DOTALL,
)
_ATOMS = re.compile(rf"{_ATOM}|(?P<bar>\|)", re.DOTALL)
# A run of spaces is read at most three times, and matched except for its last character: by GPT-2, and by GPT-4,
# Llama 3 and Qwen, which first look for its last line feed.
_SPACES = (r"\s+(?!\S)", r"\s+")
_LINES = (r"\s*[\r\n]+", *_SPACES)
_CASED, _IGNORED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]", r"\p{Case_Ignorable}"
# Expressions that export writes, of which a text can be made that takes a time of the square of its length, and what
# is matched instead. The same is matched, but the last letter of a word (Σ) behind more than 32 marks.
_REPLACED = {
    "[ ▁]+$": "(?<![ ▁])[ ▁]+$",
    rf"(?<={_CASED}{_IGNORED}*)Σ(?!{_IGNORED}*{_CASED})": rf"(?<={_CASED}{_IGNORED}{{0,32}})Σ(?!{_IGNORED}*{_CASED})",
}
_SPELLINGS = {json.dumps(old, ensure_ascii=ascii_): new for old, new in _REPLACED.items() for ascii_ in (True, False)}
_WRITTEN = re.compile(rf'("Regex"[ \t\r\n]*:[ \t\r\n]*)({"|".join(map(re.escape, _SPELLINGS))})')


class Pattern(NamedTuple):
    """How many steps a pattern takes at most at one place of a text before it fails, and a number that it matches.

    ``least`` characters at least are matched; 0 if it may match nothing.
    """

    num_steps: int
    least: int


class _Item(NamedTuple):
    """A part of an alternative: the characters that it reads before it can fail, and in how many ways it can match.

    An item that may be empty, but not absent, can still fail, as an assertion can.
    """

    text: str
    num_characters: int = 0
    num_ways: float = 1
    may_be_absent: bool = False
    may_be_empty: bool = False


def replace_expressions(document: str) -> str:
    """Return a ``tokenizer.json`` in which expressions that export writes are replaced by ones of proportional time."""
    return _WRITTEN.sub(lambda match: match[1] + json.dumps(_SPELLINGS[match[2]]), document)


def read_expression(expression: str) -> Pattern:
    """Return what a regular expression takes and matches; ``least`` is 1 for all that match more.

    Raises:
        ValueError: its steps are not bounded, or it has a form that is not known.
    """
    if expression in _REPLACED.values():
        return Pattern(len(expression), least=1)
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"a regular expression of {len(expression):,} characters, expected at most {MAX_CHARACTERS:,}")
    alternatives = _parse(expression)
    texts = ["".join(item.text for item in items) for items in alternatives]
    steps = 0
    for number, items in enumerate(alternatives):
        if texts[number] == _SPACES[0]:
            steps += 2
        elif tuple(texts[number : number + len(_LINES)]) == _LINES:
            steps += 3
        else:
            steps += _count_steps(items, expression)
    return Pattern(steps, least=int(not any(all(item.may_be_empty for item in items) for items in alternatives)))


def _count_steps(items: Sequence[_Item], expression: str) -> int:
    """Return the number of steps of an alternative."""
    num_characters, num_ways = 0, 1.0
    for number, item in enumerate(items):
        num_characters += max(1, item.num_characters)
        following = items[number + 1 :]
        if all(later.may_be_absent for later in following):
            break
        num_ways *= item.num_ways
    if not num_ways * num_characters <= MAX_STEPS:
        raise _refusal(expression)
    return int(num_ways * num_characters)


def _parse(expression: str) -> list[list[_Item]]:
    """Return the items of each alternative."""
    alternatives: list[list[_Item]] = [[]]
    place = 0
    while place < len(expression):
        if expression[place] == "|":
            alternatives.append([])
            place += 1
            continue
        match = _ITEM.match(expression, place)
        if match is None:
            raise _refusal(expression)
        place = match.end()
        alternatives[-1].append(_read_item(match, expression))
    return alternatives


def _read_item(match: re.Match[str], expression: str) -> _Item:
    if match["assertion"]:
        return _Item(match[0], 1, may_be_empty=True)
    quantifier, least, most = match["quantifier"], 1, 1.0
    if quantifier in ("?", "*", "+"):
        least, most = int(quantifier == "+"), 1.0 if quantifier == "?" else math.inf
    elif quantifier:
        least = int(match["least"] or 0)
        most = float(match["most"] or math.inf) if match["comma"] else float(least)
    if quantifier in ("{}", "{,}") or most < least:  # the library reads these in another way
        raise _refusal(expression)
    if match["inside"] is None:
        num_characters = least if most == math.inf else int(most)
        return _Item(match[0], num_characters, most - least + 1, least == 0, least == 0)
    if quantifier not in (None, "?"):
        raise _refusal(expression)
    atoms = [atom["bar"] for atom in _ATOMS.finditer(match["inside"])]
    absent = quantifier == "?"
    num_ways = len(atoms) - atoms.count(None) + 1 + absent
    return _Item(match[0], len(atoms), num_ways, absent, absent or "" in match["inside"].split("|"))


def _refusal(expression: str) -> ValueError:
    return ValueError(
        f"a regular expression whose time may grow faster than a text ({expression!r:.80}), expected classes of "
        "characters with one quantifier"
    )
