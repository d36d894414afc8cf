"""The models in the cache: each ``models/<owner>--<name>/<revision>/`` is a bundle, beside a record of its origin.

A bundle appears under its revision complete or not at all; until then it is built in ``<revision>.partial``.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..bundle.folder import folder_problems
from ..bundle.manifest import MANIFEST
from ..errors import CacheError, ModelNotFoundError, SiglipOnnxError
from ..system.cache_dir import CACHE_VARIABLE, models_folder
from ..system.files import remove as remove_tree
from ..system.files import remove_stale_parts, replace_folder, write_atomic
from ..system.json_files import read_json_object
from ..system.locks import acquire
from ..system.records import read_record

_log = logging.getLogger(__name__)
RECORD = ".json"
PARTIAL = ".partial"
CORRUPT = ".corrupt-"
REPLACED = ".replaced-"
_DEFAULT_BRANCH = "main"
_COMMIT = re.compile(r"[0-9a-f]{7,40}")  # with fewer digits, a branch or tag is more likely meant
# Names that this module writes into a repository's folder; it never removes others.
_OWN = re.compile(r"[0-9a-f]{40}(\.json|\.partial|\.corrupt-\d{8}-\d{6}|\.replaced-[0-9a-f]{32})?")


@dataclass(frozen=True)
class CachedModel:
    """One model in the cache.

    Attributes:
        name: ``owner/name`` on the Hub.
        revision: the commit, 40 hexadecimal digits.
        kind: what the repository held, a bundle or a checkpoint.
        pulled: time of the last pull, in seconds since 1970.
        asked: the branch or tag that was requested first; empty for the default branch.
        also: further branches and tags that were found to be this commit.
    """

    name: str
    revision: str
    kind: str
    pulled: float
    asked: str = ""
    also: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its bundle."""
        return repository_folder(self.name) / self.revision

    @property
    def branches(self) -> list[str]:
        """The branches and tags that were found to be this commit, the default branch as an empty name."""
        return [branch_of(name) for name in (self.asked, *self.also)]

    def answers(self, revision: str | None) -> bool:
        """Say whether a pull of this branch, tag or commit (or the first 7 digits or more of it) gave this model."""
        if branch_of(revision) in self.branches:
            return True
        return revision is not None and bool(_COMMIT.fullmatch(revision)) and self.revision.startswith(revision)

    @property
    def request(self) -> str:
        """The name by which it was requested: ``owner/name``, or with its branch or tag ``owner/name@branch``."""
        return f"{self.name}@{self.asked}" if self.asked else self.name

    @property
    def size_bytes(self) -> int:
        """Size of its files on disk."""
        return folder_size(self.folder)


def branch_of(revision: str | None) -> str:
    """Return the branch or tag that a revision names, empty for the default branch."""
    return "" if revision in (None, _DEFAULT_BRANCH) else str(revision)


def repository_folder(name: str) -> Path:
    """Return the folder of a repository's revisions; ``name`` must be a checked ``owner/name``."""
    return models_folder() / name.replace("/", "--")


def cached_models() -> list[CachedModel]:
    """Return all models in the cache, by name, the newest first."""
    records = [_read_cached_model(path) for path in models_folder().glob(f"*/*{RECORD}")]
    models = [model for model in records if model is not None and (model.folder / MANIFEST).is_file()]
    return sorted(models, key=lambda model: (model.name, -model.pulled))


def find_cached(name: str, revision: str | None) -> CachedModel | None:
    """Return the cached model of a branch, tag or commit, by default of the default branch; of several the newest."""
    models = [model for model in cached_models() if model.name == name and model.answers(revision)]
    return next(iter(models), None)


def store(model: CachedModel, partial: Path) -> None:
    """Move a complete bundle to its folder, and write its record.

    Raises:
        CacheError: the cache cannot be written.
    """
    with cache_errors():
        old = replace_folder(partial, model.folder)
        write_record(model)
        if old is not None:
            discard(old)


def write_record(model: CachedModel) -> None:
    """Write what is known of a cached model beside its folder."""
    write_atomic(model.folder.with_name(model.revision + RECORD), json.dumps(asdict(model)).encode())


