"""The ``siglip-onnx`` command: one file per subcommand, imported when it runs. Only this package imports click."""

from __future__ import annotations

import contextlib
import errno
import io
import keyword
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import click

from .._version import __version__
from ..errors import SiglipOnnxError, printable
from ..system.cache_dir import use_cache
from ..system.extras import install_command
from ..system.interrupts import INTERRUPTED
from .help import Group

# Each command is defined under its name in the file of its name; `import`, a keyword, with an underscore after it. The
# summaries are also the first sentences of the commands' own help; they are repeated here so that --help imports no
# command, and with it numpy and onnxruntime.
COMMANDS = {
    "bench": "Measure the speed and the accuracy of a model on this machine.",
    "calibrate": "Fit a model's probabilities to labelled images.",
    "classify": "Score how likely each text is to describe each image.",
    "compile": "Combine a vision tower and labels in one ONNX file.",
    "doctor": "Check that this installation works as it should.",
    "duplicates": "Find identical and near-identical images in a folder.",
    "embed": "Write the embeddings of images, texts, or whole folders.",
    "evaluate": "Measure the accuracy of a model on labelled images or captions.",
    "explain": "Show where in an image the evidence for texts lies.",
    "export": "Export a checkpoint to a model folder.",
    "fit": "Fit a few-shot classifier to labelled images.",
    "import": "Turn ONNX files that others exported into a model folder.",
    "info": "Show what a model contains, and what this machine runs it with.",
    "models": "Manage the cache of downloaded models.",
    "search": "Search a folder for images.",
    "verify": "Compare the variants of a model with fp32, and with PyTorch.",
    "web": "Serve a page to try a model, and its HTTP API.",
}


def load_command(name: str) -> click.Command:
    """Import the file of a command and return the command."""
    module = import_module(f".{name}_" if keyword.iskeyword(name) else f".{name}", __name__)
    command: click.Command = vars(module).get(name) or vars(module)[f"{name}_"]
    return command


class _Commands(Group):
    """Import a command when it is used, and turn errors into one line on stderr and their exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _replace_closed_streams()
        _escape_unencodable()
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
        except click.ClickException as error:
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except SiglipOnnxError as error:
            raise _exit(str(error), error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when a reader such as head has closed the pipe
            raise _exit(str(error), SiglipOnnxError.exit_code) from error
        except (RuntimeError, MemoryError) as error:  # MemoryError: that of this process, or of a library
            if not isinstance(error, MemoryError) and "start new thread" not in str(error):
                raise
            advice = "Check the limits of memory and processes (ulimit -v, ulimit -u), or use fewer threads or workers."
            problem = str(error) or "out of memory"
            raise _exit(f"{problem}. {advice}", SiglipOnnxError.exit_code) from error
        except (KeyboardInterrupt, ImportError) as error:
            if _was_interrupted(error):
                if not _can_start_thread():  # OpenBLAS interrupts the process if it cannot start its threads
                    advice = "Raise the limit of processes (ulimit -u)."
                    raise _exit(f"No thread can be started. {advice}", SiglipOnnxError.exit_code) from error
                raise _exit("interrupted", INTERRUPTED) from error
            advice = f"A package is missing or damaged; install it again, or run: {install_command()}"
            raise _exit(f"{error}. {advice}", SiglipOnnxError.exit_code) from error


def _exit(message: str, code: int) -> click.exceptions.Exit:
    """Print the message of an error, if stderr can be written, and return the exception that ends the command."""
    with contextlib.suppress(OSError):
        click.echo(f"siglip-onnx: {printable(message)}", err=True)
    return click.exceptions.Exit(code)


def _was_interrupted(error: BaseException | None) -> bool:
    """Say whether Ctrl-C is behind an error: while onnxruntime loads, it arrives as an ImportError."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _was_interrupted(error.__cause__))


def _can_start_thread() -> bool:
    try:
        threading.Thread(target=bool).start()
    except RuntimeError:
        return False
    return True


class _ClosedOutput(io.TextIOBase):
    """Stands for a closed stdout: results that are printed are an error, not lost."""

    def __init__(self, null: IO[str]) -> None:
        self._null = null  # keeps the descriptor

    def write(self, _text: str) -> int:
        raise OSError("stdout is closed; the results cannot be printed.")


def _replace_closed_streams() -> None:
    """Open the null device in place of closed standard streams: the next file opened would get their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - open until the end
            setattr(sys, name, _ClosedOutput(null) if name == "stdout" else null)


def _escape_unencodable() -> None:
    """Print characters that a console or file of another encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _OneLine(logging.Formatter):
    """Formats messages as one line, whatever names they hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides
        record.message = printable(record.message)
        return super().formatMessage(record)


def _texts_once() -> Callable[[logging.LogRecord], bool]:
    """Return a filter that passes each message about a text once: several variants read the same texts.

    Other messages always pass: those of a server would fill the memory, and a repeated one tells something new.
    """
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if not record.name.startswith("siglip_onnx.text."):
            return True
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    return is_new


@click.group(
    cls=_Commands,
    examples=(
        'siglip-onnx classify photo.jpg --text "a cat" --text "a dog"',
        'siglip-onnx search photos "a dog on the beach"',
    ),
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
    logs.setFormatter(_OneLine("siglip-onnx: %(message)s"))
    logs.addFilter(_texts_once())
    logger = logging.getLogger("siglip_onnx")
    logger.handlers = [logs]
    logger.setLevel(logging.INFO)  # shows the progress of downloads
