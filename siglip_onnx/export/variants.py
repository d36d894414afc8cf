"""Write one tower of one variant: fp32 unchanged, fp16 by one pass, int8, q4 and qdq fitted to calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..bundle.manifest import data_path
from ..system.files import remove
from .calibration import Calibration
from .equalize import choose_scales, equalize, rescale
from .fp16 import to_fp16
from .graph import save_graph
from .int8 import NEVER_QUANTIZED, Int8Choices, find_large_channels, quantize_int8
from .q4 import quantize_4bit
from .qdq import StaticRange, quantize_static, static_ranges
from .rounding import round_calibrated
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
    if variant in ("int8", "qdq"):
        return _write_int8(variant, fresh_tower, path, calibration, options)
    model = fresh_tower()
    facts: dict[str, Any] = {}
    if variant == "fp16":
        facts = to_fp16(model)
    elif variant == "q4":
        seams = equalize(model, calibration.ranges)
        with equalized_graph(fresh_tower, path, calibration) as equalized:
            rounded = round_calibrated(
                equalized, calibration.inputs, NEVER_QUANTIZED, calibration.progress, calibration.output
            )
        facts = quantize_4bit(model, rounded) | {"equalized_seams": seams}
    save_graph(model, path, calibration.progress)
    return facts


def _write_int8(
    variant: str, fresh_tower: FreshTower, path: Path, calibration: Calibration, options: Int8Options
) -> dict[str, Any]:
    """Write dynamic or static int8, and if its accuracy does not suffice, write it again with some layers in fp32."""
    choices = Int8Choices(large_channels=find_large_channels(calibration.ranges), reduce_range=options.reduce_range)
    ranges = _static_ranges(fresh_tower, calibration, choices) if variant == "qdq" else {}

    def write(fp32_layers: Mapping[str, float]) -> dict[str, Any]:
        model = fresh_tower()
        seams = equalize(model, calibration.ranges)
        if variant == "qdq":
            facts = quantize_static(
                model, ranges, choices.large_channels, fp32_layers, reduce_range=choices.reduce_range
            )
        else:
            facts = quantize_int8(model, choices, fp32_layers)
        save_graph(model, path, calibration.progress)
        return facts | {"equalized_seams": seams, "fp32_layers": dict(fp32_layers)}

    facts = write({})
    if calibration.cosine_min(path) >= options.min_cosine:
        return facts
    # The candidates for fp32 must be rescaled as the int8 layers are.
    with equalized_graph(fresh_tower, path, calibration) as equalized:
        fp32_layers = find_fp32_layers(
            equalized,
            path,
            calibration.inputs,
            calibration.expected,
            options.min_cosine,
            calibration.progress,
            calibration.output,
        )
    return write(fp32_layers)


def _static_ranges(fresh_tower: FreshTower, calibration: Calibration, choices: Int8Choices) -> dict[str, StaticRange]:
    """Return the ranges of the equalized tower."""
    scales = choose_scales(fresh_tower(), calibration.ranges)
    by_input = [rescale(ranges, scales) for ranges in calibration.ranges_by_input]
    return static_ranges(by_input, choices.large_channels)


@contextmanager
def equalized_graph(fresh_tower: FreshTower, path: Path, calibration: Calibration) -> Iterator[Path]:
    """Write the equalized fp32 tower next to ``path``, and remove it at the end."""
    equalized = path.with_name(f"equalized_{path.name}")
    model = fresh_tower()
    equalize(model, calibration.ranges)
    try:
        save_graph(model, equalized, calibration.progress)
        yield equalized
    finally:
        for file in (equalized, equalized.with_name(data_path(equalized.name))):
            if file.exists():
                remove(file, within=path.parent)
