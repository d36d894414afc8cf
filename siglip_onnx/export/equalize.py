"""Move outliers from activations into weights, exactly, so that int8 activations keep their precision.

Where a linear layer follows a LayerNorm, or the values of an attention, an unusually large channel is divided by a
power of two in the producer and multiplied by it in the consumer. Nothing is rounded: fp32 stays the same bit for bit.
Between GELU and the second layer of an MLP no factor can be moved.
Source: SmoothQuant (arXiv 2211.10438), equation 4 with alpha 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ..head import Floats


class Seam(NamedTuple):
    """A place where channels can be rescaled: ``producer`` writes them, only ``consumers`` read them."""

    producer: str
    consumers: tuple[str, ...]


def equalize(model: ir.Model, ranges: Mapping[str, Floats]) -> int:
    """Rescale every seam of an fp32 tower in place; return their number.

    Args:
        model: weights named as in the checkpoint, those of linear layers ``(in, out)``.
        ranges: for each linear layer the largest magnitude of each input channel, f32 ``(in,)``.
    """
    weights = model.graph.initializers
    scales = choose_scales(model, ranges)
    for seam, scale in scales.items():
        for part in ("weight", "bias"):  # channels are the last axis of a norm, of a bias, and of a weight (in, out)
            _multiply(weights[f"{seam.producer}.{part}"], np.float32(1) / scale)
        for consumer in seam.consumers:
            _multiply(weights[f"{consumer}.weight"], scale[:, np.newaxis])
    return len(scales)


def choose_scales(model: ir.Model, ranges: Mapping[str, Floats]) -> dict[Seam, Floats]:
    """Return the scale of each channel of each seam of a tower that is not equalized yet."""
    weights = model.graph.initializers
    scales = {}
    for seam in find_seams(ranges):
        largest = np.max([ranges[consumer] for consumer in seam.consumers], axis=0)
        weight_ranges = np.max(
            [np.abs(_tensor(weights[f"{consumer}.weight"]).numpy()).max(axis=1) for consumer in seam.consumers], axis=0
        )
        scales[seam] = choose_scale(largest, weight_ranges)
    return scales


def rescale(ranges: Mapping[str, Floats], scales: Mapping[Seam, Floats]) -> dict[str, Floats]:
    """Return the ranges that the layers' inputs have after equalization."""
    by_layer = {consumer: scale for seam, scale in scales.items() for consumer in seam.consumers}
    return {layer: largest / by_layer[layer] if layer in by_layer else largest for layer, largest in ranges.items()}


def choose_scale(activations: Floats, weights: Floats) -> Floats:
    """Return a power of two per channel: ``sqrt(activation / weight)`` relative to the median channel.

    Rounded toward 1, so that channels within a factor of two keep their scale: moving them costs more accuracy than it
    gains. 1 where activation or weight is 0.
    """
    alive = (activations > 0) & (weights > 0)
    ratio = np.where(alive, activations, 1) / np.where(alive, weights, 1)
    octaves = np.log2(ratio) / 2
    steps = np.where(alive, np.trunc(octaves - np.median(octaves[alive])), 0) if alive.any() else np.zeros(len(alive))
    scale: Floats = np.exp2(steps).astype(np.float32)
    return scale


def find_seams(layers: Mapping[str, object]) -> Iterator[Seam]:
    """Yield the seams between the linear ``layers`` of a tower."""
    for layer in layers:
        parent, _, own = layer.rpartition(".")
        if own == "q_proj":
            yield Seam(f"{parent.rpartition('.')[0]}.layer_norm1", (layer, f"{parent}.k_proj", f"{parent}.v_proj"))
        elif own == "out_proj" and f"{parent}.v_proj" in layers:
            yield Seam(f"{parent}.v_proj", (layer,))
        elif own == "fc1":
            block = parent.rpartition(".")[0]
            yield Seam(f"{block}.layernorm" if block.endswith(".head") else f"{block}.layer_norm2", (layer,))
        elif layer == "text_model.head":
            yield Seam("text_model.final_layer_norm", (layer,))


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise TypeError(f"{value.name} is not a weight")
    return value.const_value


def _multiply(value: ir.Value, factors: Floats) -> None:
    """Multiply a weight; computed when it is read."""
    before = _tensor(value)

    def product() -> ir.TensorProtocol:
        return ir.tensor(before.numpy() * factors, name=value.name)

    value.const_value = ir.LazyTensor(product, before.dtype, ir.Shape(before.shape.numpy()), name=value.name)
