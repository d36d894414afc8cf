"""Recognize the layout of a checkpoint by its files, for folders and for repositories that are not downloaded yet."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from pathlib import Path

from .config import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    PYTORCH_INDEX,
    PYTORCH_WEIGHTS,
    SHARD_INDEX,
    WEIGHTS,
)
from .errors import CheckpointError
from .system.json_files import read_json
from .system.names import check_name

ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_TRANSFORMERS = "modules.json"
_OTHER_WEIGHTS = (SHARD_INDEX, PYTORCH_WEIGHTS, PYTORCH_INDEX)  # which only transformers writes beside a config.json
LAYOUT_FILES = (OPEN_CLIP_CONFIG, CONFIG, WEIGHTS, *OPEN_CLIP_WEIGHTS, *_OTHER_WEIGHTS)


def is_open_clip(files: Container[str], weight_names: Callable[[], Iterable[str]]) -> bool:
    """Say whether a checkpoint is open_clip's: it has that config, and no weights of transformers.

    Args:
        files: the names of its files.
        weight_names: returns the names of the weights in ``model.safetensors``, of which open_clip writes such files
            too; called only if they decide.
    """
    if OPEN_CLIP_CONFIG not in files:
        return False
    if CONFIG in files and WEIGHTS in files:
        return not any("vision_model.embeddings." in name for name in weight_names())
    has_own = any(name in files for name in OPEN_CLIP_WEIGHTS)
    return CONFIG not in files or has_own or not any(name in files for name in _OTHER_WEIGHTS)


def transformer_folder(listing: Path) -> str:
    """Return the folder of the model that sentence-transformers wraps, beside its ``modules.json``; "" for the same.

    Raises:
        CheckpointError: the file is damaged, or names a module that changes the embeddings.
    """
    try:
        modules = read_json(listing)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        folder = str(modules[0]["path"])
        if folder:
            check_name(folder)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{listing} is damaged ({error!r}). Download the checkpoint again.") from error
    unsupported = [kind for kind in kinds[1:] if kind != "Normalize"]
    if unsupported:
        raise CheckpointError(
            f"{listing.parent} is a sentence-transformers model with a {unsupported[0]} module, which changes the "
            "embeddings. This version exports such models without further modules."
        )
    return folder
