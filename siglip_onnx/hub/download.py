"""The only place that speaks to the Hugging Face Hub: what a repository holds, and single files, each verified."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import CacheError, DownloadError
from ..system.files import check_name

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_TIMEOUT_S = 10
_LIBRARY: dict[str, Any] = {"library_name": "siglip_onnx", "library_version": __version__}
_BLOCK = 1 << 20
_UNREACHABLE = ("ConnectionError", "ConnectError", "ConnectTimeout", "SSLError", "ProxyError")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; the Hub knows large ones by sha256 and small ones by git's sha1."""

    name: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Repository:
    """One revision of a repository on the Hub."""

    name: str
    revision: str
    files: dict[str, RemoteFile]

    def size_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of some files."""
        return sum(self.files[name].size_bytes for name in names)


def is_offline() -> bool:
    """Say whether the environment forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "").upper() in {"1", "ON", "YES", "TRUE"}


def look_up(name: str, revision: str | None) -> Repository:
    """Ask the Hub what a repository holds at a revision, its newest if None.

    Raises:
        DownloadError: there is no such repository or revision, or the Hub cannot be reached.
    """
    with _hub_errors(name):
        from huggingface_hub import HfApi  # noqa: PLC0415 - loads an HTTP client, which most runs do not need

        found = HfApi(endpoint=_endpoint(), **_LIBRARY).model_info(
            name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
        )
    files = {}
    for sibling in found.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id)
    if not found.sha:
        raise DownloadError(f"The Hub named no revision of {name}; try again later.")
    return Repository(name, found.sha, files)


def fetch(repository: Repository, names: Iterable[str], folder: Path) -> None:
    """Download files into ``folder``; what is there already, whole, is kept, and what arrives damaged is asked twice.

    Raises:
        DownloadError: a file does not arrive, or is not what the Hub says that it is.
        CacheError: the disk is full.
    """
    wanted = [repository.files[name] for name in names]
    missing = [file for file in wanted if _problem(file, folder)]
    _check_space(folder, sum(file.size_bytes for file in missing))
    for file in missing:
        _fetch_one(repository, file, folder, again=False)
        if _problem(file, folder):
            _fetch_one(repository, file, folder, again=True)
        if problem := _problem(file, folder):
            (folder / file.name).unlink(missing_ok=True)
            raise DownloadError(
                f"{file.name} of {repository.name} arrived damaged twice: {problem}. Try again later, or over another "
                "network."
            )


def _fetch_one(repository: Repository, file: RemoteFile, folder: Path, *, again: bool) -> None:
    try:
        check_name(file.name)
    except ValueError as error:
        raise DownloadError(f"{repository.name} holds {error}; it is not downloaded.") from error
    with _hub_errors(repository.name):
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - loads an HTTP client

        hf_hub_download(
            repository.name,
            file.name,
            revision=repository.revision,
            local_dir=folder,
            force_download=again,
            endpoint=_endpoint(),
            etag_timeout=_TIMEOUT_S,
            **_LIBRARY,
        )


def _problem(file: RemoteFile, folder: Path) -> str:
    """Return what is wrong with a downloaded file, empty if nothing is."""
    path = folder / file.name
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"{size} bytes, expected {file.size_bytes}"
    if file.sha256 is not None:
        found, expected = _digest(path, hashlib.sha256()), file.sha256
    elif file.git_sha1 is not None:
        git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        found, expected = _digest(path, git), file.git_sha1
    else:
        return ""
    return "" if found == expected else f"hash {found}, expected {expected}"


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _check_space(folder: Path, size_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise CacheError(
            f"{folder} has {free / 1e6:,.0f} MB free, and {size_bytes / 1e6:,.0f} MB are to be downloaded. Free some, "
            "or name another cache folder."
        )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what the client raises, which shares no root, into one error that says what to do."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        kind, reason = type(error).__name__, str(error).strip().split("\n", maxsplit=1)[0]
        if kind in ("RepositoryNotFoundError", "GatedRepoError"):
            raise DownloadError(
                f"{name} is not on the Hub, or wants a login: set HF_TOKEN if it is private or gated."
            ) from error
        if kind == "RevisionNotFoundError":
            raise DownloadError(f"{name} has no such revision on the Hub: {reason}") from error
        if kind in _UNREACHABLE:
            reason = f"{_endpoint() or 'the Hub'} cannot be reached"
        raise DownloadError(
            f"{name} could not be downloaded ({kind}: {reason}). What has arrived is kept; run the command again, or "
            "check the network."
        ) from error
