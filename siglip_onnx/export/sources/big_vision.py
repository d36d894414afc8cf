"""Checkpoints of big_vision: one ``.npz`` file of both towers, without config and tokenizer.

Source: ``models/vit.py``, ``models/proj/image_text/`` of big_vision and ``convert_siglip_to_hf.py`` of transformers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError  # numpy lets it pass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...config import NAFLEX, SENTENCEPIECE, SIGLIP, TOKENIZER
from ...errors import CheckpointError
from ...system.sizes import MAX_DIMENSIONS, bounded_product
from .archive import Archive
from .source import Json, Report, Request, Source
from .tensor import Tensor, Tensors, identity_layer, join_rows

_DTYPES = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "|V2": "BF16"}  # numpy has no bfloat16, and saves it as bytes
_PREFIX = "params/"
_PATCHES, _TOKENS = "img/embedding/kernel", "txt/Embed_0/embedding"
_ATTENTION = "MultiHeadDotProductAttention_0"
_BLOCK = re.compile(r"(.*/encoderblock)_(\d+)/(.*)")
_MAX_HEADER_BYTES = 10_000
_MAX_TENSORS = 20_000  # the largest checkpoint has about 1,300, counted by layer


def open_big_vision(request: Request) -> Source:
    """Open an ``.npz`` file; its config follows from the shapes.

    Raises:
        CheckpointError: the file is damaged, of another model, or no tokenizer is given.
    """
    path = request.path
    tensors = _by_layer(_read_arrays(path, request.report))
    if _PATCHES not in tensors:
        raise CheckpointError(
            f"{path} has no array {_PATCHES}, expected a checkpoint of big_vision with both towers of a SigLIP."
        )
    if request.tokenizer is None and request.needs_tokenizer():
        rows = tensors[_TOKENS].check_dimensions(2).shape[0]
        raise CheckpointError(
            f"{path} has no tokenizer; give the one of its {rows:,} pieces with --tokenizer FILE, a {SENTENCEPIECE} or "
            f"{TOKENIZER}, for example from a SigLIP checkpoint on the Hugging Face Hub with the same vocabulary."
        )
    config = _read_config(tensors)
    named = Tensors(
        [*_vision(tensors, config["vision_config"]), *_text(tensors, config["text_config"]), *_head(tensors)]
    )
    tensors.check_all_used(path)
    return Source(
        layout="big_vision",
        path=path,
        config_path=path,
        config=config,
        preprocessor_path=path,
        preprocessor=_preprocessor(config),
        tensors=named,
        weight_files=(path,),
        tokenizer=request.tokenizer,
        facts={"layout": "big_vision"},
    )


def _read_arrays(path: Path, report: Report) -> Tensors:
    """Return the arrays of both towers in an ``.npz`` file, mapped, without the prefix ``params/``."""
    archive = Archive(path)
    arrays, others = Tensors(), []
    for member in archive.members:
        name = member.removesuffix(".npy").removeprefix(_PREFIX)
        if name in arrays:
            raise archive.damaged(f"it has {name!r} twice")
        if name.startswith(("img/", "txt/")) or name in ("t", "b"):
            arrays[name] = _read_array(archive, member, name)
        elif member.startswith(_PREFIX):
            others.append(name)
    if others:
        report(f"Ignoring {len(others)} arrays of {path} outside the two towers, the first is {others[0]!r}")
    return arrays


def _read_array(archive: Archive, member: str, name: str) -> Tensor:
    """Describe one array; its size must be that which its shape implies, so that no header can claim more."""
    start = archive.head(member, _MAX_HEADER_BYTES)
    stream = io.BytesIO(start)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise archive.damaged(f"the header of {member} cannot be read") from error
    if dtype.str not in _DTYPES:
        raise archive.damaged(f"{member} is of type {dtype.str}, expected one of {', '.join(_DTYPES)}")
    header_size, file_size = stream.tell(), archive.size(member)
    is_shape = len(shape) <= MAX_DIMENSIONS and all(side > 0 for side in shape)
    if not is_shape or bounded_product(shape, file_size) * dtype.itemsize != file_size - header_size:
        raise archive.damaged(f"{member} has {file_size:,} bytes, which is not what its shape says")

    def read() -> NDArray[Any]:
        flat = archive.read(member)[header_size:].view(ml_dtypes.bfloat16 if dtype.str == "|V2" else dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")

    return Tensor(name, _DTYPES[dtype.str], shape, read)


def _by_layer(arrays: Tensors) -> Tensors:
    """Return the arrays with one entry per layer: some files have all layers of a tower in one array."""
    layers = Tensors()
    for name, tensor in arrays.items():
        if len(layers) > _MAX_TENSORS:
            raise CheckpointError(f"There are more than {_MAX_TENSORS:,} weights, expected those of two towers.")
        tower, scanned, rest = name.partition("/encoderblock/")
        if not scanned:
            layers[name] = tensor
        elif not tensor.shape or tensor.shape[0] > 1_000:
            raise CheckpointError(f"Weight {name!r} has shape {tensor.shape}, expected the number of layers first.")
        else:
            layers |= {f"{tower}/encoderblock_{number}/{rest}": tensor.row(number) for number in range(tensor.shape[0])}
    return layers


def _read_config(tensors: Tensors) -> Json:
    patches, positions = tensors[_PATCHES].check_dimensions(2, 4), tensors["img/pos_embedding"]
    is_naflex, dim = len(patches.shape) == 2, patches.shape[-1]
    num_positions = math.prod(positions.shape) // max(dim, 1)
    patch_size = math.isqrt(patches.shape[0] // 3) if is_naflex else patches.shape[0]
    grid: Json = {"num_patches": num_positions} if is_naflex else {"image_size": math.isqrt(num_positions) * patch_size}
    tokens, text_positions = tensors[_TOKENS].check_dimensions(2), tensors["txt/pos_embedding"].check_dimensions(2, 3)
    text: Json = {
        "vocab_size": tokens.shape[0],
        "max_position_embeddings": text_positions.shape[-2],
        "projection_size": dim,
    }
    return {
        "architectures": ["Siglip2Model" if is_naflex else "SiglipModel"],
        "model_type": NAFLEX if is_naflex else SIGLIP,
        "vision_config": _encoder_config(tensors, "img/Transformer") | {"patch_size": patch_size} | grid,
        "text_config": _encoder_config(tensors, "txt/Encoder_0") | text,
    }


def _encoder_config(tensors: Tensors, tower: str) -> Json:
    query = tensors[f"{tower}/encoderblock_0/{_ATTENTION}/query/kernel"].check_dimensions(3)
    hidden = tensors[f"{tower}/encoderblock_0/MlpBlock_0/Dense_0/kernel"].check_dimensions(2)
    numbers = {match[2] for name in tensors if (match := _BLOCK.fullmatch(name)) and name.startswith(tower)}
    return {
        "hidden_size": query.shape[0],
        "intermediate_size": hidden.shape[1],
        "num_hidden_layers": len(numbers),
        "num_attention_heads": query.shape[1],
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def _preprocessor(config: Json) -> Json:
    """Return the settings of transformers for these checkpoints: big_vision's own bilinear filter is not in PIL."""
    levels = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
              "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # fmt: skip
    vision = config["vision_config"]
    if config["model_type"] == NAFLEX:
        return levels | {"image_processor_type": "Siglip2ImageProcessor", "patch_size": vision["patch_size"],
                         "max_num_patches": 256}  # fmt: skip
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    return levels | {"image_processor_type": "SiglipImageProcessor", "size": size}


