"""Measure the size and the loss of each variant, on random weights without and with outliers.

    python benchmarks/quantization.py --images FOLDER --spiece spiece.model

Shapes of google/siglip-base-patch16-256-multilingual with random weights: plain; with outliers of 60x in six channels
of every LayerNorm and of the values, which leave PyTorch's answer unchanged; and with outliers after GELU, which no
other layer can absorb. Cosines are to fp32 on 16 photographs and 16 texts, none of them used for calibration. Writes
benchmarks/results/quantization.json, from which `make report` writes the table of the documents.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from catalog import list_images, random_checkpoint
from fresh_process import in_fresh_process
from outliers import add_gelu_outliers, add_outliers
from report import quantization_table
from result_files import RESULTS, write_results

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.integrity import FileFacts, file_facts
from siglip_onnx.bundle.manifest import MANIFEST, data_path, embedding_space, graph_path
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.graph import save_graph
from siglip_onnx.export.int8 import Int8Choices, quantize_int8
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.towers import build_towers

OWN_RESULTS = RESULTS / "quantization.json"
VARIANTS = ("fp32", "int8", "qdq", "fp16", "q4")
TEXTS = [
    "a photo of shoes", "a long sleeved shirt on a bed", "黒い帽子", "a person on a skateboard", "two dogs and a cat",
    "ein rotes Kleid", "un sombrero de paja", "白いシャツ", "a city at night", "the word exit", "", "une jupe bleue",
    "a bowl of ramen with an egg on top, seen from above", "kitchen", "夕焼けの海", "0 1 2 3 4 5 6 7 8 9",
]  # fmt: skip


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), help="A SentencePiece model.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Instead of one of the base shapes.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
@click.option("--out", type=click.Path(path_type=Path), default=OWN_RESULTS, help="JSON to write.")
def main(images: Path, spiece: Path | None, checkpoint: Path | None, work: Path, out: Path) -> None:
    """Measure every kind of weights and write the results."""
    plain = checkpoint or random_checkpoint(work / "checkpoint", spiece)
    paths = [str(path) for path in list_images(images)[::7][:16]]
    makers: dict[str, Callable[..., Path] | None] = {
        "plain": None, "outliers": add_outliers, "outliers after GELU": add_gelu_outliers,
    }  # fmt: skip
    weights: dict[str, Any] = {}
    for kind, make in makers.items():
        source = plain if make is None else work / kind.replace(" ", "_")
        if make is not None and not source.exists():
            in_fresh_process(make, plain, source)
        weights[kind] = in_fresh_process(measure, source, work / "bundle_of_kind", paths)
        click.echo(f"{kind}: {json.dumps(weights[kind])}")
    results = {
        "machine": describe_machine(("torch", "transformers")),
        "images": len(paths),
        "texts": len(TEXTS),
        "weights": weights,
    }
    write_results(out, results)
    click.echo(quantization_table(results))


def measure(checkpoint: Path, out: Path, images: list[str]) -> dict[str, Any]:
    """Export every variant, and int8 without equalization; compare each with fp32."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    export_bundle(checkpoint, out, precisions=VARIANTS, min_cosine=0)
    seconds = time.perf_counter() - began
    manifest = open_bundle(out).manifest
    results: dict[str, Any] = {"export_seconds": round(seconds, 1)}
    reference = embed(out, "fp32", images)
    for variant in VARIANTS:
        facts = manifest.variants[variant].quantization
        results[variant] = {
            "megabytes": round(manifest.variants[variant].size_bytes / 1e6, 1),
            **describe(embed(out, variant, images), reference),
            "fp32_layers": sum(len(tower.get("fp32_layers", ())) for tower in facts.values()),
            "layers_with_large_channels": sum(len(tower.get("large_channels", ())) for tower in facts.values()),
        }
    write_plain_int8(checkpoint, out)
    results["int8, not equalized"] = describe(embed(out, "int8", images), reference)
    shutil.rmtree(out)
    return results


def embed(bundle: Path, variant: str, images: list[str]) -> tuple[Any, Any]:
    """Return the embeddings of images and texts."""
    model = siglip_onnx.load(bundle, variant=variant)
    return model.encode_images(images), model.encode_texts(TEXTS)


def describe(embeddings: tuple[Any, Any], reference: tuple[Any, Any]) -> dict[str, float]:
    """Return the smallest and the mean cosine of both towers."""
    facts = {}
    for tower, rows, expected in zip(("vision", "text"), embeddings, reference, strict=True):
        cosines = (rows * expected).sum(axis=1)
        facts[f"{tower}_cosine_min"] = round(float(cosines.min()), 5)
        facts[f"{tower}_cosine_mean"] = round(float(cosines.mean()), 5)
    return facts


def write_plain_int8(checkpoint: Path, bundle: Path) -> None:
    """Replace the int8 graphs by those of a plain dynamic quantizer; everything else stays the same."""
    opened, manifest = open_checkpoint(checkpoint), open_bundle(bundle).manifest
    files: dict[str, FileFacts] = {}
    for tower, model in build_towers(opened.weights, opened.config).items():
        quantize_int8(model, Int8Choices())
        path = graph_path(tower, "int8")
        save_graph(model, bundle / path)
        files |= {name: file_facts(bundle / name) for name in (path, data_path(path))}
    space = embedding_space("int8", manifest.files, files)
    variant = replace(manifest.variants["int8"], embedding_space=space, files=files)
    manifest = replace(manifest, variants={**manifest.variants, "int8": variant})
    (bundle / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
