"""Compare the shape of every published checkpoint with PyTorch, on random weights.

    python benchmarks/parity.py --spiece spiece.model --gemma tokenizer.json --images FOLDER

Base-size checkpoints keep their depth, larger ones are cut to two layers; widths, heads, vocabularies, patches and
lengths do not change. Each is made, exported to fp32, compared stage by stage, and deleted. Writes
benchmarks/results/parity.json if all were compared.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from catalog import list_images
from fresh_process import in_fresh_process
from result_files import RESULTS, write_results
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.hub.published import BASE, GEMMA, PUBLISHED, PublishedCheckpoint
from siglip_onnx.image.decode import load_image
from siglip_onnx.verify.pytorch import compare_with_pytorch
from siglip_onnx.verify.samples import SAMPLE_TEXTS

LAYERS_KEPT = 2


@click.command(help=__doc__)
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), required=True, help="SigLIP's vocabulary.")
@click.option("--gemma", type=click.Path(path_type=Path, exists=True), required=True, help="SigLIP 2's vocabulary.")
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--only", multiple=True, help="Name of a checkpoint; all if not given.")
def main(spiece: Path, gemma: Path, images: Path, only: tuple[str, ...]) -> None:
    """Compare, one fresh process each, and write the results."""
    paths = list_images(images)[:4]
    results = {}
    for checkpoint in PUBLISHED:
        if not only or checkpoint.name in only:
            vocabulary = gemma if checkpoint.vocab_size == GEMMA else spiece
            results[checkpoint.name] = in_fresh_process(compare, checkpoint, vocabulary, paths)
            click.echo(f"{checkpoint.name}: {json.dumps(results[checkpoint.name])}")
    if not only:
        document = {
            "machine": describe_machine(("torch", "transformers")),
            "images": len(paths),
            "texts": len(SAMPLE_TEXTS),
        }
        write_results(RESULTS / "parity.json", document | {"checkpoints": results})


def compare(checkpoint: PublishedCheckpoint, vocabulary: Path, paths: list[Path]) -> dict[str, Any]:
    """Make one checkpoint, export it, and return the largest difference of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / checkpoint.name, Path(folder) / "bundle"
        layers = make_checkpoint(checkpoint, source)
        shutil.copy(vocabulary, source / ("tokenizer.json" if checkpoint.vocab_size == GEMMA else "spiece.model"))
        export_bundle(source, out, precisions=["fp32"])
        model = siglip_onnx.load(out)
        stages = compare_with_pytorch(model, source, [load_image(path) for path in paths], SAMPLE_TEXTS)
    return {"layers": layers} | {stage.stage: stage.max_abs for stage in stages}


def make_checkpoint(checkpoint: PublishedCheckpoint, path: Path) -> list[int]:
    """Write random weights of its shape; return the layers of both towers."""
    torch.manual_seed(0)
    config = checkpoint.config
    vision, text = config.both()
    if checkpoint.width != BASE:
        vision = replace(vision, num_hidden_layers=LAYERS_KEPT)
        text = replace(text, num_hidden_layers=LAYERS_KEPT)
    towers = {"vision_config": asdict(vision), "text_config": asdict(text)}
    if checkpoint.image_size is None:
        model: Any = Siglip2Model(Siglip2Config(**towers))
        processor: Any = Siglip2ImageProcessor(patch_size=checkpoint.patch_size)
    else:
        model = SiglipModel(SiglipConfig(**towers))
        size = {"height": checkpoint.image_size, "width": checkpoint.image_size}
        processor = SiglipImageProcessor(size=size, resample=2 if checkpoint.vocab_size == GEMMA else 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.0)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return [vision.num_hidden_layers, text.num_hidden_layers]


if __name__ == "__main__":
    main()
