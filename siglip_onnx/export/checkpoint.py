"""Open a checkpoint: its configs, its tokenizer, and its weights by the names that transformers gives them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import (
    CLASSIFIER,
    CONFIG,
    PREPROCESSOR_CONFIG,
    TEXT,
    TOWERS_OF,
    EncoderConfig,
    NaflexPreprocessorConfig,
    NaflexVisionConfig,
    PreprocessorConfig,
    SiglipConfig,
    TextConfig,
    VisionConfig,
    parse_config,
    parse_preprocessor_config,
)
from ..errors import CheckpointError
from ..options import MAX_NUM_PATCHES
from .sources import Request, open_source
from .sources.source import Report, Source
from .sources.tensor import DTYPES, Tensors, release_pages

_BUFFERS = "position_ids"  # not weights; old versions of transformers wrote them
POSITIONS_WEIGHT = "vision_model.embeddings.position_embedding.weight"
ROWS_AT_ONCE = 16384
Shapes = dict[str, tuple[int, ...]]


class Weights(Protocol):
    """The tensors of a checkpoint by their names in transformers 4.57; each is read when it is used."""

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as f32, in PyTorch's shape.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor in blocks of rows, so that a large table is never in memory as a whole.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: all that the exporter needs, independent of the layout of its files.

    Attributes:
        path: the folder or file, for error messages and for the PyTorch reference.
        layout: the name of its layout; only the files of ``transformers`` can be loaded by that library.
        kind: the kind of model that is exported.
        config: shapes of its towers.
        preprocessor: how images become the vision tower's inputs; None without it.
        weights: the tensors of :func:`expected_shapes`.
        weight_files: the files that hold them, hashed into the manifest.
        config_files: content of the bundle's config files by name.
        tokenizer: a ``spiece.model`` or ``tokenizer.json``, or the folder of one; None without a text tower.
        cleaning: how open_clip cleans texts, or None to clean them as transformers does.
        facts: what the manifest says about the source, besides its name and hash.
        labels: of a classifier, in the order of its rows.
        problem_type: of a classifier.
        opened: closes the weights.
    """

    path: Path
    layout: str
    kind: str
    config: SiglipConfig
    preprocessor: PreprocessorConfig | NaflexPreprocessorConfig | None
    weights: Weights
    weight_files: tuple[Path, ...]
    config_files: Mapping[str, bytes]
    tokenizer: Path | None
    cleaning: str | None
    facts: Mapping[str, Any]
    labels: tuple[str, ...]
    problem_type: str
    opened: ExitStack

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self.opened.close()


class CheckedWeights:
    """Weights of a source, each checked when it is read."""

    def __init__(self, tensors: Tensors) -> None:
        """Store the tensors, which are not read yet."""
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name].read()
        release_pages(tensor)  # of the tensors that were read before it
        return _check_finite(name, tensor)

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        tensor = self._tensors[name].read()
        for start in range(0, len(tensor), ROWS_AT_ONCE):
            release_pages(tensor)
            yield _check_finite(name, tensor[start : start + ROWS_AT_ONCE])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def check(self, config: SiglipConfig) -> None:
        """Compare names, types and shapes with those that the config implies.

        Raises:
            CheckpointError: a tensor is missing, has another shape, does not hold floating-point numbers, or is one
                that the config does not imply.
        """
        expected = expected_shapes(config)
        missing = [name for name in expected if name not in self._tensors]
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} of {len(expected)} weights that its config.json implies, "
                f"the first is {missing[0]!r}. Give a complete SigLIP checkpoint."
            )
        for name, shape in expected.items():
            dtype = self._tensors[name].dtype
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"Weight {name!r} is of type {dtype}, expected one of {', '.join(DTYPES)}. "
                    "Give the checkpoint from before it was quantized."
                )
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"Weight {name!r} has shape {self.shape(name)}, but config.json implies {shape}. "
                    "The two do not belong together; download the checkpoint again."
                )
        parts = {name.partition(".")[0] for name in expected}
        known = expected.keys() | _unused_head(config)
        others = sorted(name for name in self._tensors if name.partition(".")[0] in parts and name not in known)
        others = [name for name in others if not name.endswith(_BUFFERS)]
        if others:
            raise CheckpointError(
                f"The checkpoint has {len(others)} weights that its config.json does not imply, the first is "
                f"{others[0]!r}. They may change the embeddings. If they are those of an adapter, merge them into "
                "the others; otherwise correct config.json or remove them."
            )


