"""Names separated by commas, as the value of an option that may also be repeated; loads nothing but click."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    NameChoice = click.Choice[str]
else:
    NameChoice = click.Choice  # generic from click 8.2 on


class NameList(NameChoice):
    """Names separated by commas, each one of the choices."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the list of names."""
        convert = super().convert
        return [convert(name.strip(), param, ctx) for name in str(value).split(",")]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Show that there may be several; click gives the context from 8.2 on."""
        context = {} if ctx is None else {"ctx": ctx}
        return f"{super().get_metavar(param, **context)},..."


def flatten(_context: click.Context, _parameter: click.Parameter, values: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of a repeated :class:`NameList`, each once."""
    return tuple(dict.fromkeys(name for names in values for name in names))
