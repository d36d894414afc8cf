"""Measure zero-shot accuracy on labeled images: top-1 and top-5 of any variant and backend, and the loss against fp32.

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
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
from catalog import IMAGE_SUFFIXES, log, open_catalog
from fresh_process import in_fresh_process
from numpy.typing import NDArray
from result_files import write_results

from siglip_onnx.bench.backend import Backend, Configuration
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.run import PYTORCH_FP32, engine_configuration, engine_name
from siglip_onnx.bench.statistics import CONFIDENCE, Ratio
from siglip_onnx.bench.tables import markdown
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.head import Floats, average_unit, l2_normalize
from siglip_onnx.hub.loading import find_model
from siglip_onnx.system.threads import available_threads
from siglip_onnx.text.templates import fill_templates

MOST_CALIBRATION, RESAMPLES = 64, 2000


@dataclass(frozen=True)
class Dataset:
    """Images, the class of each, and the text of each class."""

    paths: list[Path]
    classes: list[int]
    texts: list[str]


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
    labeled = read_dataset(dataset, read_labels(labels))
    calibration = labeled.paths[:: max(1, len(labeled.paths) // MOST_CALIBRATION)][:MOST_CALIBRATION]
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
        "dataset": dataset.name, "images": len(labeled.paths), "classes": len(labeled.texts), "templates": templates,
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


def read_labels(path: Path | None) -> dict[str, str]:
    """Return the texts of folders whose text is not their name."""
    if path is None:
        return {}
    lines = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    malformed = next((line for line in lines if len(line) != 2), None)
    if malformed is not None:
        raise click.UsageError(f"{path} has the line {malformed[0]!r}; expected folder<TAB>text.")
    return {folder.strip(): text.strip() for folder, text in lines}


def read_dataset(folder: Path, labels: Mapping[str, str]) -> Dataset:
    """Return the images of a folder with one folder per class."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    images = [
        (path, number)
        for number, class_folder in enumerate(folders)
        for path in sorted(class_folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if len(folders) < 2 or not images:
        raise click.UsageError(
            f"{folder} holds {len(folders)} folders with {len(images)} images; expected at least two with images."
        )
    texts = [labels.get(class_folder.name, class_folder.name.replace("_", " ")) for class_folder in folders]
    return Dataset([path for path, _ in images], [number for _, number in images], texts)


def answer(configuration: Configuration, dataset: Dataset, templates: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each image's class is the first, and whether it is among the first five: ``(2, N)``."""
    module: Any = import_module(configuration.backend)
    backend: Backend = module.load(configuration)
    texts = embed_classes(backend, dataset.texts, templates)
    ranks = [
        rank_of(backend.head(backend.vision(backend.preprocess(backend.decode(path))), texts)[0], right)
        for path, right in zip(dataset.paths, dataset.classes, strict=True)
    ]
    return np.array([[rank < 1 for rank in ranks], [rank < 5 for rank in ranks]])


def embed_classes(backend: Backend, texts: Sequence[str], templates: Sequence[str]) -> Floats:
    """Return a unit embedding per class, the mean over templates: f32 ``(M, D)``."""
    rows = [
        [l2_normalize(backend.text(backend.tokenize(prompt)))[0] for prompt in prompts]
        for prompts in fill_templates(list(templates), list(texts))
    ]
    return average_unit(np.array(rows, np.float32))


def rank_of(logits: Floats, right: int) -> int:
    """Return how many classes rank before the right one; ties count as before it."""
    if not np.isfinite(logits).all():
        raise BenchmarkError("A configuration returned NaN or infinite logits; expected finite ones.")
    return int((logits >= logits[right]).sum()) - 1


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


def bootstrap_mean(values: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """Return the mean of ``values`` ``(N,)`` with its interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(values.mean()), float(low), float(high))


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