def _vision(tensors: Tensors, config: Json) -> Iterator[tuple[str, Tensor]]:
    old, new, dim = "img", "vision_model", config["hidden_size"]
    kernel = tensors[_PATCHES]
    patches = kernel.transpose() if len(kernel.shape) == 2 else kernel.transpose(3, 2, 0, 1)
    yield f"{new}.embeddings.patch_embedding.weight", patches
    yield f"{new}.embeddings.patch_embedding.bias", tensors[f"{old}/embedding/bias"]
    yield f"{new}.embeddings.position_embedding.weight", tensors[f"{old}/pos_embedding"].reshape(-1, dim)
    yield from _layers(tensors, f"{old}/Transformer", new, config)
    yield from _norm(tensors, f"{old}/Transformer/encoder_norm", f"{new}.post_layernorm")
    pool, head = f"{old}/MAPHead_0", f"{new}.head"
    yield f"{head}.probe", tensors[f"{pool}/probe"]
    attention = dict(_attention(tensors, f"{pool}/{_ATTENTION}", "", dim))
    for part in ("weight", "bias"):
        rows = [attention.pop(f".{name}_proj.{part}") for name in ("q", "k", "v")]
        yield f"{head}.attention.in_proj_{part}", join_rows(rows)
    for name, tensor in attention.items():
        yield f"{head}.attention{name}", tensor
    yield from _norm(tensors, f"{pool}/LayerNorm_0", f"{head}.layernorm")
    yield from _mlp(tensors, f"{pool}/MlpBlock_0", f"{head}.mlp")


