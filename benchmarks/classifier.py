"""Fine-tune a classifier on drawn shapes, export it, and compare the labels of int8 with those of fp32.

    python benchmarks/classifier.py CHECKPOINT [RESULTS.json]

CHECKPOINT is that of the demo model, which scripts/recover_demo.py writes. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from result_files import ROOT, write_results
from transformers import SiglipForImageClassification, SiglipImageProcessor

from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.manifest import LOGITS
from siglip_onnx.classifier import FineTunedClassifier
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.head import Floats

sys.path.insert(0, str(ROOT / "scripts"))
from demo_world.drawing import draw
from demo_world.lexicon import COLORS, SHAPES
from demo_world.scene import Scene

LABELS = [f"{color.en} {shape.en}" for color in COLORS for shape in SHAPES]
BATCH = 64
Labels = NDArray[np.int64]


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path), required=False)
@click.option("--images", "num_images", default=6000, show_default=True, help="Drawn images to train on.")
@click.option("--epochs", default=4, show_default=True)
@click.option("--test-images", default=2000, show_default=True)
def main(checkpoint: Path, results: Path | None, num_images: int, epochs: int, test_images: int) -> None:
    """Fine-tune, export, compare, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "shapes"
        fine_tune(checkpoint, trained, num_images=num_images, epochs=epochs)
        training = {"images": num_images, "epochs": epochs, "batch_size": BATCH}
        measured = {"training": training, "machine": describe_machine()}
        measured |= measure(trained, Path(folder) / "bundle", num_images=test_images)
    click.echo(json.dumps(measured, indent=2))
    if results is not None:
        write_results(results, measured)


def draw_labeled(num_images: int, seed: int) -> tuple[list[Image.Image], Labels]:
    """Return images of one shape each, of any color on any background, and the numbers of their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(LABELS), size=num_images)
    single = Scene(count=1)
    images = [
        draw(replace(single, color=int(color), shape=int(shape), dark=int(rng.integers(2))), rng)
        for color, shape in (divmod(label, len(SHAPES)) for label in labels.tolist())
    ]
    return images, labels


def fine_tune(checkpoint: Path, out: Path, *, num_images: int, epochs: int) -> None:
    """Write a classifier of shapes and colors, as the Trainer of transformers does."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    model: Any = SiglipForImageClassification.from_pretrained(
        checkpoint,
        id2label=names,
        label2id={label: number for number, label in names.items()},
        problem_type="single_label_classification",
    )
    processor: Any = SiglipImageProcessor.from_pretrained(checkpoint)
    images, labels = draw_labeled(num_images, seed=1)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    targets = torch.from_numpy(labels)
    steps = epochs * (num_images // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(num_images)
        for start in range(0, num_images - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = model(pixel_values=pixels[chosen], labels=targets[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.save_pretrained(out)
    processor.save_pretrained(out)


def measure(checkpoint: Path, out: Path, *, num_images: int) -> dict[str, Any]:
    """Export a classifier, and compare its variants and PyTorch on images that it was not trained on."""
    cards = {variant.name: variant.accuracy.to_document() for variant in export_bundle(checkpoint, out)}
    images, labels = draw_labeled(num_images, seed=2)
    logits = {variant: logits_of(out, variant, images) for variant in cards}
    expected = reference_logits(checkpoint, images)
    return {
        "labels": len(LABELS),
        "images": num_images,
        "pytorch": {"difference_fp32_max": float(np.abs(logits["fp32"] - expected).max())},
        "variants": {
            name: {
                "accuracy": float(np.mean(rows.argmax(axis=1) == labels)),
                "label_agreement": float(np.mean(rows.argmax(axis=1) == logits["fp32"].argmax(axis=1))),
                "logit_error_max": float(np.abs(rows - logits["fp32"]).max()),
                "card": cards[name],
            }
            for name, rows in logits.items()
        },
    }


def logits_of(bundle: Path, variant: str, images: list[Image.Image]) -> Floats:
    """Return the logits f32 ``(N, M)`` of a variant."""
    with FineTunedClassifier(open_bundle(bundle), variant=variant) as model:
        return np.array(list(model.vision.outputs(LOGITS, images)))


@torch.no_grad()
def reference_logits(checkpoint: Path, images: list[Image.Image]) -> Floats:
    """Return the logits f32 ``(N, M)`` of transformers."""
    model: Any = SiglipForImageClassification.from_pretrained(checkpoint).eval()
    processor: Any = SiglipImageProcessor.from_pretrained(checkpoint)
    rows = [model(**processor([image], return_tensors="pt")).logits.numpy() for image in images]
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
