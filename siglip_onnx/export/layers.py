"""Which part of a quantized tower loses most: fp32 and the variant side by side, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..bundle.folder import Bundle
from ..bundle.manifest import graph_path
from ..head import Floats
from ..verify.accuracy import REFERENCE
from .calibration import Inputs, run_with_outputs

_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.\d+")


def layer_cosines(bundle: Bundle, variant: str, tower: str, inputs: Sequence[Inputs]) -> dict[str, float]:
    """Return the smallest cosine to fp32 behind each encoder layer, and last of the tower's ``pooler_output``."""
    expected = _run_layers(bundle, REFERENCE, tower, inputs)
    found = _run_layers(bundle, variant, tower, inputs)
    return {layer: min(map(_cosine, found[layer], rows)) for layer, rows in expected.items()}


def weakest_layer(cosines: Mapping[str, float]) -> str:
    """Return the layer at which the cosine falls most."""
    before = [1.0, *cosines.values()]
    return max(zip(cosines, before, cosines.values(), strict=False), key=lambda step: step[1] - step[2])[0]


def _run_layers(bundle: Bundle, variant: str, tower: str, inputs: Sequence[Inputs]) -> dict[str, list[Floats]]:
    path = bundle.path / graph_path(tower, variant)
    nodes = onnx.load(path, load_external_data=False).graph.node
    layers = [name for node in nodes for name in node.output if _LAYER.fullmatch(name)]
    return run_with_outputs(path, [*layers, "pooler_output"], inputs)


def _cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    return float(np.vdot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right)))
