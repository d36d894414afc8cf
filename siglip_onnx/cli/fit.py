"""``siglip-onnx fit``: a few-shot classifier in one ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..errors import DataError, TextError, printable
from ..evaluate.datasets import DataOptions, LabeledImages
from ..evaluate.metrics import Bools, Doubles, bootstrap_mean, one_hot
from ..heads.few_shot import FewShot, Head, check_held_out, fit_few_shot, hits, precisions
from ..hub.loading import load
from ..model import SigLIP
from ..system.extras import extra
from ..system.threads import available_workers
from .calibrate import check_images_option, check_pairs, describe_left_out, embed_labelled, read_label_sets
from .compile import CLASSIFIER
from .help import Command
from .options import PATH, json_option, named_model, template_option, variant_option
from .output import SOME_FAILED, format_count, format_size, format_table, print_json, warn
from .outputs import check_output, overwrite_option

_MAX_PAIRS = 20_000_000  # of image and label: about 60 bytes each


@click.command(
    cls=Command,
    examples=(
        "siglip-onnx fit MODEL photos_by_class -o classifier.onnx",
        "siglip-onnx fit MODEL photos_by_class --none-of-these other -o classifier.onnx",
    ),
)
@named_model(following="data")
@click.argument("data", type=PATH, required=False, metavar="DATA")
@click.option("--labels", type=PATH, metavar="FILE", help="Words for the classes, see evaluate.")
@template_option
@click.option("--images", type=PATH, metavar="FOLDER", help="Folder of the images that DATA names. Default: its own.")
@click.option("--multi-label", is_flag=True, help="Every image may have any number of labels.")
@click.option("--none-of-these", metavar="LABEL",
              help="Add a label that wins where no other reaches what 95 % of held-out images do.")  # fmt: skip
@click.option("--test", type=PATH, metavar="DATA",
              help="Also measure on these images, which have the same classes. Default: cross-validation.")  # fmt: skip
@variant_option
@click.option("--uint8", is_flag=True, help="Make a graph that takes raw pixels, u8 (N, height, width, 3).")
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE.onnx", help="The classifier to write.")
@overwrite_option
@json_option
@click.pass_context
def fit(
    context: click.Context,
    model: str,
    data: Path,
    labels: Path | None,
    templates: tuple[str, ...],
    images: Path | None,
    multi_label: bool,
    none_of_these: str | None,
    test: Path | None,
    variant: str | None,
    uint8: bool,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fit a few-shot classifier to labelled images.

    DATA is a folder with a folder per class, or other labelled images, as for evaluate; a few images per class suffice.
    A logistic regression on the embeddings starts from the texts of the classes and stays near them, as near as
    cross-validation finds best. The file is a classifier as compile writes it. Needs the extra [export].
    """
    with extra("export", "fit"):
        from ..export.compile import check_compilable, check_labels, write_classifier  # noqa: PLC0415 - an optional extra
    check_output(out, CLASSIFIER, [data, test, images, labels, model], overwrite=overwrite)
    check_images_option([data] if test is None else [data, test])
    options = DataOptions(images=images, multi_label=multi_label)
    label_files = [] if labels is None else [("", labels)]
    chosen = read_label_sets(data, label_files, options)[""]
    check_pairs(chosen, 1, _MAX_PAIRS, "give fewer images of each class; few suffice")
    if none_of_these is not None:
        check_held_out([sample.labels for sample in chosen.samples])
    other = None if test is None else read_label_sets(test, label_files, options)[""]
    if other is not None:
        other = other if len(other.texts) != len(chosen.texts) else other.numbered_like(chosen)
        if other.texts != chosen.texts:
            raise TextError(f"{test} has other classes than {data}; give the same ones, or --labels for both.")
        check_pairs(other, 1, _MAX_PAIRS, "give fewer images")
    samples = [*chosen.samples, *([] if other is None else other.samples)]
    check_output(out, CLASSIFIER, (sample.path for sample in samples), overwrite=overwrite)
    texts = [*chosen.texts, *([] if none_of_these is None else [none_of_these])]
    opened = load(model, variant=variant, workers=available_workers(), isolate_decoding=True)
    check_compilable(opened, len(texts))
    check_labels(texts)
    zero_shot = Head(
        opened.encode_labels(chosen.texts, template=templates).astype(np.float64),
        opened.biases(chosen.texts),
        float(np.exp(opened.logit_scale)),
    )
    vectors, truth, errors = embed_truth(opened, chosen)
    one_label = not chosen.multi_label
    fitted = fit_few_shot(vectors, truth, zero_shot, one_label=one_label)
    weights, biases = fitted.head.weights, fitted.head.biases
    if none_of_these is not None:
        weights = np.concatenate([weights, np.zeros_like(weights[:1])])
        biases = np.append(biases, fitted.none_logit)
    check = partial(check_output, out, CLASSIFIER, [], overwrite=overwrite)  # it may have appeared meanwhile
    scale = fitted.head.scale
    write_classifier(opened, texts, weights, scale, biases, out, templates=templates, uint8=uint8, check=check)
    _warn_of(errors)
    measured = _measure(fitted, truth, vectors, one_label=one_label)
    if other is not None:
        measured, test_errors = _measure_on(opened, other, fitted, out, one_label=one_label)
        _warn_of(test_errors)
        errors |= test_errors
    missing = [text for text, count in zip(chosen.texts, truth.sum(axis=0), strict=True) if not count]
    if missing:
        warn(
            f"{format_count(len(missing), 'label')} without images, which only the text describes: {', '.join(missing)}"
        )
    facts = {
        "out": str(out),
        "labels": texts,
        "images": len(vectors),
        "strength": fitted.strength,
        "text_share": fitted.text_share,
        "size_bytes": out.stat().st_size,
        **measured,
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    context.exit(SOME_FAILED if errors else 0)


def embed_truth(model: SigLIP, data: LabeledImages) -> tuple[Any, Bools, dict[str, str]]:
    """Return the embeddings of the readable images, their labels, and the errors of the others by name."""
    embedded = embed_labelled(model, data)
    truth = one_hot([data.samples[row].labels for row in embedded.rows], len(data.texts))
    errors = {data.samples[row].name: str(error) for row, error in embedded.errors.items()}
    return embedded.embeddings[model.variant], truth, errors


def _measure(fitted: FewShot, truth: Bools, vectors: Any, *, one_label: bool) -> dict[str, Any]:
    if fitted.held_out is None:
        return {"measured_on": None}
    return _compare(fitted.zero_shot.logits(vectors), fitted.held_out, truth, "held-out images", one_label=one_label)


def _measure_on(
    model: SigLIP, data: LabeledImages, fitted: FewShot, out: Path, *, one_label: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the scores on other images, and the errors of those that cannot be read by name.

    Raises:
        DataError: no image can be read, or none of those has a label; the message says that the classifier is there.
    """
    try:
        vectors, truth, errors = embed_truth(model, data)
        before, after = (head.logits(vectors) for head in (fitted.zero_shot, fitted.head))
        return _compare(before, after, truth, str(data.path), one_label=one_label), errors
    except DataError as error:
        raise DataError(f"{out} was written, but not measured: {error}") from error


def _warn_of(errors: Mapping[str, str]) -> None:
    for name, message in errors.items():
        warn(describe_left_out(name, message))


def _compare(zero_shot: Doubles, few_shot: Doubles, truth: Bools, place: str, *, one_label: bool) -> dict[str, Any]:
    """Return the scores of both, and the difference with its paired interval.

    Raises:
        DataError: no image has a label.
    """
    if not truth.any():
        raise DataError(f"Of {place}, no image that can be read has a label; expected at least one.")
    units = [hits(logits, truth) if one_label else precisions(logits, truth) for logits in (zero_shot, few_shot)]
    known = ~np.isnan(units[0].astype(np.float64))
    before, after = (unit[known].astype(np.float64) for unit in units)
    return {
        "measured_on": place,
        "score": "accuracy" if one_label else "mean average precision",
        "zero_shot": asdict(bootstrap_mean(before)),
        "few_shot": asdict(bootstrap_mean(after)),
        "difference": asdict(bootstrap_mean(after - before)),
    }


def _print(facts: dict[str, Any]) -> None:
    if facts["measured_on"] is None:
        warn("no image could be held out, because every class has one image; give --test DATA to measure the accuracy.")
    else:
        rows = [
            [name.replace("_", "-"), f"{score['value']:.1%}", f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"]
            for name in ("zero_shot", "few_shot", "difference")
            for score in [facts[name]]
        ]
        click.echo(format_table((f"on {facts['measured_on']}", facts["score"], "95 % interval"), rows))
    labels, images = format_count(len(facts["labels"]), "label"), format_count(facts["images"], "image")
    size = format_size(facts["size_bytes"])
    click.echo(
        f"{printable(facts['out'])}: {labels} from {images}, strength {facts['strength']:g}, "
        f"text share {facts['text_share']:g}, {size}"
    )
