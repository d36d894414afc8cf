"""Checkpoints saved by Hugging Face transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...config import (
    CONFIG,
    CONFIGS,
    OPEN_CLIP_CONFIG,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    WITHOUT_EFFECT,
    read_document,
)
from ...errors import CheckpointError
from .refused import refuse_config
from .source import Json, Report, Request, Source
from .tensor import Tensors
from .weight_files import TRANSFORMERS_FILES, find_weights, open_weights

_ANCHORS = ("vision_model.", "text_model.")
_PARTS = {"model_type", "text_config", "vision_config"}


def open_hugging_face(request: Request) -> Source:
    """Open a folder with ``config.json``.

    Raises:
        CheckpointError: the folder is incomplete, or not of a SigLIP with two towers.
    """
    folder = request.path
    config_path = folder / CONFIG
    document = read_document(config_path)
    refuse_config(document, config_path)
    config = plain_config(document, config_path, request.report)
    preprocessor_path, preprocessor = _read_preprocessor(folder)
    weight_files = find_weights(folder, TRANSFORMERS_FILES)
    tensors = open_weights(weight_files, request.opened).without_prefix(*_ANCHORS)
    if any("visual.trunk." in name for name in tensors):
        raise CheckpointError(f"{folder} has weights of open_clip, but no {OPEN_CLIP_CONFIG}. Download that too.")
    return Source(
        layout="transformers",
        path=folder,
        config_path=config_path,
        config=config,
        preprocessor_path=preprocessor_path,
        preprocessor=preprocessor,
        tensors=_heads_of_one_element(tensors),
        weight_files=weight_files,
        tokenizer=folder,
        files=_unchanged(config_path, config) | _unchanged(preprocessor_path, preprocessor),
    )


def plain_config(document: Json, path: Path, report: Report) -> Json:
    """Return ``config.json`` as transformers 4 writes it: plain sizes, and no keys that the towers do not read."""
    ignored = {key for key, value in document.items() if value and key not in _PARTS | WITHOUT_EFFECT}
    if ignored:
        report(f"Ignoring {', '.join(sorted(ignored))} of {path}: outside the towers' configs")
    plain = {key: value for key, value in document.items() if key not in ignored}
    vision = document.get("vision_config")
    if isinstance(vision, dict):
        plain["vision_config"] = {
            key: _side(value, key, path) if key in ("image_size", "patch_size") else value
            for key, value in vision.items()
        }
    return plain


def _side(value: Any, name: str, path: Path) -> Any:
    """Return the one side of a square that is given as a list of two."""
    if not isinstance(value, list):
        return value
    if len(value) not in (1, 2) or value[0] != value[-1]:
        raise CheckpointError(f"{path} has {name} {value!r}, expected a number, or twice the same.")
    return value[0]


def _read_preprocessor(folder: Path) -> tuple[Path, Json]:
    """Return the settings of images in the flat form, and their file; the nested ones come first, as in transformers.

    Raises:
        CheckpointError: the folder has neither form.
    """
    path = folder / PREPROCESSOR_CONFIG
    if (folder / PROCESSOR_CONFIG).exists():
        nested = read_document(folder / PROCESSOR_CONFIG).get("image_processor")
        if isinstance(nested, dict):
            return folder / PROCESSOR_CONFIG, _with_sides(nested)
    return path, _with_sides(read_document(path))


def _unchanged(path: Path, document: Json) -> dict[str, bytes]:
    """Return the bytes of a config file that a bundle can hold as it is."""
    same = path.name in CONFIGS and read_document(path) == document
    return {path.name: path.read_bytes()} if same else {}


def _with_sides(document: Json) -> Json:
    size = document.get("size")
    if type(size) is int:
        return document | {"size": {"height": size, "width": size}}
    return document


def _heads_of_one_element(tensors: Tensors) -> Tensors:
    """Return the tensors with the logits' scale and bias as vectors; some files have them as scalars."""
    scalars = {
        name: tensors[name].reshape(1)
        for name in ("logit_scale", "logit_bias")
        if name in tensors and not tensors[name].shape
    }
    return Tensors(tensors | scalars)
