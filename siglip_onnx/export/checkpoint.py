"""Open a checkpoint: its configs, its tokenizer, and its weights by the names that transformers gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - registers bfloat16, in which some checkpoints are saved, with numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..config import (
    CONFIG,
    CONFIGS,
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
from ..options import MAX_NUM_PATCHES

POSITIONS_WEIGHT = "vision_model.embeddings.position_embedding.weight"
FLOATS = ("F32", "F16", "BF16", "F64")
Shapes = dict[str, tuple[int, ...]]


class Weights(Protocol):
    """The tensors of a checkpoint by their names in transformers 4.57; each is read when it is used."""

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as f32, in PyTorch's shape.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: all that the exporter needs, independent of the layout of its files.

    Attributes:
        path: the folder, for error messages and for the PyTorch reference.
        config: shapes of both towers.
        preprocessor: how images become the vision tower's inputs.
        weights: the tensors of :func:`expected_shapes`.
        weight_files: the files that hold them, hashed into the manifest.
        config_files: content of the bundle's config files by name.
        tokenizer_dir: the folder of ``spiece.model`` or ``tokenizer.json``.
        opened: closes the weights.
    """

    path: Path
    config: SiglipConfig
    preprocessor: PreprocessorConfig | NaflexPreprocessorConfig
    weights: Weights
    weight_files: tuple[Path, ...]
    config_files: Mapping[str, bytes]
    tokenizer_dir: Path
    opened: ExitStack

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self.opened.close()


class SafetensorsWeights:
    """Weights in safetensors files, which are mapped, not copied."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        """Store for each tensor's name the opened file that holds it."""
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = np.asarray(self._files[name].get_tensor(name), np.float32)
        if not np.isfinite(tensor.sum(dtype=np.float64)):
            raise CheckpointError(f"Weight {name!r} holds NaN or infinity. Download the checkpoint again.")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def check(self, expected: Shapes) -> None:
        """Compare names, types and shapes with those that the config implies.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or does not hold floating-point numbers.
        """
        missing = [name for name in expected if name not in self]
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} of {len(expected)} weights that its config.json implies, "
                f"the first is {missing[0]!r}. Give a complete SigLIP checkpoint with both towers."
            )
        for name, shape in expected.items():
            dtype = self._files[name].get_slice(name).get_dtype()
            if dtype not in FLOATS:
                raise CheckpointError(
                    f"Weight {name!r} is of type {dtype}, expected one of {', '.join(FLOATS)}. "
                    "Give the checkpoint from before it was quantized."
                )
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"Weight {name!r} has shape {self.shape(name)}, but config.json implies {shape}. "
                    "The two do not belong together; download the checkpoint again."
                )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder and check that its weights fit its config.

    Raises:
        CheckpointError: not a SigLIP checkpoint, or incomplete.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {problem}; expected a checkpoint folder with config.json and {WEIGHTS}, as on the Hugging Face "
            "Hub."
        )
    config = read_config(path / CONFIG)
    preprocessor = read_preprocessor_config(path / PREPROCESSOR_CONFIG, config)
    if isinstance(preprocessor, NaflexPreprocessorConfig) and preprocessor.max_num_patches > MAX_NUM_PATCHES:
        raise CheckpointError(
            f"{path / PREPROCESSOR_CONFIG} has max_num_patches {preprocessor.max_num_patches}, expected at most "
            f"{MAX_NUM_PATCHES}. Lower it."
        )
    weight_files = _weight_files(path)
    with ExitStack() as stack:
        opened = [stack.enter_context(_open_safetensors(file)) for file in weight_files]
        weights = SafetensorsWeights({name: file for file in opened for name in file.keys()})  # noqa: SIM118 - no dict
        weights.check(expected_shapes(config))
        return Checkpoint(
            path=path,
            config=config,
            preprocessor=preprocessor,
            weights=weights,
            weight_files=tuple(weight_files),
            config_files={name: (path / name).read_bytes() for name in CONFIGS},
            tokenizer_dir=path,
            opened=stack.pop_all(),
        )


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Download the checkpoint again."
        ) from error


def expected_shapes(config: SiglipConfig) -> Shapes:
    """Return the shape of every weight of a SigLIP with this config, by its name in transformers 4.57."""
    return _vision_shapes(config.vision) | _text_shapes(config.text) | {"logit_scale": (1,), "logit_bias": (1,)}


def _vision_shapes(vision: VisionConfig | NaflexVisionConfig) -> Shapes:
    dim, tower = vision.hidden_size, "vision_model"
    patch: tuple[int, ...] = (vision.num_channels, vision.patch_size, vision.patch_size)
    if isinstance(vision, NaflexVisionConfig):  # a linear layer instead of a convolution
        patch = (math.prod(patch),)
    return {
        f"{tower}.embeddings.patch_embedding.weight": (dim, *patch),
        f"{tower}.embeddings.patch_embedding.bias": (dim,),
        POSITIONS_WEIGHT: (vision.num_patches, dim),
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
            f"{path} has neither {WEIGHTS} nor {SHARD_INDEX}. Convert older files (pytorch_model.bin) "
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
