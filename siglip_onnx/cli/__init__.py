"""The ``siglip-onnx`` command: one file per subcommand. Only this package imports click."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..errors import SiglipOnnxError
from ..system.cache_dir import use_cache
from .bench import bench
from .classify import classify
from .compile import compile_
from .doctor import doctor
from .embed import embed
from .export import export
from .info import info
from .models import models
from .search import search
from .verify import verify
from .web import web

INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the package's errors into one line on stderr and their exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except SiglipOnnxError as error:
            click.echo(f"siglip-onnx: {error}", err=True)
            raise click.exceptions.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when a reader such as head has gone
            click.echo(f"siglip-onnx: {error}", err=True)
            raise click.exceptions.Exit(SiglipOnnxError.exit_code) from error
        except (KeyboardInterrupt, ImportError) as error:
            if not _was_interrupted(error):
                raise
            click.echo("siglip-onnx: interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error


def _was_interrupted(error: BaseException | None) -> bool:
    """Say whether Ctrl-C is behind an error: while onnxruntime loads, it arrives as an ImportError."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _was_interrupted(error.__cause__))


def _once() -> Callable[[logging.LogRecord], bool]:
    """Return a filter that lets each message pass once: several variants read the same texts."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    return is_new


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="siglip_onnx", prog_name="siglip-onnx")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where downloaded models are kept; SIGLIP_ONNX_CACHE if not given, or the system's place for caches.",
)
def main(cache_dir: Path | None) -> None:
    """Say how probably texts describe pictures, with SigLIP on onnxruntime.

    Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished but some
    inputs had errors, 4 model or cache error, 130 interrupted.
    """
    if cache_dir is not None:
        use_cache(cache_dir)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged images, which this package reports itself
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(logging.Formatter("siglip-onnx: %(message)s"))
    logs.addFilter(_once())
    logging.getLogger("siglip_onnx").handlers = [logs]


for command in (classify, embed, search, web, info, export, verify, compile_, bench, doctor, models):
    main.add_command(command)
