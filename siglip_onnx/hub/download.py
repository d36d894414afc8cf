"""List and download files of the Hugging Face Hub, verified, with limits of bytes and time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from .._version import __version__
from ..errors import CacheError, DownloadError
from ..system.files import remove
from ..system.records import read_record

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_LIBRARY: dict[str, Any] = {"library_name": "siglip_onnx", "library_version": __version__}
_LARGEST_SIZE = 1 << 50
_UNSIZED_BYTES = 50_000_000  # limit of a file whose size the Hub does not state; it states that of weights
_TEXT_BYTES = {".json": 200_000_000, ".md": 10_000_000, ".txt": 10_000_000}  # limits: others read them whole
_ANSWER_BYTES = 20_000_000  # limit of the list of a repository's files: about 100,000 files
# The client's own timeout is for the time between two bytes. It passes files on in blocks of the first size.
_BLOCK_BYTES = 10_485_760
_SMALL_BYTES = 1_000_000  # as which those count whose size the Hub does not state
_STALL_S = 60.0
_LEAST_BYTES_PER_S = 10_000
_INCOMING = ".incoming"  # beside the files, whose names never begin with a dot
# Only names from the network that match these become paths.
REVISION = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_FILE_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,9}}")
_UNREACHABLE = ("ConnectionError", "ConnectError", "ConnectTimeout", "SSLError", "ProxyError")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; the Hub states the SHA-256 of large files and git's SHA-1 of small ones.

    ``size_bytes`` is None if the Hub does not state it.
    """

    name: str
    size_bytes: int | None
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Repository:
    """One revision of a repository on the Hub."""

    name: str
    revision: str
    files: dict[str, RemoteFile]

    def size_bytes(self, names: Iterable[str]) -> int:
        """Return the total size of some files, as far as the Hub states it."""
        return sum(self.files[name].size_bytes or 0 for name in names)


@dataclass(frozen=True)
class _LargeFile:
    sha256: str


@dataclass(frozen=True)
class _Sibling:
    rfilename: str
    size: Any = None
    blob_id: str | None = field(default=None, metadata={"aliases": ("blobId",)})
    lfs: _LargeFile | None = None


@dataclass(frozen=True)
class _Answer:
    """What the Hub says of one revision of a repository."""

    sha: Any = None
    siblings: list[_Sibling] = field(default_factory=list)


