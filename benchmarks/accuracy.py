"""Measure zero-shot accuracy of any backend on labeled images: top-1 and top-5, and the loss against fp32.

To evaluate only this package's variants, use `siglip-onnx evaluate`, which knows more data sets, protocols and metrics.

    python benchmarks/accuracy.py DATASET --checkpoint CHECKPOINT --template "a photo of a {}."
    python benchmarks/accuracy.py DATASET --model BUNDLE

DATASET holds a folder per class, named after the class with underscores for spaces; --labels FILE gives other words,
one line `folder<TAB>text` each. ImageNet-V2 (matched-frequency, 10,000 images in folders 0 to 999) needs such a file
with ImageNet's class names. The loss is the difference of paired answers, with a bootstrapped interval of 95 %.
With --checkpoint the reference is PyTorch fp32, peers can be measured too, and exports are kept in --work as those of
benchmarks/suite.py; with --model it is the bundle's fp32 variant, and only this package is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
from catalog import log, open_catalog
from fresh_process import in_fresh_process
from numpy.typing import NDArray
from result_files import write_results

from siglip_onnx.bench.backend import Backend, Configuration
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.run import PYTORCH_FP32, engine_configuration, engine_name
from siglip_onnx.bench.tables import markdown
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.evaluate.datasets import DataOptions, LabeledImages, open_data
from siglip_onnx.evaluate.metrics import bootstrap_mean, ranks_of
from siglip_onnx.head import Floats, average_unit, l2_normalize
from siglip_onnx.hub.loading import find_model
from siglip_onnx.system.threads import available_threads
from siglip_onnx.text.templates import fill_templates

MOST_CALIBRATION = 64


@click.command(help=__doc__)
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="To measure PyTorch and peers too.")
@click.option("--model", help="An exported model, or demo: only its variants.")
@click.option("--labels", type=click.Path(path_type=Path, exists=True), help="Lines of folder<TAB>text.")
@click.option("--template", "templates", multiple=True, default=["{}"], show_default=True, help="Repeat to average.")
@click.option(
    "--only", multiple=True, default=["siglip_onnx"], show_default=True, help="Part of names; repeat for more."
)
@click.option("--name", default="accuracy", show_default=True, help="Name of the folder in --work.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
@click.option("--threads", type=click.IntRange(1, 512), default=available_threads)
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
def main(
    dataset: Path,
    checkpoint: Path | None,
    model: str | None,
    labels: Path | None,
    templates: tuple[str, ...],
    only: tuple[str, ...],
    name: str,
    work: Path,
    threads: int,
    out: Path | None,
) -> None:
    """Measure every configuration and print the table."""
    labeled = read_dataset(dataset, labels)
    calibration = [dataset / sample.name for sample in labeled.take(MOST_CALIBRATION).samples]
    if (checkpoint is None) == (model is None):
        raise click.UsageError("Give either --checkpoint or --model.")
    if checkpoint is not None:
        catalog = open_catalog(work / name, checkpoint, calibration, threads, only)
        configurations, absent, reference = catalog.configurations, catalog.absent, PYTORCH_FP32
    else:
        configurations, absent, reference = variants_of(str(model), threads), {}, engine_name("fp32")
    correct = {}
    for configuration in configurations:
        correct[configuration.name] = in_fresh_process(answer, configuration, labeled, templates)
        log(f"{configuration.name}: top-1 {correct[configuration.name][0].mean():.4f}")
    document = {
        "dataset": dataset.name, "images": len(labeled.samples), "classes": len(labeled.texts), "templates": templates,
        "reference": reference if reference in correct else None, "machine": describe_machine(),
        "rows": describe(correct, correct.get(reference)), "absent": absent,
    }  # fmt: skip
    if out is not None:
        write_results(out, document)
    click.echo(accuracy_table(document))


def variants_of(model: str, threads: int) -> list[Configuration]:
    """Return every variant of an exported model."""
    bundle = open_bundle(find_model(model))
    return [engine_configuration(bundle, variant, threads) for variant in bundle.manifest.variants]


def read_dataset(folder: Path, labels: Path | None = None) -> LabeledImages:
    """Return the images of a folder with one folder per class."""
    data = open_data(folder, DataOptions(labels=labels))
    if not isinstance(data, LabeledImages) or data.multi_label or not folder.is_dir():
        raise click.UsageError(f"{folder} is not a folder with a folder per class.")
    return data


def answer(configuration: Configuration, dataset: LabeledImages, templates: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each image's class is the first, and whether it is among the first five: ``(2, N)``."""
    module: Any = import_module(configuration.backend)
    backend: Backend = module.load(configuration)
    texts = embed_classes(backend, dataset.texts, templates)
    logits = np.array([
        backend.head(backend.vision(backend.preprocess(backend.decode(dataset.path / sample.name))), texts)[0]
        for sample in dataset.samples
    ])  # fmt: skip
    if not np.isfinite(logits).all():
        raise BenchmarkError(f"{configuration.name} returned NaN or infinite logits; expected finite ones.")
    ranks = ranks_of(logits, np.array([sample.labels[0] for sample in dataset.samples]))
    return np.array([ranks < 1, ranks < 5])


def embed_classes(backend: Backend, texts: Sequence[str], templates: Sequence[str]) -> Floats:
    """Return a unit embedding per class, the mean over templates: f32 ``(M, D)``."""
    rows = [
        [l2_normalize(backend.text(backend.tokenize(prompt)))[0] for prompt in prompts]
        for prompts in fill_templates(list(templates), list(texts))
    ]
    return average_unit(np.array(rows, np.float32))


def describe(correct: Mapping[str, NDArray[np.bool_]], reference: NDArray[np.bool_] | None) -> list[dict[str, Any]]:
    """Return accuracy and loss of every configuration, shares from 0 to 1; no loss without a reference."""
    return [
        {"name": name, "top1": float(hits[0].mean()), "top5": float(hits[1].mean())} | losses(hits, reference)
        for name, hits in correct.items()
    ]


def losses(hits: NDArray[np.bool_], reference: NDArray[np.bool_] | None) -> dict[str, Any]:
    """Return how much less often a configuration is right than the reference, on the same images."""
    if reference is None:
        return {}
    differences = reference.astype(np.float64) - hits
    return {
        f"loss_{kind}": asdict(bootstrap_mean(row)) for kind, row in zip(("top1", "top5"), differences, strict=True)
    }


def accuracy_table(document: Mapping[str, Any]) -> str:
    """Return the result as Markdown, in percent."""
    rows = [
        [row["name"], f"{row['top1']:.2%}", f"{row['top5']:.2%}",
         *(describe_loss(row[loss]) if loss in row else "not measured" for loss in ("loss_top1", "loss_top5"))]
        for row in document["rows"]
    ]  # fmt: skip
    return markdown((("", "top-1", "top-5", f"top-1 loss to {document['reference'] or 'fp32'}", "top-5 loss"), rows))


def describe_loss(loss: Mapping[str, float]) -> str:
    """Return a loss with its interval, in percent."""
    return f"{loss['value']:.2%} ({loss['low']:.2%} to {loss['high']:.2%})"


if __name__ == "__main__":
    main()
