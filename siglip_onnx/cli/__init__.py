"""The ``siglip-onnx`` command: one file per subcommand, imported when it runs. Only this package imports click."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..errors import SiglipOnnxError
from ..system.cache_dir import use_cache
from ..system.extras import install_command

INTERRUPTED = 130

# Each command is defined under its name in the file of its name. The summaries are also the first sentences of the
# commands' own help; they are repeated here so that --help imports no command, and with it numpy and onnxruntime.
COMMANDS = {
    "bench": "Measure the speed and the accuracy of a model on this machine.",
    "classify": "Score how likely each text is to describe each image.",
    "compile": "Combine a vision tower and labels in one ONNX file.",
    "doctor": "Check that this installation works as it should.",
    "embed": "Write the embeddings of images, texts, or whole folders.",
    "export": "Export a checkpoint to a model folder.",
    "info": "Show what a model contains, and what this machine runs it with.",
    "models": "Manage the cache of downloaded models.",
    "search": "Search an embedded folder for images.",
    "verify": "Compare the variants of a model with fp32, and with PyTorch.",
    "web": "Serve a page to try a model, and its HTTP API.",
}


def load_command(name: str) -> click.Command:
    """Import the file of a command and return the command."""
    module = import_module(f".{name}", __name__)
    command: click.Command = vars(module).get(name) or vars(module)[f"{name}_"]
    return command


class _Commands(click.Group):
    """Import a command when it is used, and turn errors into one line on stderr and their exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _replace_closed_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # --help cannot be written
            raise SystemExit(_exit(str(error), SiglipOnnxError.exit_code).exit_code) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:  # fmt: skip
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(name)), rest

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except SiglipOnnxError as error:
            raise _exit(str(error), error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when a reader such as head has closed the pipe
            raise _exit(str(error), SiglipOnnxError.exit_code) from error
        except (KeyboardInterrupt, ImportError) as error:
            if _was_interrupted(error):
                raise _exit("interrupted", INTERRUPTED) from error
            advice = f"A package is missing or damaged; install it again, or run: {install_command()}"
            raise _exit(f"{error}. {advice}", SiglipOnnxError.exit_code) from error


def _exit(message: str, code: int) -> click.exceptions.Exit:
    """Print the message of an error, if stderr can be written, and return the exception that ends the command."""
    with contextlib.suppress(OSError):
        click.echo(f"siglip-onnx: {message}", err=True)
    return click.exceptions.Exit(code)


def _was_interrupted(error: BaseException | None) -> bool:
    """Say whether Ctrl-C is behind an error: while onnxruntime loads, it arrives as an ImportError."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _was_interrupted(error.__cause__))


def _replace_closed_streams() -> None:
    """Open the null device in place of closed standard streams: the next file opened would get their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end


def _once() -> Callable[[logging.LogRecord], bool]:
    """Return a filter that passes each message once: several variants read the same texts."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    return is_new


@click.group(
    cls=_Commands,
    commands={name: click.Command(name, short_help=summary) for name, summary in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, package_name="siglip_onnx", prog_name="siglip-onnx")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of downloaded models. Default: SIGLIP_ONNX_CACHE, or else the system's folder for caches.",
)
def main(cache_dir: Path | None) -> None:
    """Score how likely texts are to describe images, with SigLIP on onnxruntime.

    Results are printed on stdout, everything else on stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished
    but some inputs had errors, 4 model or cache error, 130 interrupted.
    """
    if cache_dir is not None:
        use_cache(cache_dir)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged images, which this package reports itself
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(logging.Formatter("siglip-onnx: %(message)s"))
    logs.addFilter(_once())
    logger = logging.getLogger("siglip_onnx")
    logger.handlers = [logs]
    logger.setLevel(logging.INFO)  # shows the progress of downloads