def forget_branch(model: CachedModel, branch: str) -> None:
    """Take a branch or tag from the records of other commits: it has moved to this one."""
    for other in cached_models():
        if other.name == model.name and other.revision != model.revision and branch in other.branches:
            names = [name for name in (other.asked, *other.also) if branch_of(name) != branch]
            asked, *also = names or [other.revision]
            write_record(replace(other, asked=asked, also=tuple(also)))


def quarantine(model: CachedModel) -> None:
    """Rename a damaged model, so that it can be fetched again and still be examined.

    Nothing happens if another process has already done so.
    """
    with locked(model.name), cache_errors():
        if not model.folder.exists() or not folder_problems(model.folder):
            return
        target = model.folder.with_name(f"{model.revision}{CORRUPT}{time.strftime('%Y%m%d-%H%M%S')}")
        discard(target)
        model.folder.rename(target)


def remove(name: str, revision: str | None) -> int:
    """Delete one revision of a model, or all, with what is left of its downloads; return the bytes freed.

    Raises:
        ModelNotFoundError: the model or revision is not in the cache.
        CacheError: a file cannot be deleted.
    """
    folder = repository_folder(name)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{name} is not in the cache. List its models with: siglip-onnx models list")
    with locked(name), cache_errors():
        remove_stale_parts(folder)
        own = [path for path in folder.iterdir() if _OWN.fullmatch(path.name)]
        commits = None if revision is None else _commits_of(name, revision, own)
        to_remove = [path for path in own if commits is None or path.name[:40] in commits]
        if not to_remove and any(folder.iterdir()):
            what = "no model" if revision is None else f"no revision {revision}"
            raise ModelNotFoundError(f"{name} has {what} in the cache. List its models with: siglip-onnx models list")
        freed = sum(folder_size(path) for path in to_remove)
        for path in sorted(to_remove, key=lambda path: path.suffix != RECORD):  # the record first
            discard(path)
        if not any(folder.iterdir()):
            discard(folder)
    return freed


def _commits_of(name: str, revision: str, own: list[Path]) -> set[str]:
    """Return the commit that a branch, tag or commit stands for, also of an incomplete download.

    Raises:
        ModelNotFoundError: several commits begin so.
    """
    known = find_cached(name, revision)
    if known is not None and branch_of(revision) in known.branches:
        return {known.revision}
    commits = {path.name[:40] for path in own if _COMMIT.fullmatch(revision) and path.name.startswith(revision)}
    if len(commits) > 1:
        raise ModelNotFoundError(
            f"{name} has {len(commits)} revisions in the cache that begin with {revision}. Name one of them in full: "
            f"{', '.join(sorted(commits))}"
        )
    return commits


def stale_entries() -> list[Path]:
    """Return interrupted downloads and quarantined models."""
    marks = (PARTIAL, CORRUPT, REPLACED)
    return sorted(path for path in models_folder().glob("*/*") if any(mark in path.name for mark in marks))


leftovers = stale_entries  # the name in version 0.1


def discard(path: Path) -> None:
    """Remove a file or folder of the cache, if it exists.

    Raises:
        OSError: ``path`` is a link, is outside the cache, or cannot be removed.
    """
    remove_tree(path, within=models_folder())


def folder_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let only one process at a time change a repository's folder; others wait.

    Raises:
        CacheError: the cache cannot be written.
    """
    with cache_errors():
        locks = models_folder().parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        path = locks / (name.replace("/", "--") + ".lock")
        lock = acquire(path, wait_s=0)
        if lock is None:
            _log.warning("Another process is changing %s in the cache; waiting for it to end.", name)
            lock = acquire(path)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def cache_errors() -> Iterator[None]:
    """Turn an OSError into a CacheError that names the cache."""
    try:
        yield
    except SiglipOnnxError:
        raise
    except OSError as error:
        raise CacheError(
            f"The cache {models_folder().parent} cannot be used: {error.strerror or error}. Choose another folder with "
            f"{CACHE_VARIABLE}, or free space: siglip-onnx models list"
        ) from error


def _read_cached_model(path: Path) -> CachedModel | None:
    try:
        model = read_record(CachedModel, read_json_object(path))
    except (OSError, ValueError):
        return None  # doctor reports the files
    is_own = path.parent == repository_folder(model.name) and path.stem == model.revision
    return model if is_own and _OWN.fullmatch(path.name) else None
