"""Whether the files of a model are the ones that were written: sizes, hashes, and names that stay in the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..system.cache_dir import cache_folder
from ..system.files import write_atomic
from ..system.json_files import read_json_object
from ..system.names import check_name, leaves_folder

MAX_FILES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_STAMP_BYTES = 1_000_000


@dataclass(frozen=True)
class FileFacts:
    """Size and hash of one file, to know that it arrived whole."""

    size_bytes: int
    sha256: str


def file_facts(path: Path) -> FileFacts:
    """Measure and hash a file."""
    with path.open("rb") as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def parse_files(entries: Mapping[str, Any]) -> dict[str, FileFacts]:
    """Return the files that a manifest lists.

    Raises:
        ValueError: a name that leaves the folder, a size or hash that is none, or too many files.
    """
    if len(entries) > MAX_FILES:
        raise ValueError(f"{len(entries)} files, expected at most {MAX_FILES}")
    files = {name: FileFacts(entry["size_bytes"], entry["sha256"]) for name, entry in entries.items()}
    for name, facts in files.items():
        check_name(name)
        if type(facts.size_bytes) is not int or facts.size_bytes < 0:
            raise ValueError(f"file {name!r} of {facts.size_bytes!r} bytes")
        if not isinstance(facts.sha256, str) or not _SHA256.fullmatch(facts.sha256):
            raise ValueError(f"file {name!r} with sha256 {facts.sha256!r}")
    return files


def find_problem(folder: Path, name: str, expected: FileFacts) -> str:
    """Return what is wrong with a file, empty if nothing is."""
    path = folder / name
    if not path.is_file():
        return "missing"
    if leaves_folder(folder, path):
        return f"a link to {path.resolve()}, outside the folder"
    found = file_facts(path)
    if found.size_bytes != expected.size_bytes:
        return f"{found.size_bytes} bytes, expected {expected.size_bytes}"
    return "" if found == expected else f"sha256 {found.sha256}, expected {expected.sha256}"


def changed_files(folder: Path, files: Mapping[str, FileFacts]) -> dict[str, str]:
    """Hash those files whose size, time or place on disk is not as when they were last verified.

    Returns what is wrong by name. What was verified is kept in the cache folder, never in the model's own; where the
    cache cannot be written, all is hashed each time.
    """
    stamp_path = _stamp_path(folder)
    stamps = {} if stamp_path is None else _read_stamps(stamp_path)
    problems, verified = {}, {}
    for name, expected in files.items():
        stamp = _stamp(folder / name, expected)
        if stamp is not None and stamps.get(name) == stamp:
            continue
        if problem := find_problem(folder, name, expected):
            problems[name] = problem
        elif stamp is not None:
            verified[name] = stamp
    if verified and stamp_path is not None:
        _write_stamps(stamp_path, {name: stamp for name, stamp in stamps.items() if name not in problems} | verified)
    return problems


def _stamp_path(folder: Path) -> Path | None:
    try:
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
        return cache_folder() / "verified" / f"{name}.json"
    except CacheError:
        return None


def _stamp(path: Path, expected: FileFacts) -> list[Any] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [expected.sha256, found.st_size, found.st_mtime_ns, found.st_ino]


def _read_stamps(path: Path) -> dict[str, Any]:
    # What is missing or damaged is verified again.
    with contextlib.suppress(OSError, ValueError):
        return read_json_object(path, _MAX_STAMP_BYTES)
    return {}


def _write_stamps(path: Path, stamps: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(stamps).encode(), durable=False)
