"""Recognize the layout of a checkpoint by its files and open it; one module per layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...config import CONFIG, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from ...errors import CheckpointError
from ...layouts import ADAPTER_CONFIG, LAYOUT_FILES, SENTENCE_TRANSFORMERS, is_open_clip, transformer_folder
from ...system.names import find_outside
from .big_vision import open_big_vision
from .hugging_face import open_hugging_face
from .open_clip import open_open_clip
from .peft import ADAPTER_WEIGHTS, open_peft
from .refused import refuse_gguf
from .source import Request, Source
from .weight_files import safetensors_names

__all__ = ["Request", "Source", "open_source"]

NPZ = ".npz"
_SUFFIXES = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", NPZ)  # of files that are read


def open_source(request: Request) -> Source:
    """Open a checkpoint of any supported layout.

    Raises:
        CheckpointError: the layout is not supported, or the checkpoint is incomplete.
    """
    path = request.path
    if path.suffix == NPZ and path.is_file() and request.base is None:
        return open_big_vision(request)
    if not path.is_dir():
        refuse_gguf(path)
        problem = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {problem}; expected a checkpoint folder with config.json and {WEIGHTS}, as on the Hugging Face "
            f"Hub, or an {NPZ} file of big_vision."
        )
    if (outside := find_outside(path, _SUFFIXES)) is not None:
        raise CheckpointError(f"{outside} is a link that leads outside the checkpoint. Copy the file there.")
    if (path / ADAPTER_CONFIG).exists():
        return open_peft(request, open_source)
    if request.base is not None:
        raise CheckpointError(f"{path} has no {ADAPTER_CONFIG}, so it is not an adapter. Leave out the option --base.")
    if (path / SENTENCE_TRANSFORMERS).exists():
        request = replace(request, path=path / transformer_folder(path / SENTENCE_TRANSFORMERS))
    return _open_folder(request)


def _open_folder(request: Request) -> Source:
    files = {name for name in LAYOUT_FILES if (request.path / name).exists()}
    if is_open_clip(files, lambda: safetensors_names(request.path / WEIGHTS)):
        return open_open_clip(request)
    if not (request.path / CONFIG).exists():
        refuse_gguf(request.path)
        _refuse_without_config(request.path)
        archives = sorted(request.path.glob(f"*{NPZ}"))
        if len(archives) == 1:
            return open_big_vision(replace(request, path=archives[0]))
        if archives:
            raise CheckpointError(f"{request.path} has {len(archives)} {NPZ} files. Give one of them.")
    return open_hugging_face(request)


def _refuse_without_config(folder: Path) -> None:
    """Raise for weights whose names tell the layout, without the config of that layout."""
    for names, config in ((OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG), (ADAPTER_WEIGHTS, ADAPTER_CONFIG)):
        for name in names:
            if (folder / name).exists():
                raise CheckpointError(
                    f"{folder} has {name}, but not the {config} that belongs to it. Download that too."
                )
