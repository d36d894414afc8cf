"""Two plain ONNX graphs on onnxruntime, with the session options of this engine: what backends of graphs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siglip_onnx.bench.backend import Configuration, Inputs
from siglip_onnx.bench.engine import FrontEnd
from siglip_onnx.config import TOWERS
from siglip_onnx.head import Floats
from siglip_onnx.session import LazySession

SETTINGS = "onnxruntime with this engine's threads and front end"


class Graphs(FrontEnd):
    """``vision.onnx`` and ``text.onnx`` of a folder."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(Path(configuration.bundle))
        self._vision, self._text = (
            # As onnxruntime comes: where its fast int8 instructions saturate, the fidelity shows it.
            LazySession(graph_of(configuration, tower), threads=configuration.threads, exact_int8=False)
            for tower in TOWERS
        )

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``."""
        return self._vision.run("pooler_output", inputs)

    def text(self, input_ids: NDArray[np.int64]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``."""
        return self._text.run("pooler_output", {"input_ids": input_ids})


def graph_of(configuration: Configuration, tower: str) -> Path:
    """Return the graph of a tower."""
    return Path(configuration.work) / f"{tower}.onnx"


load = Graphs


def files(configuration: Configuration) -> list[Path]:
    """Return the graphs, the weights beside them, and the tokenizer."""
    graphs = [path for path in Path(configuration.work).iterdir() if path.name.startswith(TOWERS)]
    return [*graphs, FrontEnd(Path(configuration.bundle)).model.bundle.tokenizer_path]


def packages(_configuration: Configuration) -> tuple[str, ...]:
    """Return the packages that compute."""
    return ("onnxruntime",)
