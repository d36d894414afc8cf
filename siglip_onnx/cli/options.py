"""Options that several commands share, as decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from .. import demo
from ..errors import SiglipOnnxError
from ..hub.loading import open_model
from ..image.convert import parse_background
from ..model import SigLIP
from ..options import MAX_NUM_PATCHES, MOST_PIXELS, WHITE, ImageLimits, RuntimeOptions
from ..system.threads import MAX_THREADS, available_threads
from ..verify.accuracy import MIN_COSINE
from .output import report, report_demo_model

MANY_INPUTS = 4
PATH = click.Path(path_type=Path)
DEFAULT_MIN_COSINE = f"{MIN_COSINE['int8']} by default, {MIN_COSINE['q4']} for q4"
variant_option = click.option("--variant", metavar="NAME", help="Variant: int8, fp32, ... Default: int8 if present.")
provider_option = click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="onnxruntime execution provider; repeat for more, in order of preference. Default: CPUExecutionProvider.",
)
model_argument = click.argument("model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
sample_texts_option = click.option(
    "--texts", type=PATH, metavar="FILE", help="UTF-8 file with one text per line. Default: built-in texts."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Number of CPU threads. Default: all that this process may use.",
)


@dataclass(frozen=True)
class ModelChoice:
    """The values of the options that :func:`model_options` adds."""

    model: str | None
    variant: str | None
    providers: Sequence[str]
    threads: int | None
    workers: int | None
    fast_decode: bool
    max_num_patches: int | None
    max_megapixels: float | None
    allow_truncated: bool
    background: str | None
    offline: bool

    @property
    def image_limits(self) -> ImageLimits:
        """Limits of the images."""
        if self.max_megapixels is None:
            return ImageLimits()
        return ImageLimits(max_pixels=round(self.max_megapixels * 1e6))

    def runtime_options(self, label_cache: Path | None = None, *, num_inputs: int = 1) -> RuntimeOptions:
        """Return the options for this number of inputs: by default, one worker per CPU from four inputs on."""
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
            background=self.background or WHITE,
        )

    def open(self, label_cache: Path | None = None, *, num_inputs: int = 1) -> SigLIP:
        """Open the model, or the demo model if none was named, which is reported."""
        options = self.runtime_options(label_cache, num_inputs=num_inputs)
        bundle = open_model(self.model or demo.NAME, options.variant, offline=self.offline, report=report)
        model = SigLIP(bundle, options)
        if not self.model:
            report_demo_model()
        return model


class RenamedOption(click.Option):
    """An option that accepts the names it had in earlier versions, and shows only its first name."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the first name and the help text."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(", ".join(self.opts), self.opts[0]), record[1])


def collect(kind: type[Any], name: str, options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return a decorator that adds options; the command gets their values as one dataclass, the argument ``name``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_choice(*args: Any, **values: Any) -> None:
            choice = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            command(*args, **{name: choice}, **values)

        for option in reversed(options):
            with_choice = option(with_choice)
        return with_choice

    return decorate


def check_background(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return a background; one that is neither a color nor ``drop`` is a usage error."""
    try:
        parse_background(WHITE if value is None else value)
    except SiglipOnnxError as error:
        raise click.BadParameter(str(error)) from error
    return value


model_options = collect(ModelChoice, "choice", [
    click.option("--model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL",
                 help="Folder of an exported model, its name on the Hugging Face Hub, or, for classify, a "
                      "compiled classifier. Default: SIGLIP_ONNX_MODEL, or else the demo model."),
    variant_option,
    provider_option,
    threads_option,
    click.option("--workers", type=click.IntRange(1, MAX_THREADS),
                 help="Number of images or texts processed at the same time, each by one thread. Default: 1 "
                      "for up to three inputs (lowest latency), one per CPU for more (highest throughput)."),
    click.option("--fast-decode", is_flag=True,
                 help="Decode large JPEGs at a fraction of their size: faster, but not exactly the same "
                      "pixels."),
    click.option("--max-num-patches", type=click.IntRange(1, MAX_NUM_PATCHES),
                 help="NaFlex models: maximum number of patches of an image. Default: that of the "
                      "checkpoint."),
    click.option("--max-megapixels", type=click.FloatRange(0.000001, MOST_PIXELS / 1e6),
                 help="Refuse larger images, before decoding them. Default: 89.5."),
    click.option("--allow-truncated", is_flag=True,
                 help="Accept images whose files end early, and decode what is there."),
    click.option("--background", metavar="COLOR", callback=check_background,
                 help="Color behind transparent images: a name or #rrggbb. drop: ignore transparency, and cut levels "
                      "beyond 8 bits, as transformers 4.57 does. Default: white."),
    click.option("--offline", is_flag=True,
                 help="Do not use the network, even if the model is not in the cache."),
])  # fmt: skip
template_option = click.option(
    "--template", "templates", multiple=True, default=["{}"], show_default=True,
    help='Sentence into which each text is put: "a photo of {}". Repeat to use the mean of several sentences.',
)  # fmt: skip


def text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--text`` and ``--texts-file``."""
    from_file = click.option("--texts-file", type=PATH, metavar="FILE", help="UTF-8 file with one text per line.")
    return click.option("--text", "texts", multiple=True, help="A text; repeat for more.")(from_file(command))
