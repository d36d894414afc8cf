"""``siglip-onnx calibrate``: probabilities that are frequencies, fitted to labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ..errors import DataError
from ..evaluate.datasets import DataOptions, LabeledImages, names_images, open_data
from ..evaluate.metrics import one_hot
from ..evaluate.protocols import PROTOCOLS
from ..evaluate.store import Embedded, Store, embed_images, fingerprint
from ..head import CALIBRATION_FORMAT
from ..heads.calibrate import LANGUAGE, SCOPES, Fit, Report, check_truth, cross_validate, score_labels, to_calibration
from ..heads.calibrate import calibrate as fit_calibration
from ..hub.loading import load
from ..model import SigLIP
from ..system.files import write_atomic
from ..system.json_files import to_json
from ..system.threads import available_workers
from .help import Command
from .options import PATH, json_option, named_model, refuse_given, template_option, variant_option
from .output import SOME_FAILED, format_percent, format_table, print_json, show, warn, writing
from .outputs import check_output, json_kind, overwrite_option
from .progress import AUTO, ProgressLine

CALIBRATION = json_kind("a calibration", CALIBRATION_FORMAT)
_SHOWN_LABELS = 10  # those with the largest errors before
_MAX_PAIRS = 100_000_000  # of image and label: 5 bytes each


@click.command(
    "calibrate",
    cls=Command,
    examples=(
        "siglip-onnx calibrate MODEL photos_by_class -o calibration.json",
        "siglip-onnx calibrate MODEL labels.csv --scale --per label -o calibration.json",
    ),
)
@named_model(following="data")
@click.argument("data", type=PATH, required=False, metavar="DATA")
@click.option("--labels", multiple=True, metavar="[LANGUAGE=]FILE",
              help="Words for the classes, see evaluate; repeat for several languages: --labels ja=FILE.")  # fmt: skip
@template_option
@click.option("--images", type=PATH, metavar="FOLDER", help="Folder of the images that DATA names. Default: its own.")
@click.option("--multi-label", is_flag=True, help="Every image may have any number of labels.")
@click.option("--per", "scope", type=click.Choice(SCOPES), default="all", show_default=True,
              help="Fit one bias for all texts, one of each language, or one of each label.")  # fmt: skip
@click.option("--scale", "fit_scale", is_flag=True, help="Fit the scale (temperature) too.")
@click.option("--limit", type=click.IntRange(1), help="Use at most this number of images, evenly spaced.")
@variant_option
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE.json", help="The calibration to write.")
@overwrite_option
@json_option
@click.pass_context
def calibrate_(
    context: click.Context,
    model: str,
    data: Path,
    labels: tuple[str, ...],
    templates: tuple[str, ...],
    images: Path | None,
    multi_label: bool,
    scope: str,
    fit_scale: bool,
    limit: int | None,
    variant: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fit a model's probabilities to labelled images.

    DATA is labelled images, as for evaluate. The bias is fitted so that of the pairs of image and label with a
    probability of .5 half are true. The result is used by the option --calibration of classify, compile, web and
    evaluate, and by siglip_onnx.load(calibration=...). The errors shown are cross-validated: each image is judged by a
    calibration that was fitted without it.
    """
    label_files = [_split_language(argument) for argument in labels]
    files = [file for _, file in label_files]
    check_output(out, CALIBRATION, [data, images, model, *files], overwrite=overwrite)
    check_images_option([data])
    sets = read_label_sets(data, label_files, DataOptions(images=images, multi_label=multi_label), limit)
    check_pairs(next(iter(sets.values())), len(sets), _MAX_PAIRS, "give --limit for fewer images")
    if scope == LANGUAGE and sets.keys() == {""}:
        refuse_given(("scope",), "--per language is for labels of several languages: --labels en=FILE --labels ja=FILE")
    for each in sets.values():
        check_output(out, CALIBRATION, (sample.path for sample in each.samples), overwrite=overwrite)
    first = next(iter(sets.values()))
    check_truth(one_hot([sample.labels for sample in first.samples], len(first.texts)))
    opened = load(model, variant=variant, workers=available_workers(), isolate_decoding=True)
    # Labels come first: one that cannot be used must not waste a pass over the images.
    encoded = {language: opened.encode_labels(each.texts, template=list(templates)) for language, each in sets.items()}
    embedded = embed_labelled(opened, first)
    truth = one_hot([first.samples[row].labels for row in embedded.rows], len(first.texts))
    vectors = embedded.embeddings[opened.variant]
    scored = [score_labels(opened, vectors, each.texts, encoded[language], language) for language, each in sets.items()]
    start = Fit(1.0, opened.bundle.manifest.head["logit_bias"])
    report = cross_validate(scored, truth, start, scope=scope, fit_scale=fit_scale)
    fit = fit_calibration(scored, truth, start, scope=scope, fit_scale=fit_scale)
    facts = {
        "path": str(data),
        "num_images": len(embedded.rows),
        "num_labels": len(first.texts),
        "languages": [language for language in sets if language],
        "images_sha256": fingerprint([f"{sample.name}\t{sample.stamp}" for sample in first.samples]),
        "templates": list(templates),
        "per": scope,
        "cross_validated": [asdict(quality) for quality in report.sets],
    }
    document = {"format": CALIBRATION_FORMAT} | asdict(to_calibration(opened, fit, facts))
    check_output(out, CALIBRATION, [], overwrite=overwrite)  # it may have appeared meanwhile
    with writing(out):
        write_atomic(out, (to_json(document, indent=2) + "\n").encode())
    for row, error in embedded.errors.items():
        warn(describe_left_out(first.samples[row].name, error))
    if as_json:
        print_json({"out": str(out), "labels": [asdict(label) for label in report.labels]} | document)
    else:
        _print(report, fit, start, out)
    context.exit(SOME_FAILED if embedded.errors else 0)


