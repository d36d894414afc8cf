"""Measure what each variant costs and gains, on weights that are kind to quantizers and on weights that are not.

    python benchmarks/quantization.py --images FOLDER --spiece spiece.model

Shapes of google/siglip-base-patch16-256-multilingual with random weights: plain; with outliers of 60x in six channels
of every LayerNorm and of the values, PyTorch's answer unchanged; and with outliers behind GELU, which nothing can fold
away. Cosines are to fp32 on 16 photographs and 16 texts, none of them used to calibrate. Writes
benchmarks/results/quantization.json, of which `make report` makes the README's table.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from checkpoint import make_checkpoint
from fresh import RESULTS, in_fresh_process
from report import quantization_table

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.manifest import graph_path
from siglip_onnx.export.pipeline import export_bundle

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.outliers import add_gelu_outliers, add_outliers

OWN_RESULTS = RESULTS / "quantization.json"
VARIANTS = ("fp32", "int8", "fp16", "q4")
TEXTS = [
    "a photo of shoes", "a long sleeved shirt on a bed", "黒い帽子", "a person on a skateboard", "two dogs and a cat",
    "ein rotes Kleid", "un sombrero de paja", "白いシャツ", "a city at night", "the word exit", "", "une jupe bleue",
    "a bowl of ramen with an egg on top, seen from above", "kitchen", "夕焼けの海", "0 1 2 3 4 5 6 7 8 9",
]  # fmt: skip


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), required=True, help="A SentencePiece model.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
def main(images: Path, spiece: Path, work: Path) -> None:
    """Measure every kind of weights and write the results."""
    plain = work / "checkpoint"
    if not plain.exists():
        in_fresh_process(make_checkpoint, plain, spiece)
    pictures = [str(path) for path in sorted(images.rglob("*.jpg"))[::7][:16]]
    makers: dict[str, Callable[..., Path] | None] = {
        "plain": None, "outliers": add_outliers, "outliers behind GELU": add_gelu_outliers,
    }  # fmt: skip
    weights: dict[str, Any] = {}
    for kind, make in makers.items():
        checkpoint = plain if make is None else work / kind.replace(" ", "_")
        if make is not None and not checkpoint.exists():
            in_fresh_process(make, plain, checkpoint)
        weights[kind] = in_fresh_process(measure, checkpoint, work / "bundle_of_kind", pictures)
        click.echo(f"{kind}: {json.dumps(weights[kind])}")
    results = {
        "machine": describe_machine(("torch", "transformers")),
        "pictures": len(pictures),
        "texts": len(TEXTS),
        "weights": weights,
    }
    OWN_RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    click.echo(quantization_table(results))


def measure(checkpoint: Path, out: Path, pictures: list[str]) -> dict[str, Any]:
    """Export every variant, and int8 as a plain quantizer makes it; compare each with fp32."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    export_bundle(checkpoint, out, precisions=VARIANTS, min_cosine=0)
    seconds = time.perf_counter() - began
    manifest = open_bundle(out).manifest
    found: dict[str, Any] = {"export_seconds": round(seconds, 1)}
    reference = embed(out, "fp32", pictures)
    for variant in VARIANTS:
        facts = manifest.variants[variant].quantization
        found[variant] = {
            "megabytes": round(manifest.variants[variant].size_bytes / 1e6, 1),
            **describe(embed(out, variant, pictures), reference),
            "fp32_layers": sum(len(tower.get("fp32_layers", ())) for tower in facts.values()),
            "layers_with_large_channels": sum(len(tower.get("large_channels", ())) for tower in facts.values()),
        }
    write_plain_int8(checkpoint, out)
    found["int8, not equalized"] = describe(embed(out, "int8", pictures), reference)
    shutil.rmtree(out)
    return found


def embed(bundle: Path, variant: str, pictures: list[str]) -> tuple[Any, Any]:
    """Return the embeddings of pictures and texts."""
    model = siglip_onnx.load(bundle, variant=variant)
    return model.encode_images(pictures), model.encode_texts(TEXTS)


def describe(found: tuple[Any, Any], reference: tuple[Any, Any]) -> dict[str, float]:
    """Return the smallest and the mean cosine of both towers."""
    facts = {}
    for tower, rows, expected in zip(("vision", "text"), found, reference, strict=True):
        cosines = (rows * expected).sum(axis=1)
        facts[f"{tower}_cosine_min"] = round(float(cosines.min()), 5)
        facts[f"{tower}_cosine_mean"] = round(float(cosines.mean()), 5)
    return facts


def write_plain_int8(checkpoint: Path, bundle: Path) -> None:
    """Replace the int8 graphs by those of a plain dynamic quantizer, everything else being the same."""
    from siglip_onnx.export.checkpoint import open_checkpoint  # noqa: PLC0415 - beside what is measured
    from siglip_onnx.export.graph import save_graph  # noqa: PLC0415
    from siglip_onnx.export.int8 import Int8Choices, quantize_int8  # noqa: PLC0415
    from siglip_onnx.export.towers import build_towers  # noqa: PLC0415

    opened = open_checkpoint(checkpoint)
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for tower, model in build_towers(opened.weights, opened.config).items():
        quantize_int8(model, Int8Choices())
        path = graph_path(tower, "int8")
        save_graph(model, bundle / path)
        for file in (path, f"{path}.data"):
            document["variants"]["int8"]["files"][file]["size_bytes"] = (bundle / file).stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
