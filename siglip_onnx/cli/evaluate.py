"""``siglip-onnx evaluate``: the accuracy of a model on labelled images or captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..config import TOWERS
from ..errors import SiglipOnnxError
from ..evaluate.datasets import DataOptions, LabeledImages, open_data
from ..evaluate.protocols import PROTOCOLS
from ..evaluate.published import BENCHMARKS
from ..evaluate.report import write_report
from ..evaluate.run import Evaluation
from ..evaluate.run import evaluate as evaluate_variants
from ..hub.loading import open_model
from ..model import SigLIP
from ..options import RuntimeOptions
from ..system.threads import MAX_THREADS, available_workers
from .calibrate import check_images_option, warn_about_repeated
from .help import OUTPUT, Command, section
from .inputs import read_texts
from .options import (
    PATH,
    calibration_option,
    json_option,
    named_model,
    provider_option,
    refuse_given,
    template_option,
)
from .output import SOME_FAILED, format_count, format_table, print_json, report, warn
from .progress import AUTO, OFF, PLAIN, ProgressLine

OF_LABELS = ("labels", "multi_label", "templates", "templates_file", "calibration")  # options that captions do not need
_SHOWN_CLASSES = 5  # of the classes with the lowest scores


@click.command(
    "evaluate",
    cls=Command,
    examples=(
        "siglip-onnx evaluate MODEL photos_by_class",
        "siglip-onnx evaluate MODEL captions.csv --variant int8 --out results",
    ),
)
@named_model(following="data")
@click.argument("data", type=PATH, required=False, metavar="DATA")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="model", show_default=True,
              help="How images and texts are prepared; see docs/evaluate.md.")  # fmt: skip
@click.option("--benchmark", type=click.Choice(BENCHMARKS),
              help="What DATA is: show the published scores of the checkpoint and protocol beside.")  # fmt: skip
@click.option("--labels", type=PATH, metavar="FILE",
              help="Words for the classes: one class per line, or name<TAB>words.")  # fmt: skip
@template_option
@click.option("--templates-file", type=PATH, metavar="FILE", help="UTF-8 file with one template per line.")
@click.option("--images", type=PATH, metavar="FOLDER", help="Folder of the images that DATA names. Default: its own.")
@click.option("--split", default="test", show_default=True, help="Split of a Karpathy JSON file.")
@click.option("--language", "languages", multiple=True, metavar="NAME",
              help="Captions: use only this language; repeat for more.")  # fmt: skip
@click.option("--multi-label", is_flag=True, help="Every image may have any number of labels.")
@click.option("--limit", type=click.IntRange(1), help="Use at most this number of images, evenly spaced.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="Repeat for more. Default: all variants.")
@provider_option
@click.option("--workers", type=click.IntRange(1, MAX_THREADS),
              help="Images processed at the same time, each by one thread. Default: one per CPU.")  # fmt: skip
@calibration_option
@click.option("--allow-truncated", is_flag=True, help="Accept images whose files end early.")
@section(
    OUTPUT,
    click.option("-o", "--out", type=PATH, metavar="FOLDER",
                 help="Write all results here; the same command resumes after an interruption."),
    click.option("--progress", "progress_mode", type=click.Choice([AUTO, PLAIN, OFF]), default=AUTO, show_default=True,
                 help="auto shows progress on a terminal only; plain prints lines."),
)  # fmt: skip
@json_option
@click.pass_context
def evaluate_(
    context: click.Context,
    model: str,
    data: Path,
    protocol: str,
    benchmark: str | None,
    labels: Path | None,
    templates: tuple[str, ...],
    templates_file: Path | None,
    images: Path | None,
    split: str,
    languages: tuple[str, ...],
    multi_label: bool,
    limit: int | None,
    variants: tuple[str, ...],
    providers: tuple[str, ...],
    workers: int | None,
    calibration: Path | None,
    allow_truncated: bool,
    out: Path | None,
    progress_mode: str,
    as_json: bool,
) -> None:
    """Measure the accuracy of a model on labelled images or captions.

    DATA is a folder with a folder per class, a .csv or .jsonl of paths with labels or captions, the captions files of
    COCO (Karpathy) and Crossmodal-3600, webdataset archives (.tar), or Parquet; docs/evaluate.md describes them. All
    variants run in one pass, in which each image is decoded once.
    """
    if out is not None:
        _check_out(out, data, [images, labels, templates_file, calibration])
    check_images_option([data])
    if data.suffix != ".json" or data.is_dir():
        refuse_given(("split",), f"{data} is not a Karpathy JSON file, which alone has splits")
    if limit is not None:
        refuse_given(("benchmark",), "Published scores are those of all images; --limit takes some")
    opened = open_data(data, DataOptions(labels, images, split, multi_label))
    if isinstance(opened, LabeledImages):
        warn_about_repeated(opened.texts)
    else:
        refuse_given(OF_LABELS, f"{data} has captions, not labels")
    if languages:
        opened = opened.only(languages)
    options = RuntimeOptions(
        providers=providers or None,
        workers=workers or available_workers(),
        allow_truncated=allow_truncated,
        calibration=calibration,
        isolate_decoding=True,
    )
    models = _open_variants(model, variants, options)
    given = [*(() if templates_file and templates == ("{}",) else templates), *read_texts([], templates_file)]
    progress = ProgressLine(progress_mode)
    evaluation = evaluate_variants(
        models, opened, PROTOCOLS[protocol], templates=given, benchmark=benchmark, limit=limit,
        folder=out, progress=progress, workers=workers or available_workers(),
    )  # fmt: skip
    progress.finish()
    for message in evaluation.errors.values():
        warn(message)
    if out is not None:
        for path in write_report(evaluation, out):
            report(f"wrote {path}")
    document = evaluation.to_document()
    if as_json:
        print_json(document)
    else:
        _print(evaluation, document)
    context.exit(SOME_FAILED if evaluation.errors else 0)


def _check_out(out: Path, data: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse a folder for the results that holds an input, or lies in the data set, of which it would become a class.

    Raises:
        SiglipOnnxError: it does.
    """
    place = out.resolve()
    if place.is_relative_to(data.resolve()):
        raise SiglipOnnxError(f"{out} lies in {data}, the data set; choose another folder for --out.")
    for given in (data, *inputs):
        if given is not None and given.resolve().is_relative_to(place):
            raise SiglipOnnxError(f"{given} lies in {out}, where results are written; choose another folder for --out.")