def read_label_sets(
    data: Path, labels: Sequence[tuple[str, Path]], options: DataOptions, limit: int | None = None
) -> dict[str, LabeledImages]:
    """Return the labelled images once per file of labels, by its language, which may be empty.

    A class has the same number in each, that of the first file.

    Raises:
        DataError: they are captions, or the files have different numbers of classes.
    """
    sets = {}
    for language, file in labels or (("", None),):
        opened = open_data(data, replace(options, labels=file))
        if not isinstance(opened, LabeledImages):
            raise DataError(f"{data} has captions; expected images with labels, for example a folder per class.")
        if language in sets:
            raise DataError(f"--labels names the language {language!r} twice; give each its own: --labels ja=FILE.")
        warn_about_repeated(opened.texts)
        sets[language] = opened.take(limit)
    sizes = {language: len(each.texts) for language, each in sets.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"The files of --labels have different numbers of classes: {sizes}; expected the same classes.")
    first = next(iter(sets.values()))
    return {language: each.numbered_like(first) for language, each in sets.items()}


def check_pairs(data: LabeledImages, num_languages: int, most: int, remedy: str) -> None:
    """Refuse images times labels, in each language, that would not fit into memory.

    Raises:
        DataError: there are more than ``most``.
    """
    images, labels = len(data.samples), len(data.texts)
    pairs = images * labels * num_languages
    if pairs > most:
        languages = f" in {num_languages} languages" if num_languages > 1 else ""
        raise DataError(
            f"{data.path} has {images:,} images and {labels:,} labels{languages}: {pairs:,} pairs, of which at most "
            f"{most:,} are compared; {remedy}."
        )


def _split_language(argument: str) -> tuple[str, Path]:
    """Return language and file of ``[LANGUAGE=]FILE``; the name of a file that exists may contain ``=``."""
    language, separator, file = argument.partition("=")
    return ("", Path(argument)) if not separator or Path(argument).is_file() else (language, Path(file))


def check_images_option(data_sets: Sequence[Path]) -> None:
    """Refuse ``--images`` for data sets that hold their images."""
    if not any(map(names_images, data_sets)):
        refuse_given(("images",), f"{' and '.join(map(str, data_sets))} holds the images, and does not name files")


def warn_about_repeated(texts: Sequence[str]) -> None:
    """Warn of classes with the same words, which no model can tell apart."""
    repeated = [text for text, count in Counter(texts).items() if count > 1]
    if repeated:
        warn(f"several classes have the words {repeated[0]!r}, so that none of them is ever right; see --labels.")


def describe_left_out(name: str, error: object) -> str:
    """Return the line about an image that cannot be read, which names it once."""
    return f"left out: {error}" if str(error).startswith(name) else f"left out: {name}: {error}"


def embed_labelled(model: SigLIP, data: LabeledImages) -> Embedded:
    """Embed the images of a set with one model, with progress on a terminal."""

    def prepare(_model: SigLIP, image: Any) -> Any:
        return PROTOCOLS["model"].prepare(image, model.vision.preprocess, labelled=True)

    progress = ProgressLine(AUTO)
    models = {model.variant: model}
    embedded = embed_images(models, data.samples, prepare, Store(None, {}), progress, available_workers())
    progress.finish()
    return embedded


def _print(report: Report, fit: Fit, start: Fit, out: Path) -> None:
    rows = [
        [quality.language or "all labels", *(f"{value:.3%}" for value in (quality.before, quality.after)),
         *(f"{value:.2%}" for value in (quality.before_top1, quality.after_top1))]
        for quality in report.sets
    ]  # fmt: skip
    header = ("calibration error", "pairs before", "after", "best label before", "after")
    click.echo(format_table(header, rows))
    worst = sorted(report.labels, key=lambda label: -label.before)[:_SHOWN_LABELS]
    lines = [
        [label.text, str(label.images), f"{label.before:.3%}", f"{label.after:.3%}",
         *("" if value is None else format_percent(value)
           for value in (label.threshold_before, label.threshold_after))]
        for label in worst
    ]  # fmt: skip
    columns = ("label", "images", "error before", "after", "best threshold before", "after")
    click.echo("\n" + format_table(columns, lines))
    scale = "" if fit.scale == 1 else f", scale {fit.scale:.4g}"
    show("")
    show(f"{out}: bias {start.bias:.3f} -> {fit.bias:.3f}{scale}, biases of {len(fit.texts)} texts")
