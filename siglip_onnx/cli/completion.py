"""Names of models and variants as values of options, which the shell can complete; imports no numpy."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from .. import demo
from ..errors import SiglipOnnxError
from ..hub.cache import cached_models
from ..hub.published import PUBLISHED


class ModelName(click.ParamType):  # type: ignore[type-arg] # generic only for type checkers
    """A model: the demo model, one in the cache, a published checkpoint, or a folder."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name; an empty one, as a shell makes of a variable without a value, is not the current folder."""
        if value == "":
            self.fail("the name is empty.", param, ctx)
        return value

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the one name of a variable, which may be a path with spaces."""
        return [rv]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin with ``incomplete``, and let the shell add folders."""
        del ctx, param
        try:
            cached = [model.name for model in cached_models()]
        except SiglipOnnxError:  # an unreadable cache has no names to offer
            cached = []
        names = dict.fromkeys([demo.NAME, *cached, *(checkpoint.name for checkpoint in PUBLISHED)])
        items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="dir")]


class VariantName(click.ParamType):  # type: ignore[type-arg] # generic only for type checkers
    """A variant of a model; which ones there are depends on the model."""

    name = "variant"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the usual names that begin with ``incomplete``."""
        del ctx, param
        return [CompletionItem(name) for name in ("int8", "fp32", "fp16", "q4", "qdq") if name.startswith(incomplete)]
