"""Check texts from users and put them into templates such as ``a photo of {}``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import TextError


def fill_templates(template: str | Sequence[str], texts: Sequence[str]) -> list[list[str]]:
    """Put each text in the place of ``{}``; one row per text, one column per template.

    Raises:
        TextError: a template has no ``{}``, there is no template, or the texts are not a sequence.
    """
    templates = [template] if isinstance(template, str) else list(template)
    for each in templates or [""]:
        if "{}" not in each:
            raise TextError(f"The template {each!r} has no {{}} for the text; write for example 'a photo of {{}}'.")
    return [[each.replace("{}", text) for each in templates] for text in check_texts(texts)]


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list.

    Raises:
        TextError: they are one str, or not a sequence.
    """
    # A str is a sequence of its letters, which is never meant. A set has no order.
    if isinstance(texts, str):
        raise TextError(f"Texts cannot be one str; give a list: [{texts[:40]!r}].")
    if not isinstance(texts, Sequence):
        raise TextError(f"Texts cannot be a {type(texts).__name__}; give a list of str.")
    return list(texts)