def is_offline() -> bool:
    """Say whether the environment forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "").upper() in {"1", "ON", "YES", "TRUE"}


def library() -> Any:
    """Return the package huggingface_hub, without types, its module ``file_download`` included.

    Its telemetry is turned off: from version 2 on, it asks the Hub which environment variables to look at, reads the
    answer without a bound, and sends what it found with each further request.
    """
    import huggingface_hub.file_download  # noqa: PLC0415 - loads an HTTP client, which most runs do not need

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


def client() -> Any:
    """Return a client of the Hub that ``HF_ENDPOINT`` names."""
    return library().HfApi(endpoint=_endpoint(), **_LIBRARY)


def look_up(name: str, revision: str | None) -> Repository:
    """Ask the Hub for the files of a repository at a revision, by default the newest.

    Raises:
        DownloadError: there is no such repository or revision, the Hub cannot be reached, or its answer is not valid.
    """
    revision_path = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    url = f"{client().endpoint}/api/models/{name}{revision_path}?blobs=true"
    with _hub_errors(name):
        content = io.BytesIO()
        bounded = _BoundedFile(content, _ANSWER_BYTES, f"The Hub's answer about {name}", _SMALL_BYTES)
        _receive(url, bounded, displayed_filename=name)
        try:
            answer = read_record(_Answer, json.loads(content.getvalue()), ignore_unknown=True)
        except (ValueError, RecursionError) as error:
            raise DownloadError(
                f"The Hub's answer about {name} cannot be read: {error!s:.200}. Check HF_ENDPOINT and the network."
            ) from error
    commit = check_commit(answer.sha, name)
    if revision is not None and REVISION.fullmatch(revision) and commit != revision:
        raise DownloadError(
            f"The Hub names {commit} as the commit {revision} of {name}. Nothing was downloaded; check HF_ENDPOINT and "
            "the network."
        )
    return Repository(name, commit, {file.rfilename: _remote_file(name, file) for file in answer.siblings})


def check_commit(commit: Any, name: str) -> str:
    """Return what the Hub names as a commit of a repository.

    Raises:
        DownloadError: it is none.
    """
    if not isinstance(commit, str) or not REVISION.fullmatch(commit):
        raise DownloadError(
            f"The Hub names {str(commit)[:100]!r} as the revision of {name}, expected a commit of 40 hexadecimal "
            "digits. Check HF_ENDPOINT and the network."
        )
    return commit


def _remote_file(name: str, sibling: _Sibling) -> RemoteFile:
    size = sibling.size
    if size is not None and not (isinstance(size, int) and 0 <= size < _LARGEST_SIZE):
        raise DownloadError(f"The Hub names {size!r:.100} as the size of {sibling.rfilename!r:.200} of {name}.")
    return RemoteFile(sibling.rfilename, size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id)


def fetch(repository: Repository, names: Iterable[str], folder: Path) -> None:
    """Download files into ``folder``; complete files there are kept, and one that fails its checksum is retried once.

    Raises:
        DownloadError: a download fails, a file has an unsafe name, or it fails its checksum twice.
        CacheError: the disk is full.
    """
    requested = [repository.files[name] for name in names]
    for file in requested:
        if not _FILE_NAME.fullmatch(file.name):
            raise DownloadError(
                f"{repository.name} holds a file named {file.name[:200]!r}; expected letters, digits, '_', '-' and "
                "'.' below the model's folder. It is not downloaded."
            )
        limit = _TEXT_BYTES.get(PurePosixPath(file.name).suffix, _LARGEST_SIZE)
        if file.size_bytes is not None and file.size_bytes > limit:
            raise DownloadError(
                f"{file.name} of {repository.name} has {file.size_bytes:,} bytes, expected at most {limit:,} of such a "
                "file. It is not downloaded."
            )
    missing = [file for file in requested if file_problem(file, folder)]
    _check_space(folder, sum(file.size_bytes or 0 for file in missing))
    for file in missing:
        _fetch_file(repository, file, folder, restart=False)
        if file_problem(file, folder):
            _fetch_file(repository, file, folder, restart=True)
        if problem := file_problem(file, folder):
            remove(folder / file.name, within=folder)
            raise DownloadError(
                f"{file.name} of {repository.name} failed its checksum twice: {problem}. Try again later, or "
                "over another network."
            )


def _fetch_file(repository: Repository, file: RemoteFile, folder: Path, *, restart: bool) -> None:
    """Download one file, resuming an interrupted download unless ``restart``."""
    with _hub_errors(repository.name):
        files = library().file_download
        part = folder / _INCOMING / hashlib.sha256(file.name.encode()).hexdigest()
        part.parent.mkdir(parents=True, exist_ok=True)
        limit = _UNSIZED_BYTES if file.size_bytes is None else file.size_bytes
        cannot_resume = file.size_bytes is None or (part.exists() and part.stat().st_size > limit)
        if restart or cannot_resume:
            remove(part, within=folder)
        headers = files.build_hf_headers(**_LIBRARY)
        if getattr(files.constants, "HF_HUB_ENABLE_HF_TRANSFER", False):
            headers["Range"] = "bytes=0-"  # prevents the client from using hf_transfer, which writes without a limit
        with part.open("ab") as incoming:
            _receive(
                files.hf_hub_url(repository.name, file.name, revision=repository.revision, endpoint=_endpoint()),
                _BoundedFile(
                    incoming,
                    limit,
                    f"{file.name} of {repository.name}",
                    _SMALL_BYTES if file.size_bytes is None else _BLOCK_BYTES,
                ),
                resume_size=incoming.tell(),
                headers=headers,
                expected_size=file.size_bytes,
                displayed_filename=file.name,
            )
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder / file.name)


def fetch_range(repository: Repository, name: str, start: int, size_bytes: int) -> bytes:
    """Return ``size_bytes`` bytes of a file from ``start`` on, without the rest of it.

    Raises:
        DownloadError: the download fails, or the Hub sends more or fewer bytes.
    """
    with _hub_errors(repository.name):
        files = library().file_download
        content = io.BytesIO()
        headers = files.build_hf_headers(**_LIBRARY) | {"Range": f"bytes={start}-{start + size_bytes - 1}"}
        _receive(
            files.hf_hub_url(repository.name, name, revision=repository.revision, endpoint=_endpoint()),
            _BoundedFile(content, size_bytes, f"The part of {name} of {repository.name}"),
            headers=headers,
            displayed_filename=name,
        )
    if len(content.getvalue()) != size_bytes:
        raise DownloadError(
            f"The Hub sent {len(content.getvalue()):,} bytes of {name} of {repository.name}, expected {size_bytes:,}. "
            "Run the command again."
        )
    return content.getvalue()


class _BoundedFile:
    """A file for the HTTP client to write to, which refuses more bytes than the Hub stated.

    ``deadline`` is when its next ``block`` bytes must have arrived.
    """

    def __init__(self, file: IO[bytes], limit: int, name: str, block: int = _BLOCK_BYTES) -> None:
        self._file, self._limit, self.name, self._block = file, limit, name, block
        self._stopped = False
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate
        self.deadline = self._next_deadline()  # of the next block, on the monotonic clock

    def _next_deadline(self) -> float:
        block = min(self._limit - self._file.tell(), self._block)
        return time.monotonic() + _STALL_S + block / _LEAST_BYTES_PER_S

    def stop(self) -> None:
        """Refuse further blocks."""
        self._stopped = True

    def write(self, block: bytes) -> int:
        """Write a block.

        Raises:
            DownloadError: the file would become larger than the Hub stated, or nobody waits for it any more.
        """
        if self._stopped:
            raise DownloadError(f"The download of {self.name} was stopped.")
        if self._file.tell() + len(block) > self._limit:
            raise DownloadError(
                f"{self.name} is larger than the {self._limit:,} bytes that it may have; the download was stopped. "
                "The Hub or a proxy sends another file; check HF_ENDPOINT and the network."
            )
        written = self._file.write(block)
        self.deadline = self._next_deadline()
        return written


def _receive(url: str, bounded: _BoundedFile, *, headers: dict[str, str] | None = None, **options: Any) -> None:
    """Let the Hub's client write a file, in a thread, and stop waiting for it when it is too slow.

    The client waits 10 seconds for each next byte, and so for ever where one byte comes every few seconds.

    Raises:
        DownloadError: the file is too large or arrives too slowly.
        Exception: what the client raises.
    """
    files = library().file_download
    failures: list[BaseException] = []
    done = threading.Event()

    def receive() -> None:
        try:
            files.http_get(url, bounded, headers=headers or files.build_hf_headers(**_LIBRARY), **options)
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    threading.Thread(target=receive, name="siglip-onnx-download", daemon=True).start()
    try:
        while not done.wait(min(1.0, _STALL_S)):
            if time.monotonic() > bounded.deadline:
                raise DownloadError(
                    f"{bounded.name} arrives at less than {_LEAST_BYTES_PER_S / 1000:.0f} kB/s; the download was "
                    "stopped. Run the command again to go on with it, or check HF_ENDPOINT and the network."
                )
    finally:
        bounded.stop()
    if failures:
        raise failures.pop()  # no reference stays here, so that the connection in its traceback is closed at once


def file_problem(file: RemoteFile, folder: Path) -> str:
    """Return how a local file differs from the Hub's, empty if it does not."""
    path = folder / file.name
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return f"{size} bytes, expected {file.size_bytes}"
    expected = file.sha256 or file.git_sha1
    if expected is None:
        return ""
    start = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: start).hexdigest()
    return "" if digest == expected else f"hash {digest}, expected {expected}"


def _check_space(folder: Path, size_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise CacheError(
            f"{folder} has {free / 1e6:,.0f} MB free, but the download needs {size_bytes / 1e6:,.0f} MB. Free some "
            "space, or choose another cache folder."
        )


def _without_password(url: str) -> str:
    """Return a URL without the name and password that it may contain."""
    return re.sub(r"//[^/]*@", "//", url)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn the client's exceptions, which have no common base class, into a DownloadError that says what to do."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        kind, reason = type(error).__name__, str(error).strip().split("\n", maxsplit=1)[0]
        if kind in ("RepositoryNotFoundError", "GatedRepoError"):
            raise DownloadError(
                f"{name} is not on the Hub, or requires a login: set HF_TOKEN if it is private or gated."
            ) from error
        if kind == "RevisionNotFoundError":
            raise DownloadError(f"{name} has no such revision on the Hub: {reason}") from error
        if kind in _UNREACHABLE:
            reason = f"{_without_password(_endpoint() or 'the Hub')} cannot be reached"
        raise DownloadError(
            f"{name} could not be downloaded ({kind}: {reason}). The partial download is kept; run the command "
            "again to resume it, or check the network."
        ) from error
