"""Options that several commands share, as decorators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import click
from click.core import ParameterSource

from .. import demo
from ..classifier import make_model
from ..errors import SiglipOnnxError
from ..hub.choice import apply_choice
from ..hub.loading import open_model
from ..image.convert import parse_background
from ..model import SigLIP
from ..options import MAX_NUM_PATCHES, MOST_PIXELS, WHITE, ImageLimits, RuntimeOptions
from ..system.threads import MAX_THREADS, available_workers
from .completion import ModelName, VariantName
from .help import MODEL, OUTPUT, section
from .output import report, report_demo_model

MODEL_VARIABLE = "SIGLIP_ONNX_MODEL"
MANY_INPUTS = 4


class _Path(click.Path):
    """A path; an empty text, which a shell makes of a variable without a value, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
NAME = _Path()  # of a file or a folder, or a URL, a pattern, @LIST or -
variant_option = click.option(
    "--variant", type=VariantName(), metavar="NAME", help="Variant: int8, fp32, ... Default: int8 if present."
)
provider_option = click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="onnxruntime execution provider, repeat for more, in order of preference; or OpenVINO, with the extra "
    "[openvino]. Default: CPUExecutionProvider.",
)
json_option = section(OUTPUT, click.option("--json", "as_json", is_flag=True, help="Print one JSON document."))
calibration_option = click.option(
    "--calibration", type=PATH, metavar="FILE", help="Use the scale and biases that siglip-onnx calibrate wrote."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    help="Number of CPU threads. Default: all that this process may use.",
)
fast_decode_option = click.option(
    "--fast-decode",
    is_flag=True,
    help="Decode large JPEGs at a fraction of their size: faster, but not exactly the same pixels.",
)


def refuse_given(names: Collection[str], why: str) -> None:
    """Refuse options that would have no effect; those with default values, or values of variables, are left alone.

    Args:
        names: the parameters of the current command that have no effect.
        why: the reason, a sentence without its period.

    Raises:
        click.UsageError: one of them was given on the command line.
    """
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{why}; remove {', '.join(given)}.")


