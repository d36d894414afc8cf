"""Options and inputs that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ImageError, TextError
from ..options import MOST_PIXELS, ImageLimits, RuntimeOptions
from ..system.threads import available_threads
from ..verify.accuracy import MIN_COSINE

if TYPE_CHECKING:
    from ..model import SigLIP

Result = TypeVar("Result")
SOME_FAILED = 3
MANY_INPUTS = 4
DEFAULT_MIN_COSINE = f"{MIN_COSINE['int8']}, and {MIN_COSINE['q4']} for q4,"


@dataclass(frozen=True)
class ModelChoice:
    """What the model options say."""

    model: str | None
    variant: str | None
    providers: Sequence[str]
    threads: int | None
    workers: int | None
    fast_decode: bool
    max_num_patches: int | None
    max_megapixels: float | None
    allow_truncated: bool
    offline: bool

    @property
    def image_limits(self) -> ImageLimits:
        """What a picture may have at most."""
        if self.max_megapixels is None:
            return ImageLimits()
        return ImageLimits(max_pixels=round(self.max_megapixels * 1e6))

    def runtime_options(self, label_cache: Path | None = None, *, num_inputs: int = 1) -> RuntimeOptions:
        """Return the options for so many inputs: by default one worker per CPU when there are at least four."""
        workers, threads = self.workers, self.threads
        if workers is None and num_inputs >= MANY_INPUTS:
            workers, threads = threads or available_threads(), None
        return RuntimeOptions(
            variant=self.variant,
            providers=tuple(self.providers) or None,
            threads=threads,
            workers=workers or 1,
            fast_decode=self.fast_decode,
            max_num_patches=self.max_num_patches,
            label_cache=label_cache,
            image_limits=self.image_limits,
            allow_truncated=self.allow_truncated,
        )

    def open(self, cache: Path | None = None, *, num_inputs: int = 1) -> SigLIP:
        """Load the model; without a name the demo model, which says what it knows."""
        from ..demo import NAME as DEMO  # noqa: PLC0415 - keeps --help fast
        from ..hub.loading import open_model  # noqa: PLC0415
        from ..model import SigLIP  # noqa: PLC0415

        options = self.runtime_options(cache, num_inputs=num_inputs)
        bundle = open_model(
            self.model or DEMO,
            options.variant,
            offline=self.offline,
            report=lambda line: click.echo(line, err=True),
        )
        loaded = SigLIP(bundle, options)
        if not self.model:
            click.echo(f"Using the demo model, which knows only {loaded.bundle.manifest.knows}.", err=True)
        return loaded


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of :class:`ModelChoice`, which the command gets as ``choice``."""

    @functools.wraps(command)
    def with_choice(*args: Any, **options: Any) -> None:
        choice = ModelChoice(**{field.name: options.pop(field.name) for field in fields(ModelChoice)})
        command(*args, choice=choice, **options)

    for option in reversed(
        [
            click.option("--model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL",
                         help="Exported model, name on the Hugging Face Hub, or for classify a compiled classifier; "
                              "the demo model if neither this nor SIGLIP_ONNX_MODEL is given."),
            click.option("--variant", metavar="NAME", help="int8, fp32, ...; int8 where present."),
            click.option("--provider", "providers", multiple=True, metavar="NAME",
                         help="onnxruntime execution provider; CPUExecutionProvider if not given."),
            click.option("--threads", type=click.IntRange(1, 512), help="CPU threads; all this process may use."),
            click.option("--workers", type=click.IntRange(1, 512),
                         help="Pictures or texts worked on at once, each by one thread; by default 1 for few of them "
                              "(the soonest answer), all threads for many."),
            click.option("--fast-decode", is_flag=True,
                         help="Decode large JPEGs at a fraction of their size: faster, not quite the same pixels."),
            click.option("--max-num-patches", type=click.IntRange(1, 4096),
                         help="NaFlex models: patches a picture may have; what the checkpoint says."),
            click.option("--max-megapixels", type=click.FloatRange(0.000001, MOST_PIXELS / 1e6),
                         help="Refuse larger pictures, by their header; 89.5 if not given."),
            click.option("--allow-truncated", is_flag=True,
                         help="Take pictures whose files end early as far as they go; refused otherwise."),
            click.option("--offline", is_flag=True, help="Open no socket, even if the model is not in the cache."),
        ]
    ):  # fmt: skip
        with_choice = option(with_choice)
    return with_choice


def template_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--template``, which the command gets as ``templates``."""
    return click.option(
        "--template", "templates", multiple=True, default=["{}"], show_default=True,
        help='What each text is put into: "a photo of {}"; repeat to take the mean of several.',
    )(command)  # fmt: skip


def text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--text`` and ``--texts-file``."""
    command = click.option("--texts-file", type=click.Path(path_type=Path), help="One text per line, UTF-8.")(command)
    return click.option("--text", "texts", multiple=True, help="A text; repeat for more.")(command)


def read_texts(texts: Sequence[str], texts_file: Path | None) -> list[str]:
    """Join the texts of both options; blank lines of the file are skipped.

    Raises:
        TextError: the file cannot be read, or is not UTF-8.
    """
    if texts_file is None:
        return list(texts)
    try:
        lines = texts_file.read_text(encoding="utf-8-sig").split("\n")
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


def tell_errors(results: Iterable[Result | ImageError]) -> list[Result | ImageError]:
    """Return the results of pictures in order, printing the error of one that cannot be read in its turn."""
    told = []
    for found in results:
        if isinstance(found, ImageError):
            click.echo(f"siglip-onnx: {found}", err=True)
        told.append(found)
    return told


def exit_code(results: Sequence[object]) -> int:
    """Return 0 if every picture was read, 1 if none was, 3 if only some were."""
    errors = sum(isinstance(result, ImageError) for result in results)
    if errors == 0:
        return 0
    return ImageError.exit_code if errors == len(results) else SOME_FAILED


def find_images(folder: Path, option: str, *, at_most: int | None = None) -> list[Path]:
    """Return the pictures of a folder, at any depth; what cannot be read is named and left out.

    Of more than ``at_most`` files so many are taken, evenly, which is said.
    """
    from ..image.decode import load_image  # noqa: PLC0415 - keeps --help fast

    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder; {option} wants a folder of pictures.")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if at_most is not None and len(files) > at_most:
        click.echo(f"siglip-onnx: of the {len(files):,} files in {folder}, {at_most} are used.", err=True)
        files = [files[number * len(files) // at_most] for number in range(at_most)]
    pictures = []
    for path in files:
        try:
            load_image(path)
        except ImageError as error:
            click.echo(f"siglip-onnx: left out: {error}", err=True)
        else:
            pictures.append(path)
    if not pictures:
        raise ImageError(f"{folder} holds no readable picture; {option} wants a folder of pictures.")
    return pictures


def to_json(document: object, indent: int | None = None) -> str:
    """Return JSON that can be written as UTF-8; names that are no valid Unicode are escaped."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(document, indent=indent)
    return text


def human_size(size_bytes: int) -> str:
    """Return a size with its unit, decimal as on a disk's label: ``379.0 MB``."""
    return f"{size_bytes / 1e6:,.1f} MB"
