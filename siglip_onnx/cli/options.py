"""Options and inputs that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ImageError, TextError

if TYPE_CHECKING:
    from ..head import Floats
    from ..model import SigLIP

SOME_FAILED = 3
Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add ``--model``, ``--variant``, ``--provider`` and ``--threads``."""
    for option in reversed(
        [
            click.option("--model", envvar="SIGLIP_ONNX_MODEL", metavar="FOLDER",
                         help="Exported model; the demo model if neither this nor SIGLIP_ONNX_MODEL is given."),
            click.option("--variant", metavar="NAME", help="int8, fp32, ...; int8 where present."),
            click.option("--provider", "providers", multiple=True, metavar="NAME",
                         help="onnxruntime execution provider; CPUExecutionProvider if not given."),
            click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all this process may use."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def text_options(command: Command) -> Command:
    """Add ``--text`` and ``--texts-file``."""
    command = click.option("--texts-file", type=click.Path(path_type=Path), help="One text per line, UTF-8.")(command)
    return click.option("--text", "texts", multiple=True, help="A text; repeat for more.")(command)


def open_model(model: str | None, variant: str | None, providers: Sequence[str], threads: int | None) -> SigLIP:
    """Load the model that the options ask for; without any, the demo model, which says what it knows."""
    from ..hub import DEMO, load  # noqa: PLC0415 - keeps --help fast
    from ..session import share_thread_pool  # noqa: PLC0415

    share_thread_pool(threads)
    loaded = load(model or DEMO, variant=variant, providers=providers or None)
    if not model:
        click.echo(f"Using the demo model, which knows only {loaded.bundle.manifest.knows}.", err=True)
    return loaded


def read_texts(texts: Sequence[str], texts_file: Path | None) -> list[str]:
    """Join the texts of both options; blank lines of the file are skipped.

    Raises:
        TextError: the file cannot be read, or is not UTF-8.
    """
    if texts_file is None:
        return list(texts)
    try:
        lines = texts_file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise TextError(f"{texts_file} does not exist; --texts-file wants a file with one text per line.") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{texts_file} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise TextError(f"{texts_file} cannot be read: {error.strerror or error}.") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise TextError(f"{texts_file} holds no text; expected one per line.")
    return [*texts, *found]


def encode_each(model: SigLIP, images: Sequence[str]) -> list[Floats | ImageError]:
    """Embed pictures one by one: f32 ``(1, D)``, or the error of a picture that cannot be read."""
    results: list[Floats | ImageError] = []
    for image in images:
        try:
            results.append(model.encode_images(image))
        except ImageError as error:
            click.echo(f"siglip-onnx: {error}", err=True)
            results.append(error)
    return results


def exit_code(results: Sequence[object]) -> int:
    """Return 0 if every picture was read, 1 if none was, 3 if only some were."""
    errors = sum(isinstance(result, ImageError) for result in results)
    if errors == 0:
        return 0
    return ImageError.exit_code if errors == len(results) else SOME_FAILED


def human_size(size_bytes: int) -> str:
    """Return a size with its unit, decimal as on a disk's label: ``379.0 MB``."""
    return f"{size_bytes / 1e6:,.1f} MB"
