"""Read the head of a checkpoint on the Hub, ``logit_scale`` and ``logit_bias``, from a few kilobytes of its weights."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..config import CONFIG, SHARD_INDEX, WEIGHTS
from ..errors import DownloadError
from ..system.json_files import read_json_object
from .download import Repository, fetch, fetch_range, look_up

_MAX_HEADER_BYTES = 10_000_000
_LENGTH_BYTES = 8  # of the header's length, with which safetensors begin
_FORMATS = {"F32": "<f", "F16": "<e", "F64": "<d", "BF16": "<f"}
NAMES = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class RemoteHead:
    """The head of a checkpoint, its commit, and the content of its ``config.json``, empty if it has none."""

    logit_scale: float
    logit_bias: float
    revision: str
    config: dict[str, Any] = field(default_factory=dict)


def read_remote_head(name: str, revision: str | None) -> RemoteHead:
    """Read the head of ``owner/name`` by HTTP range requests: its header, then one number each.

    Raises:
        DownloadError: there is no such repository, it has no safetensors with a head, or the download fails.
    """
    repository = look_up(name, revision)
    shards = _shards(repository)
    scale, bias = (_read_number(repository, shards[key], key) for key in NAMES)
    return RemoteHead(scale, bias, repository.revision, _config(repository))


def _config(repository: Repository) -> dict[str, Any]:
    if CONFIG not in repository.files:
        return {}
    with TemporaryDirectory() as folder:
        fetch(repository, [CONFIG], Path(folder))
        try:
            return read_json_object(Path(folder) / CONFIG)
        except ValueError as error:
            raise _unusable(repository, f"its {CONFIG} is damaged ({error!r:.100})") from error


def _shards(repository: Repository) -> dict[str, str]:
    """Return the file that holds each number."""
    if WEIGHTS in repository.files:
        return dict.fromkeys(NAMES, WEIGHTS)
    if SHARD_INDEX not in repository.files:
        raise _unusable(repository, f"it has neither {WEIGHTS} nor {SHARD_INDEX}")
    with TemporaryDirectory() as folder:
        fetch(repository, [SHARD_INDEX], Path(folder))
        try:
            weight_map = read_json_object(Path(folder) / SHARD_INDEX)["weight_map"]
            shards = {key: str(weight_map[key]) for key in NAMES}
        except (ValueError, KeyError, TypeError) as error:
            raise _unusable(repository, f"{SHARD_INDEX} does not name them ({error!r:.100})") from error
    missing = sorted(set(shards.values()) - repository.files.keys())
    if missing:
        raise _unusable(repository, f"it lacks {missing[0][:100]!r}")
    return shards


def read_header(repository: Repository, file: str) -> tuple[dict[str, Any], int]:
    """Return the header of safetensors on the Hub, and where the tensors begin, without these.

    Raises:
        ValueError: it is damaged.
        DownloadError: the download fails.
    """
    (length,) = struct.unpack("<Q", fetch_range(repository, file, 0, _LENGTH_BYTES))
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError(f"the header of {file} would have {length:,} bytes")
    try:
        header = json.loads(fetch_range(repository, file, _LENGTH_BYTES, length))
    except RecursionError as error:
        raise ValueError(f"the header of {file} is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError(f"the header of {file} is not an object")
    return header, _LENGTH_BYTES + length


def _read_number(repository: Repository, file: str, key: str) -> float:
    try:
        header, start = read_header(repository, file)
        entry: dict[str, Any] = header[key]
        layout, (begin, end) = _FORMATS[entry["dtype"]], entry["data_offsets"]
        width = 2 if entry["dtype"] == "BF16" else struct.calcsize(layout)
        if not (isinstance(begin, int) and begin >= 0 and end - begin == width):
            raise ValueError(f"{key} has offsets {begin!r} and {end!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(repository, f"{file} has no single number {key!r} ({error!r:.100})") from error
    content = fetch_range(repository, file, start + begin, width)
    if entry["dtype"] == "BF16":
        content = b"\0\0" + content  # the upper half of an f32
    (number,) = struct.unpack(layout, content)
    return float(number)


def _unusable(repository: Repository, problem: str) -> DownloadError:
    return DownloadError(
        f"logit_scale and logit_bias cannot be read from {repository.name}: {problem}. Give the checkpoint that the "
        "model was made from: --checkpoint FOLDER_OR_NAME"
    )
