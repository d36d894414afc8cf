"""Help texts: options in sections, and examples at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from .interrupts import second_interrupt_ends

OPTIONS, OUTPUT, MODEL = "Options", "Output", "Model"


class _Help(click.Command):
    """Shows options by their sections, in the order of their first options, and then the examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, and the commands of a group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):  # what arguments are, the text above says
                sections.setdefault(vars(param).get("section", OPTIONS), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"{'':{formatter.current_indent}}{example}\n" for example in self.examples))
        super().format_epilog(ctx, formatter)


class Command(_Help):
    """A command with sections and examples, which Ctrl-C interrupts so that it closes what is open."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with second_interrupt_ends():
            return super().invoke(ctx)


class Group(_Help, click.Group):
    """A group of commands with sections and examples."""

    command_class = Command


def section(title: str, *decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options and arguments, and shows them in a section of the help."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            num_before = len(getattr(command, "__click_params__", ()))
            command = decorator(command)
            for param in command.__click_params__[num_before:]:
                vars(param)["section"] = title
        return command

    return decorate
