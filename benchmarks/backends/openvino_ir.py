"""OpenVINO, converted from the PyTorch model: fp32, and the two kinds of int8 that NNCF makes.

A variant's properties follow a comma in its name; variants that differ in them alone have the same files.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from siglip_onnx.bench.backend import Configuration, Inputs
from siglip_onnx.bench.engine import FrontEnd
from siglip_onnx.config import TOWERS
from siglip_onnx.head import Floats
from siglip_onnx.verify.samples import SAMPLE_TEXTS

VARIANTS = {
    "fp32": ("OpenVINO fp32", "converted from PyTorch, INFERENCE_PRECISION_HINT f32"),
    "fp32, bf16": ("OpenVINO bf16", "converted from PyTorch, INFERENCE_PRECISION_HINT bf16"),
    "static int8": ("OpenVINO NNCF int8", "nncf.quantize, model_type TRANSFORMER, 64 calibration images; bf16 rest"),
    "int8 weights": (
        "OpenVINO int8 weights",
        "nncf.compress_weights INT8_SYM, INFERENCE_PRECISION_HINT f32, DYNAMIC_QUANTIZATION_GROUP_SIZE 128",
    ),
    "int8 weights, bf16": (
        "OpenVINO int8 weights, bf16",
        "nncf.compress_weights INT8_SYM, INFERENCE_PRECISION_HINT bf16, the group size by default",
    ),
    "int8 weights, bf16, group 128": (
        "OpenVINO int8 weights, bf16, group 128",
        "nncf.compress_weights INT8_SYM, INFERENCE_PRECISION_HINT bf16, DYNAMIC_QUANTIZATION_GROUP_SIZE 128",
    ),
}
NEEDS = ("openvino", "nncf", "torch", "transformers")
PROPERTIES = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "fp32, bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "static int8": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8 weights": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"},
    "int8 weights, bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8 weights, bf16, group 128": {
        "INFERENCE_PRECISION_HINT": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
    },
}


class OpenVINO(FrontEnd):
    """Both towers, compiled for the CPU; a thread that runs has an infer request of its own."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(Path(configuration.bundle))
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if configuration.workers == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(configuration.workers),
            "INFERENCE_NUM_THREADS": str(configuration.threads * configuration.workers),
        } | PROPERTIES[configuration.variant]
        self._towers = {tower: core.compile_model(ir_of(configuration, tower), "CPU", settings) for tower in TOWERS}
        self._requests = threading.local()

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``."""
        return self._run("vision", inputs["pixel_values"])

    def text(self, input_ids: NDArray[np.int64]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``."""
        return self._run("text", input_ids)

    def _run(self, tower: str, values: NDArray[Any]) -> Floats:
        requests = self._requests.__dict__
        if tower not in requests:
            requests[tower] = self._towers[tower].create_infer_request()
        features: Floats = requests[tower].infer([values])[0].copy()
        return features


def prepare(configuration: Configuration, calibration: Sequence[Path]) -> None:
    """Convert both towers and make them int8 where the variant says so."""
    import torch  # noqa: PLC0415 - converting needs it, running does not
    import transformers  # noqa: PLC0415

    front = FrontEnd(Path(configuration.bundle))
    model = transformers.AutoModel.from_pretrained(configuration.checkpoint, local_files_only=True).eval()
    samples = {
        "vision": [front.preprocess(front.decode(path))["pixel_values"] for path in calibration],
        "text": [front.tokenize(text) for text in SAMPLE_TEXTS],
    }
    for tower in TOWERS:
        module, example = pooled(getattr(model, f"{tower}_model")), torch.from_numpy(np.asarray(samples[tower][0]))
        with torch.no_grad():
            converted = openvino.convert_model(module, example_input=example)
        converted.reshape({0: openvino.PartialShape([-1, *example.shape[1:]])})
        converted = quantize(converted, configuration.variant, samples[tower])
        openvino.save_model(converted, ir_of(configuration, tower), compress_to_fp16=False)


def pooled(tower: Any) -> Any:
    """Return a module that gives a tower's ``pooler_output`` alone."""
    import torch  # noqa: PLC0415 - converting needs it, running does not

    class Pooled(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> Any:
            return tower(values).pooler_output

    module = Pooled()
    module.add_module("tower", tower)
    return module.eval()


def quantize(model: Any, variant: str, samples: Sequence[NDArray[Any]]) -> Any:
    """Return the model as the variant has it."""
    import nncf  # noqa: PLC0415 - running does not need it

    kind = variant.partition(",")[0]
    if kind == "static int8":
        return nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
    if kind == "int8 weights":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    return model


def ir_of(configuration: Configuration, tower: str) -> Path:
    """Return the file of a tower."""
    return Path(configuration.work) / f"{tower}.xml"


load = OpenVINO


def files(configuration: Configuration) -> list[Path]:
    """Return the files of both towers and the tokenizer."""
    return [*Path(configuration.work).glob("*.*"), FrontEnd(Path(configuration.bundle)).model.bundle.tokenizer_path]


def packages(_configuration: Configuration) -> tuple[str, ...]:
    """Return the packages that compute and quantize."""
    return ("openvino", "nncf")