def _check_finite(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the array as f32.

    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    floats = np.asarray(array, np.float32)
    if not np.isfinite(floats.sum(dtype=np.float64)):
        raise CheckpointError(f"Weight {name!r} holds NaN or infinity. Download the checkpoint again.")
    return floats


def open_checkpoint(
    path: Path,
    *,
    base: Path | None = None,
    tokenizer: Path | None = None,
    tower: str | None = None,
    report: Report = lambda _line: None,
) -> Checkpoint:
    """Open a checkpoint of any supported layout and check that its weights fit its config.

    Args:
        path: the folder or file.
        base: the checkpoint folder that a LoRA adapter was trained on.
        tokenizer: a ``spiece.model`` or ``tokenizer.json``, for a checkpoint that has none.
        tower: the only tower to export, ``"vision"`` or ``"text"``; all if None.
        report: called with a line about each thing that is ignored.

    Raises:
        CheckpointError: not a SigLIP checkpoint, or incomplete.
    """
    with ExitStack() as stack:
        source = open_source(Request(path, stack, base, tokenizer, report, tower))
        if tower is not None and tower not in TOWERS_OF[source.kind]:
            raise CheckpointError(f"{path} has no {tower} tower to export; leave out the option --tower {tower}.")
        kind = tower or source.kind
        if tokenizer is not None:
            _check_tokenizer(path, source, tokenizer, kind)
        config = parse_config(source.config, source.config_path, kind)
        if kind == CLASSIFIER:
            config = replace(config, num_labels=len(source.labels))
        preprocessor = None
        if config.vision is not None:
            preprocessor = parse_preprocessor_config(source.preprocessor, config, source.preprocessor_path)
        if isinstance(preprocessor, NaflexPreprocessorConfig) and preprocessor.max_num_patches > MAX_NUM_PATCHES:
            raise CheckpointError(
                f"{source.preprocessor_path} has max_num_patches {preprocessor.max_num_patches}, expected at most "
                f"{MAX_NUM_PATCHES}. Lower it."
            )
        weights = CheckedWeights(source.tensors)
        weights.check(config)
        documents = {CONFIG: source.config} | ({PREPROCESSOR_CONFIG: source.preprocessor} if preprocessor else {})
        written = {name: json.dumps(document, indent=2).encode() for name, document in documents.items()}
        return Checkpoint(
            path=path,
            layout=source.layout,
            kind=kind,
            config=config,
            preprocessor=preprocessor,
            weights=weights,
            weight_files=source.weight_files,
            config_files=written | {name: content for name, content in source.files.items() if name in written},
            tokenizer=source.tokenizer if config.text is not None else None,
            cleaning=source.cleaning,
            facts=source.facts,
            labels=source.labels if kind == CLASSIFIER else (),
            problem_type=source.problem_type if kind == CLASSIFIER else "",
            opened=stack.pop_all(),
        )


def _check_tokenizer(path: Path, source: Source, tokenizer: Path, kind: str) -> None:
    """Check that a tokenizer that the user gave is needed."""
    if TEXT not in TOWERS_OF[kind]:
        raise CheckpointError(f"No text tower of {path} is exported. Leave out the option --tokenizer.")
    if source.tokenizer != tokenizer:
        raise CheckpointError(f"{path} has its own tokenizer, which is used. Leave out the option --tokenizer.")


def expected_shapes(config: SiglipConfig) -> Shapes:
    """Return the shape of every weight of a SigLIP with this config, by its name in transformers 4.57."""
    shapes: Shapes = {}
    if config.vision is not None:
        shapes |= _vision_shapes(config.vision, with_head=config.vision.vision_use_head and not config.num_labels)
    if config.text is not None:
        shapes |= _text_shapes(config.text)
    if config.vision is not None and config.text is not None:
        shapes |= {"logit_scale": (1,), "logit_bias": (1,)}
    if config.num_labels:
        shapes |= _linear_shapes("classifier", config.embedding_dim, config.num_labels)
    return shapes


def _unused_head(config: SiglipConfig) -> Shapes:
    """Return the weights of the pooling head, which classifiers have in their files though they do not use it."""
    return {} if config.vision is None else _vision_shapes(config.vision, with_head=True)


def _vision_shapes(vision: VisionConfig | NaflexVisionConfig, *, with_head: bool) -> Shapes:
    dim, tower = vision.hidden_size, "vision_model"
    patch: tuple[int, ...] = (vision.num_channels, vision.patch_size, vision.patch_size)
    if isinstance(vision, NaflexVisionConfig):  # a linear layer instead of a convolution
        patch = (math.prod(patch),)
    shapes: Shapes = {
        f"{tower}.embeddings.patch_embedding.weight": (dim, *patch),
        f"{tower}.embeddings.patch_embedding.bias": (dim,),
        POSITIONS_WEIGHT: (vision.num_patches, dim),
        **_encoder_shapes(tower, vision),
        **_norm_shapes(f"{tower}.post_layernorm", dim),
    }
    if not with_head:
        return shapes
    return shapes | {
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
