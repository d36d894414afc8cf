"""Write one tower of one variant: fp32 unchanged, fp16 and q4 by one pass, int8 fitted to calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..system.files import remove
from .calibration import Calibration
from .equalize import equalize
from .fp16 import to_fp16
from .graph import save_graph
from .int8 import Int8Choices, find_large_channels, quantize_int8
from .q4 import quantize_4bit
from .sensitivity import find_fp32_layers

# Makes a tower in fp32, a new one at each call: the passes that quantize it change it in place.
FreshTower = Callable[[], ir.Model]


@dataclass(frozen=True)
class Int8Options:
    """How int8 is fitted.

    ``min_cosine`` to fp32 is reached on every calibration input, by leaving layers in fp32 if necessary;
    ``reduce_range`` keeps weights within 7 bits.
    """

    min_cosine: float = 0.0
    reduce_range: bool = False


def write_tower(
    variant: str, fresh_tower: FreshTower, path: Path, calibration: Calibration, options: Int8Options
) -> dict[str, Any]:
    """Write a tower as ``variant`` to ``path``; return how it was quantized."""
    if variant == "int8":
        return _write_int8(fresh_tower, path, calibration, options)
    model = fresh_tower()
    facts: dict[str, Any] = {}
    if variant == "fp16":
        facts = to_fp16(model)
    elif variant == "q4":
        seams = equalize(model, calibration.ranges)
        facts = quantize_4bit(model) | {"equalized_seams": seams}
    save_graph(model, path)
    return facts


def _write_int8(fresh_tower: FreshTower, path: Path, calibration: Calibration, options: Int8Options) -> dict[str, Any]:
    """Write int8, and if its accuracy does not suffice, write it again with some layers in fp32."""
    choices = Int8Choices(large_channels=find_large_channels(calibration.ranges), reduce_range=options.reduce_range)

    def write(fp32_layers: Mapping[str, float]) -> dict[str, Any]:
        model = fresh_tower()
        seams = equalize(model, calibration.ranges)
        facts = quantize_int8(model, choices, fp32_layers)
        save_graph(model, path)
        return facts | {"equalized_seams": seams, "fp32_layers": dict(fp32_layers)}

    facts = write({})
    if calibration.cosine_min(path) >= options.min_cosine:
        return facts
    # The candidates for fp32 must be rescaled as the int8 layers are.
    equalized, equalized_path = fresh_tower(), path.with_name(f"equalized_{path.name}")
    equalize(equalized, calibration.ranges)
    save_graph(equalized, equalized_path)
    fp32_layers = find_fp32_layers(equalized_path, path, calibration.inputs, calibration.expected, options.min_cosine)
    for file in (equalized_path, equalized_path.with_name(f"{equalized_path.name}.data")):
        remove(file, within=path.parent)
    return write(fp32_layers)
