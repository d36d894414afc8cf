"""Write ``docs/checkpoints.md`` and ``siglip_onnx/hub/published_sizes.json``: every published checkpoint and its size.

    python scripts/describe_checkpoints.py

Sizes are those of the graphs that export writes, computed from the shapes alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siglip_onnx.bundle.manifest import SUFFIXES
from siglip_onnx.config import SiglipConfig
from siglip_onnx.export.checkpoint import expected_shapes
from siglip_onnx.export.fp16 import to_fp16
from siglip_onnx.export.int8 import Int8Choices, quantize_int8
from siglip_onnx.export.q4 import quantize_4bit
from siglip_onnx.export.qdq import StaticRange, quantize_static
from siglip_onnx.export.towers import build_towers
from siglip_onnx.hub.published import OPEN_CLIP, PUBLISHED, SIZES, PublishedCheckpoint

DOCUMENT = Path(__file__).parent.parent / "docs" / "checkpoints.md"
LAYOUTS = DOCUMENT.with_name("export.md")
HEADER = ("google/...", "family", "pixels / patch", "patches", "vocabulary", "text length", "embedding",
          "fp32 vision + text, MB", *(variant for variant in SUFFIXES if variant != "fp32"))  # fmt: skip
ACCURACY_HEADER = ("google/...", "languages", "ImageNet", "XM3600 text to image / image to text", "take it for")


class ShapesOnly:
    """Stands for a checkpoint's weights where only their shapes matter."""

    def __init__(self, config: SiglipConfig) -> None:
        self._shapes = expected_shapes(config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a checkpoint of this config has."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.zeros(self._shapes[name], np.float32)

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield zeros of this shape."""
        yield self[name]


def sizes_mb(config: SiglipConfig) -> dict[str, dict[str, float]]:
    """Return the megabytes of each tower's weights, per variant.

    Every encoder layer adds the same number of bytes, so towers of one and of two layers are enough to know all.
    """
    vision, text = config.both()
    num_layers = {"vision": vision.num_hidden_layers, "text": text.num_hidden_layers}
    one, two = (_sizes_bytes(_with_layers(config, count)) for count in (1, 2))
    return {
        variant: {
            tower: (size + (num_layers[tower] - 1) * (two[variant][tower] - size)) / 1e6
            for tower, size in sizes.items()
        }
        for variant, sizes in one.items()
    }


def _with_layers(config: SiglipConfig, num_layers: int) -> SiglipConfig:
    vision, text = config.both()
    vision = replace(vision, num_hidden_layers=num_layers)
    return replace(config, vision=vision, text=replace(text, num_hidden_layers=num_layers))


def _sizes_bytes(config: SiglipConfig) -> dict[str, dict[str, int]]:
    passes: dict[str, Callable[[ir.Model], object]] = {
        "fp32": lambda _model: None,
        "fp16": to_fp16,
        "int8": lambda model: quantize_int8(model, Int8Choices()),
        "q4": quantize_4bit,
        "qdq": _quantize_static,
    }
    sizes: dict[str, dict[str, int]] = {}
    for variant, quantize in passes.items():
        towers = build_towers(ShapesOnly(config), config)
        for model in towers.values():
            quantize(model)
        sizes[variant] = {tower: _weights_bytes(model) for tower, model in towers.items()}
    return sizes


def _quantize_static(model: ir.Model) -> None:
    layers = [name.removesuffix(".weight") for name in model.graph.initializers]
    quantize_static(model, dict.fromkeys(layers, StaticRange(1, 1)), {})


def _weights_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def describe(checkpoint: PublishedCheckpoint) -> tuple[str, ...]:
    """Return one row of the table."""
    config = checkpoint.config
    vision, text = config.both()
    size = "any" if checkpoint.image_size is None else str(checkpoint.image_size)
    patches = f"up to {vision.num_patches}" if checkpoint.image_size is None else str(vision.num_patches)
    return (
        checkpoint.name,
        checkpoint.family,
        f"{size} / {checkpoint.patch_size}",
        patches,
        f"{checkpoint.vocab_size:,}",
        str(checkpoint.text_length),
        str(text.embedding_dim),
        *(f"{towers['vision']:.0f} + {towers['text']:.0f}" for towers in checkpoint.sizes_mb.values()),
    )


def describe_accuracy(checkpoint: PublishedCheckpoint) -> tuple[str, ...]:
    """Return one row of the table of accuracy."""
    accuracy = checkpoint.accuracy
    if accuracy is None:
        return checkpoint.name, checkpoint.languages, "", "", checkpoint.advice
    mark = "\\*" if accuracy.protocol == OPEN_CLIP else ""
    recall = ""
    if accuracy.xm3600_text_to_image is not None:
        recall = f"{accuracy.xm3600_text_to_image} / {accuracy.xm3600_image_to_text}{mark}"
    return checkpoint.name, checkpoint.languages, f"{accuracy.imagenet}{mark}", recall, checkpoint.advice


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ("---",) * len(header), *rows])


def layouts() -> str:
    """Return the table of layouts of the page on export."""
    text = LAYOUTS.read_text(encoding="utf-8")
    return text[text.index("| layout | files | command |") :].partition("\n\n")[0]


def measured() -> str:
    """Return the part of the page that ``benchmarks/report.py`` writes, with its marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- models -->", "<!-- end of models -->"
    return text[text.index(begin) : text.index(end) + len(end)]


def document() -> str:
    """Return the whole page."""
    return f"""# Published checkpoints

All {len(PUBLISHED)} can be exported. `siglip-onnx models pull NAME` downloads and exports one, and
`siglip-onnx models list --known` prints these numbers, and `siglip-onnx models recommend` chooses by them. This page
is written by `scripts/describe_checkpoints.py`, from `siglip_onnx/hub/published.py` and [export.md](export.md), and its
part on time and memory by `benchmarks/report.py`.

## Accuracy

Percent: zero-shot top-1 on ImageNet, and recall@1 on XM3600, the mean of 36 languages. Source: Table 1 of the SigLIP 2
paper (arXiv 2502.14786); \\* open_clip's result tables, which measure XM3600 differently, so that these numbers must
not be compared with the others.

{table(ACCURACY_HEADER, list(map(describe_accuracy, PUBLISHED)))}

## Time and memory

{measured()}

## Shapes and sizes

Sizes are of the weights (MB = 10^6 bytes), computed from the shapes. NaFlex uses up to 256 patches by default;
`--max-num-patches` changes that.

{table(HEADER, list(map(describe, PUBLISHED)))}

## Layouts

A checkpoint, or a fine-tuned one, can be exported in each of these layouts ([details](export.md#layouts)):

{layouts()}
"""


def sizes() -> str:
    """Return the file of sizes, rounded to 0.1 MB."""
    rounded = {
        checkpoint.name: {
            variant: {tower: round(size, 1) for tower, size in towers.items()}
            for variant, towers in sizes_mb(checkpoint.config).items()
        }
        for checkpoint in PUBLISHED
    }
    return json.dumps(rounded, indent=1) + "\n"


if __name__ == "__main__":
    SIZES.write_text(sizes(), encoding="utf-8")
    DOCUMENT.write_text(document(), encoding="utf-8")
