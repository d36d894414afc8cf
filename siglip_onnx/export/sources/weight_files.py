"""Find a folder's weight files and open their tensors: safetensors, PyTorch archives, and shards of both."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ...config import PYTORCH_INDEX, PYTORCH_WEIGHTS, SHARD_INDEX, WEIGHTS
from ...errors import CheckpointError
from ...system.files import open_regular
from ...system.json_files import read_json_object
from ...system.names import check_name, leaves_folder
from .pytorch_file import open_pytorch
from .tensor import DTYPES, Tensor, Tensors

INDEX_END = ".index.json"
TRANSFORMERS_FILES = (WEIGHTS, SHARD_INDEX, PYTORCH_WEIGHTS, PYTORCH_INDEX)
_OF_TRAINING = re.compile(r"(?:optimizer|scheduler|scaler|rng_state.*)\.pth?")


def find_weights(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return the first of ``names`` that the folder has, or the shards if that is an index; else its one .pt or .pth.

    Raises:
        CheckpointError: it has none of them, or a shard is missing or outside the folder.
    """
    for name in names:
        if (folder / name).exists():
            return _shards(folder / name) if name.endswith(INDEX_END) else (folder / name,)
    others = [path for path in sorted(folder.glob("*.pt*")) if path.suffix in (".pt", ".pth")]
    others = [path for path in others if not _OF_TRAINING.fullmatch(path.name)]
    if len(others) == 1:
        return (others[0],)
    if others:
        raise CheckpointError(
            f"{folder} has {len(others)} weight files, {', '.join(path.name for path in others)}. Keep one of them."
        )
    expected = [name for name in names if not name.endswith(INDEX_END)]
    raise CheckpointError(f"{folder} has neither {', '.join(expected[:-1])} nor {expected[-1]}. Download the weights.")


def open_weights(paths: Sequence[Path], opened: ExitStack) -> Tensors:
    """Return the tensors of all files; nothing is read yet.

    Raises:
        CheckpointError: a file is damaged.
    """
    tensors = Tensors()
    for path in paths:
        is_safetensors = path.suffix == ".safetensors"
        tensors.update(_open_safetensors(path, opened) if is_safetensors else open_pytorch(path))
    return tensors


def safetensors_names(path: Path) -> tuple[str, ...]:
    """Return the names of the tensors in a file; none if it cannot be read."""
    try:
        open_regular(path).close()  # the library would wait for a pipe
        with safe_open(path, framework="np") as file:
            return tuple(file.keys())
    except (OSError, SafetensorError):
        return ()


def _open_safetensors(path: Path, opened: ExitStack) -> Tensors:
    try:
        open_regular(path).close()  # the library would wait for a pipe
        file: Any = opened.enter_context(safe_open(path, framework="np"))  # checks the header
        content = np.memmap(path, np.uint8, mode="r")
        size = int(content[:8].view("<u8")[0])
        header = json.loads(content[8 : 8 + size].tobytes())
        data = content[8 + size :]
        return Tensors({name: _describe(header[name], name, data) for name in file.keys()})  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Download the checkpoint again."
        ) from error


def _describe(header: dict[str, Any], name: str, data: NDArray[np.uint8]) -> Tensor:
    """Return a tensor that is a view of the mapped file."""
    dtype, shape, (start, end) = header["dtype"], tuple(header["shape"]), header["data_offsets"]
    return Tensor(name, dtype, shape, lambda: data[start:end].view(DTYPES[dtype]).reshape(shape))


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(read_json_object(index)["weight_map"].values()))
        for name in names:
            check_name(name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}). Download the checkpoint again.") from error
    folder = index.parent
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {index.name} names. Download the rest.")
    outside = [name for name in names if leaves_folder(folder, folder / name)]
    if outside:
        raise CheckpointError(f"{folder / outside[0]} is a link that leads outside the checkpoint. Copy the file here.")
    return tuple(folder / name for name in names)
