"""Write ``docs/checkpoints.md``: every published checkpoint and its size on disk.

    python scripts/describe_checkpoints.py

Sizes are those of the graphs that export writes, computed from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siglip_onnx.config import SiglipConfig
from siglip_onnx.export.checkpoint import expected_shapes
from siglip_onnx.export.fp16 import to_fp16
from siglip_onnx.export.int8 import Int8Choices, quantize_int8
from siglip_onnx.export.q4 import quantize_4bit
from siglip_onnx.export.towers import build_towers
from siglip_onnx.hub.published import PUBLISHED, PublishedCheckpoint

DOCUMENT = Path(__file__).parent.parent / "docs" / "checkpoints.md"
HEADER = ("google/...", "family", "pixels / patch", "patches", "vocabulary", "text length", "embedding",
          "fp32 vision + text, MB", "fp16", "int8", "q4")  # fmt: skip


class ShapesOnly:
    """Stands for a checkpoint's weights where only their shapes matter."""

    def __init__(self, config: SiglipConfig) -> None:
        self._shapes = expected_shapes(config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a checkpoint of this config has."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.zeros(self._shapes[name], np.float32)


def sizes_mb(config: SiglipConfig) -> dict[str, dict[str, float]]:
    """Return the megabytes of each tower's weights, per variant.

    Every encoder layer adds the same number of bytes, so towers of one and of two layers are enough to know all.
    """
    num_layers = {"vision": config.vision.num_hidden_layers, "text": config.text.num_hidden_layers}
    one, two = (_sizes_bytes(_with_layers(config, count)) for count in (1, 2))
    return {
        variant: {
            tower: (size + (num_layers[tower] - 1) * (two[variant][tower] - size)) / 1e6
            for tower, size in sizes.items()
        }
        for variant, sizes in one.items()
    }


def _with_layers(config: SiglipConfig, num_layers: int) -> SiglipConfig:
    vision = replace(config.vision, num_hidden_layers=num_layers)
    return replace(config, vision=vision, text=replace(config.text, num_hidden_layers=num_layers))


def _sizes_bytes(config: SiglipConfig) -> dict[str, dict[str, int]]:
    passes: dict[str, Callable[[ir.Model], object]] = {
        "fp32": lambda _model: None,
        "fp16": to_fp16,
        "int8": lambda model: quantize_int8(model, Int8Choices()),
        "q4": quantize_4bit,
    }
    sizes: dict[str, dict[str, int]] = {}
    for variant, quantize in passes.items():
        towers = build_towers(ShapesOnly(config), config)
        for model in towers.values():
            quantize(model)
        sizes[variant] = {tower: _weights_bytes(model) for tower, model in towers.items()}
    return sizes


def _weights_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def describe(checkpoint: PublishedCheckpoint) -> tuple[str, ...]:
    """Return one row of the table."""
    config = checkpoint.config
    size = "any" if checkpoint.image_size is None else str(checkpoint.image_size)
    patches = f"up to {config.vision.num_patches}" if checkpoint.image_size is None else str(config.vision.num_patches)
    return (
        checkpoint.name,
        checkpoint.family,
        f"{size} / {checkpoint.patch_size}",
        patches,
        f"{checkpoint.vocab_size:,}",
        str(checkpoint.text_length),
        str(config.text.embedding_dim),
        *(f"{towers['vision']:.0f} + {towers['text']:.0f}" for towers in sizes_mb(config).values()),
    )


def document() -> str:
    """Return the whole page."""
    rows = [HEADER, ("---",) * len(HEADER), *map(describe, PUBLISHED)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Published checkpoints

All {len(PUBLISHED)} can be exported. Sizes are of the weights (MB = 10^6 bytes), computed from the shapes by
`scripts/describe_checkpoints.py`, which writes this page from `siglip_onnx/hub/published.py`. NaFlex uses up to
256 patches by default; `--max-num-patches` changes that.

{table}
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