class FiniteRange(click.FloatRange):
    """A number between two bounds; not ``nan``, which Python reads as a number, and which passes all comparisons."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; everything else is a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            raise click.BadParameter(f"{value!r} is not a finite number.", ctx, param)
        return number


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
    isolate_decoding: bool | None
    offline: bool

    @property
    def image_limits(self) -> ImageLimits:
        """Limits of the images."""
        if self.max_megapixels is None:
            return ImageLimits()
        return ImageLimits(max_pixels=round(self.max_megapixels * 1e6))

    def runtime_options(self, label_cache: Path | None = None, *, num_inputs: int | None = None) -> RuntimeOptions:
        """Return the options for this number of inputs, if it is known: by default, one worker per CPU from four on."""
        workers, threads = self.workers, self.threads
        if workers is None and num_inputs is not None and num_inputs >= MANY_INPUTS:
            workers, threads = threads or available_workers(), None
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
            isolate_decoding=self.isolate_decoding,
            few_runs=num_inputs is not None and num_inputs < MANY_INPUTS,
        )

    def open(
        self, label_cache: Path | None = None, *, num_inputs: int | None = None, calibration: Path | None = None
    ) -> SigLIP:  # fmt: skip
        """Open the model, or the demo model if none was named, which is reported."""
        options = replace(self.runtime_options(label_cache, num_inputs=num_inputs), calibration=calibration)
        bundle = open_model(self.model or demo.NAME, options.variant, offline=self.offline, report=report)
        auto_workers = options.workers > 1 and self.workers is None and self.threads is None
        options = apply_choice(bundle, options, auto_workers=auto_workers)
        model = make_model(bundle, options)
        if not self.model:
            report_demo_model()
        return model


MODEL_OPTIONS = frozenset(field.name for field in fields(ModelChoice))
DECODING_OPTIONS = frozenset(("fast_decode", "max_megapixels", "allow_truncated", "background", "isolate_decoding"))


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


model_options = section(MODEL, collect(ModelChoice, "choice", [
    click.option("--model", type=ModelName(), envvar=MODEL_VARIABLE, metavar="MODEL",
                 help="Folder of an exported model, its name on the Hugging Face Hub, or, for classify, a "
                      "compiled classifier. Default: SIGLIP_ONNX_MODEL, or else the demo model."),
    variant_option,
    provider_option,
    threads_option,
    click.option("--workers", type=click.IntRange(1, MAX_THREADS), metavar="N",
                 help="Number of images or texts processed at the same time, each by one thread. Default: 1 "
                      "for up to three inputs (lowest latency), one per CPU for more (highest throughput)."),
    fast_decode_option,
    click.option("--max-num-patches", type=click.IntRange(1, MAX_NUM_PATCHES), metavar="N",
                 help="NaFlex models: maximum number of patches of an image. Default: that of the "
                      "checkpoint."),
    click.option("--max-megapixels", type=FiniteRange(0.000001, MOST_PIXELS / 1e6), metavar="N",
                 help="Refuse larger images, before decoding them; with --fast-decode, the pixels of the reduced image "
                      "count, and its file may have four times as many. Default: 89.5."),
    click.option("--allow-truncated", is_flag=True,
                 help="Accept images whose files end early, and decode what is there."),
    click.option("--background", metavar="COLOR", callback=check_background,
                 help="Color behind transparent images: a name or #rrggbb. drop: ignore transparency, and cut levels "
                      "beyond 8 bits, as transformers 4.57 does. Default: white."),
    click.option("--isolate-decoding/--no-isolate-decoding", default=None,
                 help="Decode images in processes of their own, under limits of memory and time, which images from "
                      "strangers may need. Default: those of folders, lists and patterns, and formats other than JPEG, "
                      "PNG and WebP."),
    click.option("--offline", is_flag=True,
                 help="Do not use the network, even if the model is not in the cache."),
]))  # fmt: skip
sample_texts_option = click.option(
    "--texts-file", "--texts", "texts_file", cls=RenamedOption, type=PATH, metavar="FILE",
    help="UTF-8 file with one text per line. Default: built-in texts.",
)  # fmt: skip


def named_model(default: str | None = None, *, following: str | None = None) -> Callable[[Any], Any]:
    """Return a decorator that adds ``--model``, which may also be given as the argument MODEL, with one value.

    ``following`` is the name of a path that is the next argument, and the only one where ``--model`` is given.
    """
    help_text = f"The same as MODEL. Default: {MODEL_VARIABLE}{f', or else {default}' if default else ''}."

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_model(*args: Any, model_argument: str | None, model_option: str | None, **values: Any) -> None:
            source = click.get_current_context().get_parameter_source("model_option")
            has_option = source is ParameterSource.COMMANDLINE
            if following and values[following] is None and model_argument and (has_option or model_option):
                values[following], model_argument = Path(model_argument), None
            if following and values[following] is None:
                raise click.UsageError(f"Missing argument '{following.upper()}'.")
            if model_argument and has_option:
                raise click.UsageError("There are two models, one of them with --model; give one.")
            model = model_argument or model_option or default
            if not model:
                raise click.UsageError("Missing argument 'MODEL', the folder or the name of a model.")
            command(*args, model=model, **values)

        option = click.option("--model", "model_option", type=ModelName(), envvar=MODEL_VARIABLE, metavar="MODEL",
                              help=help_text)  # fmt: skip
        metavar = "[MODEL]" if default else "MODEL"
        argument = click.argument("model_argument", type=ModelName(), required=False, metavar=metavar)
        return cast(Callable[..., None], argument(section(MODEL, option)(with_model)))

    return decorate


template_option = click.option(
    "--template", "templates", multiple=True, default=["{}"], show_default=True,
    help='Sentence into which each text is put: "a photo of {}". Repeat to use the mean of several sentences.',
)  # fmt: skip


def text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--text`` and ``--texts-file``."""
    from_file = click.option("--texts-file", type=PATH, metavar="FILE", help="UTF-8 file with one text per line.")
    return click.option("--text", "texts", multiple=True, help="A text; repeat for more.")(from_file(command))
