"""``siglip-onnx explain``: where in an image the evidence for texts lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from ..classifier import Classifier, FineTunedClassifier
from ..errors import OptionError
from ..explain import (
    DRAWN_SIDE,
    MAX_PANELS,
    SOFTWARE,
    Explanation,
    Scorer,
    draw_explanation,
    explain_fitted,
    score_with_classifier,
    score_with_model,
)
from ..image.decoder_pool import open_reader
from ..image.preprocess import ShrinkFit
from ..model import SigLIP
from ..system.files import write_atomic
from .help import Command
from .inputs import STDIN, find_missing, is_url, read_texts
from .options import (
    NAME,
    PATH,
    ModelChoice,
    calibration_option,
    model_options,
    refuse_given,
    template_option,
    text_options,
)
from .output import format_percent, format_table, print_json, report, writing
from .outputs import Kind, check_output, overwrite_option

DRAWING = Kind("an image of siglip-onnx explain", b"\x89PNG\r\n\x1a\n", b"tEXtSoftware\0" + SOFTWARE.encode())
_MANY = 100  # runs, for the number of workers
LABELED = ("templates", "calibration")  # options that a classifier has decided already, or `compile`
COMPILED = (*LABELED, "variant", "max_num_patches", "fast_decode")
NO_TEXTS = "There are no texts to explain; give --text TEXT or --texts-file FILE."


@click.command(
    cls=Command,
    examples=(
        'siglip-onnx explain photo.jpg --text "a cat" --text "a dog" -o where.png',
        "siglip-onnx explain photo.jpg --model classifier.onnx --json",
    ),
)
@click.argument("image", type=NAME, metavar="IMAGE")
@text_options
@template_option
@calibration_option
@click.option(
    "--out",
    "-o",
    type=PATH,
    metavar="FILE.png",
    help=f"Draw the places over the image, a panel for each of the best {MAX_PANELS} texts.",
)
@overwrite_option
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with the grid of each text.")
def explain(
    image: str,
    texts: tuple[str, ...],
    texts_file: Path | None,
    templates: tuple[str, ...],
    calibration: Path | None,
    out: Path | None,
    overwrite: bool,
    choice: ModelChoice,
    as_json: bool,
) -> None:
    """Show where in an image the evidence for texts lies.

    Windows of the image are blurred one after another (occlusion), large ones first and small ones where these
    mattered; an effect is by how much the logit falls. That says what the answer depends on; it does not say why, and
    not what the model would answer about the place alone. Where two places show the same evidence, hiding one of them
    changes little.
    """
    names = read_texts(texts, texts_file)
    if out is None:
        refuse_given(("overwrite",), "Without --out no file is written")
    else:
        check_output(out, DRAWING, [image, texts_file, calibration, choice.model], overwrite=overwrite)
        if out.suffix.lower() not in (".png", ""):
            raise click.UsageError(f"--out is {str(out)!r}, but the drawing is a PNG; give a name that ends with .png.")
    if image == STDIN or is_url(image):
        raise click.UsageError(
            f"{image} is {'stdin' if image == STDIN else 'a URL'}; explain takes a file. Save the image first."
        )
    if missing := find_missing([image]):
        raise missing[0]
    model = _open_model(choice, names, calibration)
    draft_size = None if isinstance(model, Classifier) else model.vision.draft_size
    reader = open_reader(choice.runtime_options(), draft_size, size=1)
    scorer = _make_scorer(model, names, templates, choice)
    explanation = explain_fitted(reader.read(image, scorer.fit).rgb, scorer)
    if out is not None:
        # Read again: a large image takes more time, but none of its full size is passed on or kept.
        drawing = draw_explanation(reader.read(image, ShrinkFit(DRAWN_SIDE)).rgb, explanation)
        check_output(out, DRAWING, [], overwrite=overwrite)  # it may have appeared meanwhile
        with writing(out):
            write_atomic(out, drawing)
        if len(explanation.matches) > MAX_PANELS:
            report(f"{out} shows the {MAX_PANELS} texts of the highest logits, of {len(explanation.matches):,}.")
    if as_json:
        name = model.model_name if isinstance(model, Classifier) else model.bundle.manifest.model_name
        print_json({"image": image, "model": name, "variant": model.variant} | explanation.to_document())
    else:
        _print(explanation)


def _open_model(choice: ModelChoice, names: list[str], calibration: Path | None) -> SigLIP | Classifier:
    """Open the model, after checking that there are texts if it needs them, and no options that it has not."""
    if not names and not choice.model:
        raise click.UsageError(NO_TEXTS)
    if choice.model and Path(choice.model).is_file():
        refuse_given(COMPILED, f"{choice.model} is a compiled classifier, which contains its labels and settings")
        return Classifier(Path(choice.model), choice.runtime_options(num_inputs=_MANY))
    model = choice.open(num_inputs=_MANY, calibration=calibration)
    if isinstance(model, FineTunedClassifier):
        refuse_given(LABELED, f"{choice.model} is a classifier, which answers with its own labels")
    elif not names:
        raise click.UsageError(NO_TEXTS)
    return model


def _make_scorer(
    model: SigLIP | Classifier, names: list[str], templates: tuple[str, ...], choice: ModelChoice
) -> Scorer:  # fmt: skip
    with _usage_errors():
        if isinstance(model, Classifier):
            return score_with_classifier(model, names, choice.runtime_options(num_inputs=_MANY).workers)
        return score_with_model(model, names, templates)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Report a label that a classifier does not have as an error of usage."""
    try:
        yield
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def _print(explanation: Explanation) -> None:
    document = explanation.to_document()
    rows = [
        [row["text"], f"{row['logit']:.2f}", format_percent(explanation.matches[number].probability),
         f"{explanation.effects[number].max():.2f}", f"{row['strongest']['x']:.0%}, {row['strongest']['y']:.0%}",
         f"{-explanation.effects[number].min():.2f}"]
        for number, row in enumerate(document["texts"])
    ]  # fmt: skip
    click.echo(format_table(("text", "logit", "probability", "raised by", "at x, y", "lowered by"), rows))