def _open_variants(model: str, variants: Sequence[str], options: RuntimeOptions) -> dict[str, SigLIP]:
    """Open the variants, all of the bundle if none is named, fp32 first."""
    bundle = open_model(model, variants[0] if variants else None, report=report)
    for tower in TOWERS:
        bundle.manifest.check_tower(tower)
    names = variants or sorted(bundle.manifest.variants, key=lambda name: name != "fp32")
    return {name: SigLIP(bundle, replace(options, variant=name)) for name in dict.fromkeys(names)}


def _print(evaluation: Evaluation, document: dict[str, Any]) -> None:
    names = list(evaluation.scores)
    first = document["variants"][names[0]]["scores"]
    others = [name for name in names if evaluation.reference is not None and name != evaluation.reference]
    rows = [
        [metric, *(_score(document["variants"][name]["scores"][metric]) for name in names),
         *(_difference(document["variants"][name]["difference"][metric]) for name in others)]
        for metric in first
    ]  # fmt: skip
    if others:
        agreements = [f"{document['variants'][name]['agreement']:.2%}" for name in others]
        rows.append([f"agreement with {evaluation.reference}", *[""] * len(names), *agreements])
    size = (
        f", {format_count(len(evaluation.classes), 'class').replace('classs', 'classes')}" if evaluation.classes else ""
    )
    click.echo(f"{evaluation.task}: {format_count(document['num_images'], 'image')}{size}, protocol "
               f"{document['protocol']['name']}")  # fmt: skip
    click.echo(format_table(["", *names, *(f"{name} - {evaluation.reference}" for name in others)], rows))
    for metric, score in document["published"].items():
        measured = ", ".join(f"{name} {value:.2f}" for name, value in score["measured"].items())
        click.echo(f"published {metric}: {score['percent']:.2f} ({score['source']}); measured: {measured}")
    _print_lowest(evaluation)


def _score(score: dict[str, float]) -> str:
    value = f"{score['value']:.2%}"
    return f"{value} ({100 * score['low']:.1f}-{100 * score['high']:.1f})" if "low" in score else value


def _difference(score: dict[str, float]) -> str:
    value = f"{100 * score['value']:+.2f}"
    return f"{value} ({100 * score['low']:+.2f} to {100 * score['high']:+.2f})" if "low" in score else value


def _print_lowest(evaluation: Evaluation) -> None:
    """Print the classes with the lowest scores of the first variant."""
    if not evaluation.classes:
        return
    variant, scores = next(iter(evaluation.scores.items()))
    kind, values = next(iter(scores.per_class.items()))
    present = [number for number in range(len(values)) if evaluation.class_sizes[number]]
    lowest = sorted(present, key=lambda number: (values[number], number))[:_SHOWN_CLASSES]
    rows = [
        [evaluation.classes[number], str(evaluation.class_sizes[number]), f"{values[number]:.2%}"] for number in lowest
    ]
    click.echo("\n" + format_table([f"lowest {kind.replace('_', ' ')}", "images", variant], rows))
    empty = len(values) - len(present)
    if empty:
        warn(f"{empty} of {len(values)} classes have no images; they stay possible answers.")
