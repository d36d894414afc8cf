"""Check texts from users and put them into templates such as ``a photo of {}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import TextError

MAX_CHARACTERS = 20_000  # of a text, and of a text in its template


def fill_templates(template: str | Sequence[str], texts: Iterable[str]) -> list[list[str]]:
    """Put each text in the place of ``{}``; one row per text, one column per template.

    Raises:
        TextError: a template has no ``{}``, there is no template, a text in its template is too long, or the texts
            are not an iterable of str.
    """
    if not isinstance(template, str | Sequence) or isinstance(template, bytes | bytearray):
        raise TextError(f"A template cannot be a {type(template).__name__}; give a str, or a list of them.")
    templates = [template] if isinstance(template, str) else list(template)
    for each in templates or [""]:
        if not isinstance(each, str):
            raise TextError(f"A template cannot be a {type(each).__name__}; give a str, or a list of them.")
        if "{}" not in each:
            raise TextError(f"The template {each!r} has no {{}} for the text; write for example 'a photo of {{}}'.")
    return [[_fill(each, text) for each in templates] for text in check_texts(texts)]


def _fill(template: str, text: str) -> str:
    """Put a text into a template, whose length is checked before: a template may repeat ``{}`` any number of times."""
    if not isinstance(text, str):
        raise TextError(f"A text cannot be a {type(text).__name__}; give a str.")
    count = template.count("{}")
    length = len(template) + count * (len(text) - len("{}"))
    if length > MAX_CHARACTERS and count > 1:
        raise TextError(
            f"The template {template[:40]!r} repeats the text {count:,} times and would have {length:,} characters; at "
            f"most {MAX_CHARACTERS:,} are accepted. Shorten it."
        )
    return template.replace("{}", text)


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts of any iterable as a list: a sequence, generator, array of one dimension, or pandas Series.

    Raises:
        TextError: they are one str, or of a type whose elements are not texts in an order.
    """
    # A str is a sequence of its letters, which is never meant. A set has no order. Iterating a dict gives its keys, a
    # DataFrame the names of its columns, a file its lines with their ends.
    if isinstance(texts, str):
        raise TextError(f"Texts cannot be one str; give a list: [{texts[:40]!r}].")
    unordered = isinstance(texts, set | frozenset | Mapping | bytes | bytearray | memoryview) or hasattr(texts, "read")
    if not isinstance(texts, Iterable) or unordered or getattr(texts, "ndim", 1) != 1:
        raise TextError(f"Texts cannot be a {type(texts).__name__}; give a list of str.")
    return list(texts)
