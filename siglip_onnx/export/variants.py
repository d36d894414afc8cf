"""How each variant of a tower is made: fp32 as it is, fp16 and q4 by one pass, int8 fitted to calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle.folder import Bundle
from ..bundle.manifest import TOWERS, graph_path
from ..head import Floats
from ..image.decode import ImageSource
from ..model import SigLIP
from ..session import LazySession
from ..system.files import remove
from ..verify.accuracy import REFERENCE
from ..verify.samples import quiet_samples
from .calibration import Inputs, embed, input_ranges
from .equalize import equalize
from .fp16 import to_fp16
from .graph import save_graph
from .int8 import Int8Choices, find_large_channels, quantize_int8
from .q4 import quantize_4bit
from .sensitivity import find_fp32_layers

Build = Callable[[], dict[str, ir.Model]]


@dataclass(frozen=True)
class Int8Options:
    """What int8 is to reach: ``min_cosine`` to fp32 on every calibration input, and on CPUs without VNNI too."""

    min_cosine: float = 0.0
    reduce_range: bool = False


class Calibration:
    """What a tower's fp32 variant says to the calibration inputs: its answers, and how large its activations are."""

    def __init__(self, graph: Path, inputs: Sequence[Inputs]) -> None:
        """Keep the fp32 graph and one dictionary of inputs per picture or text."""
        self.graph = graph
        self.inputs = inputs

    @cached_property
    def _measured(self) -> tuple[Mapping[str, Floats], Floats]:
        return input_ranges(self.graph, self.inputs)

    @property
    def ranges(self) -> Mapping[str, Floats]:
        """The largest magnitude of each input channel of each linear layer."""
        return self._measured[0]

    @property
    def expected(self) -> Floats:
        """The unit embeddings in fp32."""
        return self._measured[1]

    def cosine_min(self, graph: Path) -> float:
        """Return how near a graph's embeddings are to those of fp32, at worst."""
        return float((embed(LazySession(graph), self.inputs) * self.expected).sum(axis=1).min())


def calibrate(bundle: Bundle, pictures: Sequence[ImageSource], texts: Sequence[str]) -> dict[str, Calibration]:
    """Prepare the calibration of both towers; nothing runs before it is asked for."""
    model = SigLIP(bundle, variant=REFERENCE)
    with quiet_samples(texts):
        ids = model.tokenize(texts)
    inputs = {"vision": model.preprocess(pictures), "text": [{"input_ids": row[np.newaxis]} for row in ids]}
    return {tower: Calibration(bundle.path / graph_path(tower, REFERENCE), inputs[tower]) for tower in TOWERS}


def write_tower(
    variant: str, tower: str, build: Build, folder: Path, calibration: Mapping[str, Calibration], options: Int8Options
) -> dict[str, Any]:
    """Write one tower of one variant; returns how it was quantized."""
    path = folder / graph_path(tower, variant)
    if variant == "int8":
        return _write_int8(lambda: build()[tower], path, calibration[tower], options)
    model = build()[tower]
    facts: dict[str, Any] = {}
    if variant == "fp16":
        facts = to_fp16(model)
    elif variant == "q4":
        seams = equalize(model, calibration[tower].ranges)
        facts = quantize_4bit(model) | {"equalized_seams": seams}
    save_graph(model, path)
    return facts


def _write_int8(
    build: Callable[[], ir.Model], path: Path, calibration: Calibration, options: Int8Options
) -> dict[str, Any]:
    """Write int8, and again with layers left in fp32 if the first was not near enough."""
    choices = Int8Choices(large_channels=find_large_channels(calibration.ranges), reduce_range=options.reduce_range)

    def write(fp32_layers: Mapping[str, float]) -> dict[str, Any]:
        model = build()
        seams = equalize(model, calibration.ranges)
        facts = quantize_int8(model, choices, fp32_layers)
        save_graph(model, path)
        return facts | {"equalized_seams": seams, "fp32_layers": dict(fp32_layers)}

    facts = write({})
    if calibration.cosine_min(path) >= options.min_cosine:
        return facts
    # The fp32 layers to be tried must be rescaled as the int8 ones are.
    equalized, equalized_path = build(), path.with_name(f"equalized_{path.name}")
    equalize(equalized, calibration.ranges)
    save_graph(equalized, equalized_path)
    fp32_layers = find_fp32_layers(equalized_path, path, calibration.inputs, calibration.expected, options.min_cosine)
    for file in (equalized_path, equalized_path.with_name(f"{equalized_path.name}.data")):
        remove(file, within=path.parent)
    return write(fp32_layers)
