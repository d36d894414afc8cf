"""Checkpoints saved by Hugging Face transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path

from ...config import (
    CLASSIFIER,
    CONFIG,
    CONFIGS,
    DUAL,
    IMAGE_STEPS,
    OPEN_CLIP_CONFIG,
    PREPROCESSOR_CONFIG,
    SINGLE_TOWERS,
    TEXT,
    TOWERS_OF,
    VISION,
    WITHOUT_EFFECT,
    checkpoint_kind,
    is_vision_language,
    plain_sizes,
    read_document,
    read_preprocessor_document,
)
from ...errors import CheckpointError
from .labels import read_labels, read_problem_type
from .refused import refuse_config
from .source import Json, Report, Request, Source
from .tensor import Tensors
from .weight_files import TRANSFORMERS_FILES, find_weights, open_weights

_TOWER_ANCHORS = {VISION: "embeddings.patch_embedding.weight", TEXT: "embeddings.token_embedding.weight"}
_TOWER_PARTS = ("embeddings.", "encoder.", "post_layernorm.", "final_layer_norm.", "head.")
_CLASSIFIER, _HEADS, _PROBE = "classifier", ("logit_scale", "logit_bias"), "vision_model.head.probe"
_PATCHES, _CHANNELS = "vision_model.embeddings.patch_embedding.weight", 3
_PARTS = {"model_type", "text_config", "vision_config"}
# Keys of a vision-language model's vision_config that describe its projector, not the tower.
_OF_PROJECTOR = {"num_image_tokens", "num_positions", "projection_dim", "projector_hidden_act"}


def open_hugging_face(request: Request) -> Source:
    """Open a folder with ``config.json``.

    Raises:
        CheckpointError: the folder is incomplete, or not of a SigLIP.
    """
    folder = request.path
    config_path = folder / CONFIG
    document = read_document(config_path)
    refuse_config(document, config_path)
    kind = checkpoint_kind(document)
    tokenizer_path = folder if TEXT in request.towers(kind) else None
    preprocessor_path, preprocessor = folder / PREPROCESSOR_CONFIG, Json()
    if VISION in request.towers(kind):
        preprocessor_path, preprocessor = read_preprocessor_document(folder)
    weight_files = find_weights(folder, TRANSFORMERS_FILES)
    tensors = open_weights(weight_files, request.opened)
    if any("visual.trunk." in name for name in tensors):
        raise CheckpointError(f"{folder} has weights of open_clip, but no {OPEN_CLIP_CONFIG}. Download that too.")
    named = _of_kind(tensors, kind)
    if (others := tensors.unused()) and not is_vision_language(document):
        request.report(
            f"Ignoring {len(others)} weights of {weight_files[0]} outside the model of {CONFIG}, the first is "
            f"{others[0]!r}"
        )
    tensors = _heads_of_one_element(named)
    channels_first = tensors
    if VISION in TOWERS_OF[kind]:
        channels_first = _channels_first(tensors, config_path, request.report)
    layout = "transformers" if channels_first is tensors else "MLX"
    if is_vision_language(document):
        document = _tower_config(document, config_path, request.report, has_head=_PROBE in tensors)
        preprocessor = _without_tiles(preprocessor, preprocessor_path, request.report)
    config = plain_config(document, config_path, request.report)
    labels: tuple[str, ...] = ()
    problem_type = ""
    if kind == CLASSIFIER:
        (num_rows,) = tensors[f"{_CLASSIFIER}.bias"].check_dimensions(1).shape
        labels = read_labels(document, num_rows, config_path, request.report)
        problem_type = read_problem_type(document, num_rows, config_path)
    return Source(
        layout=layout,
        path=folder,
        config_path=config_path,
        config=config,
        preprocessor_path=preprocessor_path,
        preprocessor=preprocessor,
        tensors=channels_first,
        weight_files=weight_files,
        tokenizer=tokenizer_path,
        files=copied_file(config_path, config) | (copied_file(preprocessor_path, preprocessor) if preprocessor else {}),
        facts={} if layout == "transformers" else {"layout": layout},
        kind=kind,
        labels=labels,
        problem_type=problem_type,
    )


def _of_kind(tensors: Tensors, kind: str) -> Tensors:
    """Return the tensors by their names in a SigLIP of this kind, without those of a larger model around it.

    Raises:
        CheckpointError: there are several such models.
    """
    named, model = Tensors(), ""
    for tower in TOWERS_OF[kind]:
        anchor = _TOWER_ANCHORS[tower]
        if name := tensors.find(anchor):
            start = name.removesuffix(anchor)
            model = start.removesuffix(f"{tower}_model.")
            # A tower alone may have no name of its own, so that other weights stand beside its parts.
            named |= tensors.below(start, f"{tower}_model.", ("",) if start else _TOWER_PARTS)
    if kind == CLASSIFIER and (name := tensors.find(f"{_CLASSIFIER}.bias")):
        named |= tensors.below(name.removesuffix("bias"), f"{_CLASSIFIER}.")
    for head in _HEADS if kind == DUAL else ():
        # Losses and wrappers may have one of their own.
        if name := (model + head if model + head in tensors else tensors.find(head)):
            named[head] = tensors[name]
    return named


def _tower_config(document: Json, path: Path, report: Report, *, has_head: bool) -> Json:
    """Return the config of the vision tower inside a vision-language model."""
    report(f"{path} is of a vision-language model ({document.get('model_type')}): exporting its vision tower")
    tower = {key: value for key, value in document["vision_config"].items() if key not in _OF_PROJECTOR}
    return {"architectures": ["SiglipVisionModel"]} | tower | {"vision_use_head": has_head}


def _without_tiles(preprocessor: Json, path: Path, report: Report) -> Json:
    """Return the settings of images without steps that a vision-language model takes before its vision tower."""
    ignored = [key for key, value in preprocessor.items() if key.startswith("do_") and value and key not in IMAGE_STEPS]
    if ignored:
        report(f"Ignoring {', '.join(ignored)} of {path}: the vision tower gets whole images")
    return {key: value for key, value in preprocessor.items() if key not in ignored}


def plain_config(document: Json, path: Path, report: Report) -> Json:
    """Return ``config.json`` as transformers 4 writes it: plain sizes, and no keys that the towers do not read."""
    if str(document.get("model_type")) in SINGLE_TOWERS:
        return plain_sizes(document, path)
    ignored = {key for key, value in document.items() if value and key not in _PARTS | WITHOUT_EFFECT}
    if ignored:
        report(f"Ignoring {', '.join(sorted(ignored))} of {path}: outside the towers' configs")
    plain = {key: value for key, value in document.items() if key not in ignored}
    vision = document.get("vision_config")
    if isinstance(vision, dict):
        plain["vision_config"] = plain_sizes(vision, path)
    return plain


def copied_file(path: Path, document: Json) -> dict[str, bytes]:
    """Return the bytes of a config file that a bundle can hold as it is."""
    same = path.name in CONFIGS and read_document(path) == document
    return {path.name: path.read_bytes()} if same else {}


def _heads_of_one_element(tensors: Tensors) -> Tensors:
    """Return the tensors with the logits' scale and bias as vectors; some files have them as scalars."""
    scalars = {name: tensors[name].reshape(1) for name in _HEADS if name in tensors and not tensors[name].shape}
    return Tensors(tensors | scalars)


def _channels_first(tensors: Tensors, path: Path, report: Report) -> Tensors:
    """Return the tensors with the patch embedding as PyTorch stores it; MLX has the channels last."""
    weight = tensors.get(_PATCHES)
    if weight is None or len(weight.shape) != 4 or weight.shape[3] != _CHANNELS or weight.shape[1] == _CHANNELS:
        return tensors
    report(f"{path.parent} has the weights of MLX: the channels of its patch embedding are moved to the front")
    return Tensors(tensors | {_PATCHES: weight.transpose(0, 3, 1, 2)})
