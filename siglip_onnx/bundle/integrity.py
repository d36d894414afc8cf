"""Verify a bundle's files: sizes, hashes, and names that stay inside the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError, CacheError
from ..system.cache_dir import cache_folder
from ..system.files import open_regular, write_atomic
from ..system.json_files import read_json_object
from ..system.names import check_name, leaves_folder
from .graph_files import weight_files

MAX_FILES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE_BYTES = 2**63 - 1
_MAX_STAMP_BYTES = 1_000_000
_NUM_SAMPLES, _SAMPLE_BYTES = 16, 65_536


@dataclass(frozen=True)
class FileFacts:
    """Size and hash of one file, by which damage is recognized."""

    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: a size that no file has, or a hash that is not 64 hexadecimal digits.
        """
        if not 0 <= self.size_bytes <= _MAX_SIZE_BYTES:
            raise ValueError(f"size_bytes is {self.size_bytes!r:.80}, expected the size of a file")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r:.80}, expected 64 hexadecimal digits")


def file_facts(path: Path) -> FileFacts:
    """Measure and hash a file."""
    with open_regular(path) as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def check_names(names: Collection[str]) -> None:
    """Check the file names that a manifest lists.

    Raises:
        ValueError: a name leads out of the folder, or there are too many.
    """
    if len(names) > MAX_FILES:
        raise ValueError(f"{len(names)} files, expected at most {MAX_FILES}")
    for name in names:
        check_name(name)


def find_problem(folder: Path, name: str, files: Mapping[str, FileFacts]) -> str:
    """Return what is wrong with one of the files, empty if nothing is; the weights of a graph must be among them."""
    expected = files[name]
    path = folder / name
    if not path.is_file():
        return "missing"
    if leaves_folder(folder, path):
        return f"a link to {os.path.realpath(path)}, outside the folder"
    facts = file_facts(path)
    if facts.size_bytes != expected.size_bytes:
        return f"{facts.size_bytes} bytes, expected {expected.size_bytes}"
    if facts != expected:
        return f"sha256 {facts.sha256}, expected {expected.sha256}"
    return _unlisted_weights(folder, name, files) if name.endswith(".onnx") else ""


def _unlisted_weights(folder: Path, graph: str, listed: Collection[str]) -> str:
    try:
        names = weight_files(folder / graph)
    except (OSError, ValueError) as error:
        return f"not an ONNX graph: {error}"
    unlisted = sorted(name for name in names if posixpath.normpath(posixpath.join(graph, "..", name)) not in listed)
    return f"its weights are in {unlisted[0]!r:.80}, which the manifest does not list for it" if unlisted else ""


class OpenedFiles:
    """The files of an opened model, whose later change is noticed before one of them is read."""

    def __init__(self, folder: Path, files: Mapping[str, FileFacts]) -> None:
        """Remember sizes and times of files as they are; ``files`` are all of them, with what they should be."""
        self._folder, self._files = folder, files
        self._stamps = self._read_stamps()

    def check(self) -> None:
        """Hash the files that were replaced or changed since.

        Raises:
            BundleError: one is no longer the same.
        """
        stamps = self._read_stamps()
        for name, stamp in stamps.items():
            if stamp != self._stamps[name] and (problem := find_problem(self._folder, name, self._files)):
                raise BundleError(
                    f"{self._folder / name} was replaced after the model was opened: {problem}. Load the model again."
                )
        self._stamps = stamps

    def _read_stamps(self) -> dict[str, list[Any] | None]:
        return {name: _stamp(self._folder / name, facts) for name, facts in self._files.items()}


class OpenedFile:
    """One opened file without a known hash, whose later change is noticed: by its size, and by a sample of it.

    The sample is compared only if its time or inode changed: all of a large file would take long to read.
    """

    def __init__(self, path: Path) -> None:
        """Remember the file as it is."""
        self._path, self._status, self._sample = path, _status(path), _sample(path)

    def check(self) -> None:
        """Compare the file with what was remembered.

        Raises:
            BundleError: it was replaced or changed.
        """
        status = _status(self._path)
        if status == self._status:
            return
        has_size = status is not None and self._status is not None and status[0] == self._status[0]
        if not has_size or _sample(self._path) != self._sample:
            raise BundleError(f"{self._path} was replaced or changed after it was opened. Load it again.")
        self._status = status


def _sample(path: Path) -> bytes | None:
    """Return a hash of some blocks of a file, or of all of a small one; None if it cannot be read."""
    digest = hashlib.blake2b()
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return None
    return digest.digest()


def changed_files(folder: Path, files: Mapping[str, FileFacts]) -> dict[str, str]:
    """Hash the files that changed on disk since they were last verified; return what is wrong, by name.

    A file counts as unchanged while its size, modification time and inode are. These stamps are kept in the cache
    folder, never in the model's own; without a writable cache all files are hashed each time.
    """
    stamp_path = _stamp_path(folder)
    stamps = {} if stamp_path is None else _read_stamps(stamp_path)
    problems, verified = {}, {}
    for name, expected in files.items():
        stamp = _stamp(folder / name, expected)
        if stamp is not None and stamps.get(name) == stamp:
            continue
        if problem := find_problem(folder, name, files):
            problems[name] = problem
        elif stamp is not None:
            verified[name] = stamp
    if verified and stamp_path is not None:
        _write_stamps(stamp_path, {name: stamp for name, stamp in stamps.items() if name not in problems} | verified)
    return problems


def _stamp_path(folder: Path) -> Path | None:
    try:
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
        return cache_folder() / "verified" / f"{name}.json"
    except CacheError:
        return None


def _stamp(path: Path, expected: FileFacts) -> list[Any] | None:
    status = _status(path)
    return None if status is None else [expected.sha256, *status]


def _status(path: Path) -> tuple[int, int, int] | None:
    """Return size, modification time and inode of a file, or None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read_stamps(path: Path) -> dict[str, Any]:
    # Without readable stamps every file is verified again.
    with contextlib.suppress(OSError, ValueError):
        return read_json_object(path, _MAX_STAMP_BYTES)
    return {}


def _write_stamps(path: Path, stamps: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(stamps).encode(), durable=False)