def _text(tensors: Tensors, config: Json) -> Iterator[tuple[str, Tensor]]:
    old, new, dim = "txt", "text_model", config["hidden_size"]
    yield f"{new}.embeddings.token_embedding.weight", tensors[_TOKENS]
    positions = tensors[f"{old}/pos_embedding"].reshape(-1, dim)
    if f"{old}/Encoder_0/pos_embedding" in tensors:  # some old files have two tables, which are added
        more = tensors[f"{old}/Encoder_0/pos_embedding"].reshape(*positions.shape)
        yield (
            f"{new}.embeddings.position_embedding.weight",
            positions.change(positions.shape, lambda rows: rows.astype(np.float32) + more.read().astype(np.float32)),
        )
    else:
        yield f"{new}.embeddings.position_embedding.weight", positions
    yield from _layers(tensors, f"{old}/Encoder_0", new, config)
    yield from _norm(tensors, f"{old}/Encoder_0/encoder_norm", f"{new}.final_layer_norm")
    if f"{old}/head/kernel" in tensors:
        yield from _linear(tensors, f"{old}/head", f"{new}.head")
    else:
        yield from identity_layer(f"{new}.head", dim)


def _head(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    yield "logit_scale", tensors["t"].reshape(1)
    yield "logit_bias", tensors["b"].reshape(1)


def _layers(tensors: Tensors, old: str, new: str, config: Json) -> Iterator[tuple[str, Tensor]]:
    for number in range(config["num_hidden_layers"]):
        block, layer = f"{old}/encoderblock_{number}", f"{new}.encoder.layers.{number}"
        yield from _norm(tensors, f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
        yield from _norm(tensors, f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
        yield from _attention(tensors, f"{block}/{_ATTENTION}", f"{layer}.self_attn", config["hidden_size"])
        yield from _mlp(tensors, f"{block}/MlpBlock_0", f"{layer}.mlp")


def _attention(tensors: Tensors, old: str, new: str, dim: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the projections: flax has the heads as a dimension of their own, and (in, out) weights."""
    for name in ("query", "key", "value"):
        yield f"{new}.{name[0]}_proj.weight", tensors[f"{old}/{name}/kernel"].reshape(dim, dim).transpose()
        yield f"{new}.{name[0]}_proj.bias", tensors[f"{old}/{name}/bias"].reshape(dim)
    yield f"{new}.out_proj.weight", tensors[f"{old}/out/kernel"].reshape(dim, dim).transpose()
    yield f"{new}.out_proj.bias", tensors[f"{old}/out/bias"]


def _mlp(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    for number in (0, 1):
        yield from _linear(tensors, f"{old}/Dense_{number}", f"{new}.fc{number + 1}")


def _linear(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{new}.weight", tensors[f"{old}/kernel"].transpose()
    yield f"{new}.bias", tensors[f"{old}/bias"]


def _norm(tensors: Tensors, old: str, new: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{new}.weight", tensors[f"{old}/scale"]
    yield f"{new}.bias", tensors[f"{old}/bias"]
