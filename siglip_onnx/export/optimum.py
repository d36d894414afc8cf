"""The second, independent exporter: trace the PyTorch model with optimum-onnx and rename weights as in the checkpoint.

Needs torch, transformers and optimum-onnx: ``pip install "siglip-onnx[optimum]"``. It cross-checks the hand-written
``towers.py`` and is the baseline of optimum's users.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers
from onnx_ir.passes.common import IdentityEliminationPass
from optimum.exporters.onnx import OnnxConfig, export
from optimum.utils import NormalizedConfig

from ..config import NaflexVisionConfig, SiglipConfig
from ..errors import CheckpointError
from ..verify.pytorch import LOADING
from .checkpoint import expected_shapes
from .graph import IR_VERSION, MICROSOFT

OPSET = 18  # optimum's own default
_DUMMY_BATCH = 2  # a batch of one would be traced as a constant
_LAYER_END = "Add_1"  # the second of the two residual sums of an encoder layer


class TowerOnnxConfig(OnnxConfig):  # type: ignore[misc] # optimum is not typed
    """Optimum's description of a tower, whose only output is ``pooler_output``."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The name of the output and of its dynamic dimension."""
        return {"pooler_output": {0: "batch"}}


class VisionOnnxConfig(TowerOnnxConfig):
    """Fixed resolution: ``pixel_values`` f32 ``(N, 3, S, S)``."""

    inputs = {"pixel_values": {0: "batch"}}  # noqa: RUF012 - overrides a property

    def generate_dummy_inputs(self, framework: str = "pt", **_shapes: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return inputs to trace with."""
        config = self._config
        return {"pixel_values": torch.rand(_DUMMY_BATCH, config.num_channels, config.image_size, config.image_size)}


class NaflexOnnxConfig(TowerOnnxConfig):
    """NaFlex: patches, the mask of padding, and positions; see :func:`.towers.naflex_vision_tower`."""

    inputs = {  # noqa: RUF012 - overrides a property
        "pixel_values": {0: "batch", 1: "patches"},
        "pixel_attention_mask": {0: "batch", 1: "patches"},
        "position_embeddings": {0: "batch", 1: "patches"},
    }

    def generate_dummy_inputs(self, framework: str = "pt", **_shapes: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return inputs to trace with: six patches, of which one is padding."""
        config, patches = self._config, 6
        mask = torch.ones(_DUMMY_BATCH, patches, dtype=torch.int32)
        mask[:, -1] = 0
        return {
            "pixel_values": torch.rand(_DUMMY_BATCH, patches, config.num_channels * config.patch_size**2),
            "pixel_attention_mask": mask,
            "position_embeddings": torch.rand(_DUMMY_BATCH, patches, config.hidden_size),
        }


class TextOnnxConfig(TowerOnnxConfig):
    """``input_ids`` i64 ``(M, T)``."""

    inputs = {"input_ids": {0: "batch"}}  # noqa: RUF012 - overrides a property

    def generate_dummy_inputs(self, framework: str = "pt", **_shapes: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return inputs to trace with."""
        return {"input_ids": torch.zeros(_DUMMY_BATCH, self._config.max_position_embeddings, dtype=torch.int64)}


class NaflexTower(transformers.Siglip2VisionModel):
    """The reference's NaFlex tower; two parts that cannot be traced for a dynamic number of patches are replaced."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model.head.forward = self._pool  # type: ignore[method-assign,assignment]

    def forward(
        self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor, position_embeddings: torch.Tensor
    ) -> Any:
        """Run the reference on positions that are already resized: no ONNX operator resizes exactly as PyTorch does."""
        embeddings: Any = self.vision_model.embeddings
        embeddings.resize_positional_embeddings = lambda *_arguments, **_shapes: position_embeddings
        return self.vision_model(pixel_values, pixel_attention_mask, spatial_shapes=None)

    def _pool(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool as the MAP head does, whose own attention fixes the number of patches when it is traced."""
        head, attention = self.vision_model.head, self.vision_model.head.attention
        query, key, value = (
            torch.nn.functional.linear(rows, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for rows, weight, bias in zip(
                (head.probe, x, x), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
            )
        )
        scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        pooled = attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        output: torch.Tensor = (pooled + head.mlp(head.layernorm(pooled)))[:, 0]
        return output


def trace_towers(checkpoint: Path, config: SiglipConfig, folder: Path) -> None:
    """Trace both towers of a checkpoint into ``folder``, for :func:`read_towers`.

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    naflex = isinstance(config.vision, NaflexVisionConfig)
    vision = NaflexTower if naflex else transformers.SiglipVisionModel
    text = transformers.Siglip2TextModel if naflex else transformers.SiglipTextModel
    _trace(vision, NaflexOnnxConfig if naflex else VisionOnnxConfig, checkpoint, folder / "vision.onnx")
    _trace(text, TextOnnxConfig, checkpoint, folder / "text.onnx")


def read_towers(folder: Path, config: SiglipConfig) -> dict[str, ir.Model]:
    """Return both towers as :func:`.towers.build_towers` does, weights named as in the checkpoint."""
    towers = {tower: ir.load(folder / f"{tower}.onnx") for tower in ("vision", "text")}
    weights = expected_shapes(config).keys()
    for model in towers.values():
        IdentityEliminationPass()(model)  # the tracer inserts Identity nodes for tensors that occur twice
        _name_as_checkpoint(model.graph, weights)
        model.graph.opset_imports[MICROSOFT] = 1
        model.ir_version = IR_VERSION
    return towers


def _trace(kind: Any, onnx_config: type[TowerOnnxConfig], checkpoint: Path, out: Path) -> None:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would warn of the other tower's weights, which are not used
    try:
        # Some checkpoints are saved in half precision; the graph computes in float32.
        model, loading = kind.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True, **LOADING)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"transformers cannot load {checkpoint}: {error}") from error
    finally:
        transformers.logging.set_verbosity(level)
    if loading["missing_keys"]:  # transformers would trace random weights in their place
        raise CheckpointError(
            f"transformers {transformers.__version__} does not find {sorted(loading['missing_keys'])[0]!r} in "
            f"{checkpoint}, whose weights have other names. Use --exporter native."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of Python values, which really are constants here
        export(model, onnx_config(model.config, task="feature-extraction"), out, opset=OPSET)


def _name_as_checkpoint(graph: ir.Graph, weights: Collection[str]) -> None:
    """Name weights and encoder layers as in the checkpoint; the tracer keeps these names only in those of nodes.

    Afterwards every linear layer is a MatMul with a weight ``(in, out)`` named ``<layer>.weight`` and an Add.
    """
    for node in list(graph):
        layer, _, operation = (node.name or "").strip("/").replace("/", ".").rpartition(".")
        if node.op_type == "Gemm":
            # nn.MultiheadAttention computes its output projection without calling the layer.
            _split_gemm(graph, node, f"{layer}.out_proj" if layer.endswith(".attention") else layer)
        elif operation == _LAYER_END and ".encoder.layers." in layer:
            node.outputs[0].name = layer
        for number, value in enumerate(node.inputs):
            name = f"{layer}.{_part_of(node.op_type, number)}"
            if value is not None and value.is_initializer() and name in weights:
                _name_input(graph, node, number, value, name)


def _part_of(op_type: str, number: int) -> str:
    """Return the name of an operator's input within its layer."""
    if op_type == "LayerNormalization":
        return ("input", "weight", "bias")[number]
    return {"MatMul": "weight", "Add": "bias"}.get(op_type, "input")


def _name_input(graph: ir.Graph, node: ir.Node, number: int, value: ir.Value, name: str) -> None:
    """Name a weight; a copy is made of one that the tracer shares between layers because its values are equal."""
    if value.name == name:
        return
    own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    if name in graph.initializers:
        own = graph.initializers[name]
    else:
        graph.register_initializer(own)
    node.replace_input_with(number, own)
    if not value.uses():
        del graph.initializers[str(value.name)]


def _split_gemm(graph: ir.Graph, node: ir.Node, layer: str) -> None:
    """Replace a Gemm, whose weight is ``(out, in)``, by a MatMul and an Add."""
    x, weight, bias = node.inputs
    if weight is None or weight.const_value is None or not node.attributes.get_int("transB", 0):
        raise CheckpointError(f"{layer} was traced as an unknown kind of Gemm. Use the native exporter.")
    out_in = weight.const_value

    def transposed() -> ir.TensorProtocol:
        return ir.tensor(out_in.numpy().T.copy(), name=f"{layer}.weight")

    del graph.initializers[str(weight.name)]
    shape = ir.Shape(tuple(reversed(out_in.shape.numpy())))
    tape = ir.tape.Tape()
    in_out = tape.initializer(ir.LazyTensor(transposed, ir.DataType.FLOAT, shape, name=f"{layer}.weight"))
    graph.register_initializer(in_out)
    result = tape.op("Add", [tape.op("MatMul", [x, in_out]), bias])
    result.name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [node.outputs[0]], [result])
