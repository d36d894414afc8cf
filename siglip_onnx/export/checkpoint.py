"""A Hugging Face checkpoint folder: its configs, and its weights read one by one from mapped files."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16, in which some checkpoints are saved
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..config import (
    CONFIG,
    PREPROCESSOR_CONFIG,
    SHARD_INDEX,
    WEIGHTS,
    EncoderConfig,
    NaflexPreprocessorConfig,
    NaflexVisionConfig,
    PreprocessorConfig,
    SiglipConfig,
    TextConfig,
    VisionConfig,
    read_config,
    read_preprocessor_config,
)
from ..errors import CheckpointError

FLOATS = ("F32", "F16", "BF16", "F64")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint."""

    path: Path
    config: SiglipConfig
    preprocessor: PreprocessorConfig | NaflexPreprocessorConfig
    weights: Weights


class Weights:
    """The tensors of a checkpoint by name; nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        """Map ``model.safetensors``, or the shards of its index, in the folder ``path``."""
        self._files = ExitStack()
        self._homes: dict[str, Any] = {}
        for file in _weight_files(path):
            try:
                opened = self._files.enter_context(safe_open(file, framework="np"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{file} cannot be read as safetensors: {error}. Download the checkpoint again."
                ) from error
            self._homes |= dict.fromkeys(opened.keys(), opened)
        self.paths = _weight_files(path)

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as f32, in the shape PyTorch gave it.

        Raises:
            CheckpointError: it holds values that are no numbers.
        """
        tensor = np.asarray(self._homes[name].get_tensor(name), np.float32)
        if not np.isfinite(tensor.sum(dtype=np.float64)):
            raise CheckpointError(f"Weight {name!r} holds infinite values or nan; the checkpoint is damaged.")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._homes[name].get_slice(name).get_shape())

    def check(self, expected: Shapes) -> None:
        """Compare names and shapes with what the config promises.

        Raises:
            CheckpointError: a tensor is missing, of another shape, or no floating-point one.
        """
        missing = [name for name in expected if name not in self]
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} of {len(expected)} weights that its config.json promises, "
                f"first {missing[0]!r}. Give a complete SigLIP checkpoint with both towers."
            )
        for name, shape in expected.items():
            dtype = self._homes[name].get_slice(name).get_dtype()
            if dtype not in FLOATS:
                raise CheckpointError(
                    f"Weight {name!r} is of type {dtype}, expected one of {', '.join(FLOATS)}. "
                    "Give the checkpoint as it was before it was quantized."
                )
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"Weight {name!r} has shape {self.shape(name)}, but config.json promises {shape}. "
                    "The two do not belong together; download the checkpoint again."
                )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder and check that its weights fit its config.

    Raises:
        CheckpointError: not a SigLIP checkpoint, or incomplete.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {found}; expected a checkpoint folder with config.json and {WEIGHTS}, as on the Hugging Face Hub."
        )
    config = read_config(path / CONFIG)
    preprocessor = read_preprocessor_config(path / PREPROCESSOR_CONFIG, config)
    weights = Weights(path)
    weights.check(expected_shapes(config))
    return Checkpoint(path, config, preprocessor, weights)


def expected_shapes(config: SiglipConfig) -> Shapes:
    """Return name and shape of every weight of a SigLIP of this config, named as in transformers 4.57."""
    return _vision_shapes(config.vision) | _text_shapes(config.text) | {"logit_scale": (1,), "logit_bias": (1,)}


def _vision_shapes(vision: VisionConfig | NaflexVisionConfig) -> Shapes:
    dim, tower = vision.hidden_size, "vision_model"
    patch: tuple[int, ...] = (vision.num_channels, vision.patch_size, vision.patch_size)
    if isinstance(vision, NaflexVisionConfig):  # a linear layer there, a convolution otherwise
        patch = (math.prod(patch),)
    return {
        f"{tower}.embeddings.patch_embedding.weight": (dim, *patch),
        f"{tower}.embeddings.patch_embedding.bias": (dim,),
        f"{tower}.embeddings.position_embedding.weight": (vision.num_patches, dim),
        **_encoder_shapes(tower, vision),
        **_norm_shapes(f"{tower}.post_layernorm", dim),
        f"{tower}.head.probe": (1, 1, dim),
        f"{tower}.head.attention.in_proj_weight": (3 * dim, dim),
        f"{tower}.head.attention.in_proj_bias": (3 * dim,),
        **_linear_shapes(f"{tower}.head.attention.out_proj", dim, dim),
        **_norm_shapes(f"{tower}.head.layernorm", dim),
        **_mlp_shapes(f"{tower}.head.mlp", dim, vision.intermediate_size),
    }


def _text_shapes(text: TextConfig) -> Shapes:
    dim, tower = text.hidden_size, "text_model"
    return {
        f"{tower}.embeddings.token_embedding.weight": (text.vocab_size, dim),
        f"{tower}.embeddings.position_embedding.weight": (text.max_position_embeddings, dim),
        **_encoder_shapes(tower, text),
        **_norm_shapes(f"{tower}.final_layer_norm", dim),
        **_linear_shapes(f"{tower}.head", dim, text.embedding_dim),
    }


def _encoder_shapes(tower: str, config: EncoderConfig) -> Shapes:
    shapes: Shapes = {}
    for number in range(config.num_hidden_layers):
        layer, dim = f"{tower}.encoder.layers.{number}", config.hidden_size
        shapes |= _norm_shapes(f"{layer}.layer_norm1", dim) | _norm_shapes(f"{layer}.layer_norm2", dim)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear_shapes(f"{layer}.self_attn.{projection}", dim, dim)
        shapes |= _mlp_shapes(f"{layer}.mlp", dim, config.intermediate_size)
    return shapes


def _mlp_shapes(prefix: str, dim: int, width: int) -> Shapes:
    return _linear_shapes(f"{prefix}.fc1", dim, width) | _linear_shapes(f"{prefix}.fc2", width, dim)


def _linear_shapes(prefix: str, width_in: int, width_out: int) -> Shapes:
    return {f"{prefix}.weight": (width_out, width_in), f"{prefix}.bias": (width_out,)}


def _norm_shapes(prefix: str, dim: int) -> Shapes:
    return {f"{prefix}.weight": (dim,), f"{prefix}.bias": (dim,)}


def _weight_files(path: Path) -> list[Path]:
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    index = path / SHARD_INDEX
    if not index.exists():
        raise CheckpointError(
            f"{path} has neither {WEIGHTS} nor {SHARD_INDEX}. Older files (pytorch_model.bin) must be converted "
            "to safetensors first."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}). Download the checkpoint again.") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}, which {SHARD_INDEX} names. Download the rest.")
    return [path / name for name in names]
