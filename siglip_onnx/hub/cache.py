"""The models in the cache: ``models/<owner>--<name>/<revision>/`` is a bundle, beside it a record of where it is from.

A bundle appears under its revision whole or not at all; what is being made lies in ``<revision>.partial``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ..bundle.folder import verify_folder
from ..bundle.manifest import MANIFEST
from ..errors import BundleError, CacheError, ModelNotFoundError
from ..system.cache_dir import CACHE_VARIABLE, models_folder
from ..system.files import remove as remove_tree
from ..system.files import remove_stale_parts, replace_folder, write_atomic
from ..system.json_files import read_json_object

RECORD = ".json"
PARTIAL = ".partial"
CORRUPT = ".corrupt-"
REPLACED = ".replaced-"
# What this module writes into a repository's folder, and all that it ever removes.
_OWN = re.compile(r"[0-9a-f]{40}(\.json|\.partial|\.corrupt-\d{8}-\d{6}|\.replaced-[0-9a-f]{32})?")


@dataclass(frozen=True)
class CachedModel:
    """One model in the cache.

    ``kind`` is what it was on the Hub, ``pulled`` in seconds since 1970, ``asked`` the branch or tag by which it was
    asked for, if any.
    """

    name: str
    revision: str
    kind: str
    pulled: float
    asked: str = ""

    @property
    def folder(self) -> Path:
        """Its bundle."""
        return repository_folder(self.name) / self.revision

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return folder_size(self.folder)


def repository_folder(name: str) -> Path:
    """Return where the revisions of a repository lie; ``name`` is checked to be ``owner/name``."""
    return models_folder() / name.replace("/", "--")


def cached_models() -> list[CachedModel]:
    """Return all models in the cache, by name, the newest first."""
    found = []
    for record in models_folder().glob(f"*/*{RECORD}"):
        model = _read_record(record)
        if model is not None and (model.folder / MANIFEST).is_file():
            found.append(model)
    return sorted(found, key=lambda model: (model.name, -model.pulled))


def find_cached(name: str, revision: str | None) -> CachedModel | None:
    """Return a model of the cache: of a commit (or its beginning), branch or tag, or else the one pulled last."""
    for model in cached_models():
        if model.name == name and (revision in (None, model.asked) or model.revision.startswith(str(revision))):
            return model
    return None


def keep(model: CachedModel, partial: Path) -> None:
    """Give a finished bundle its place, and write its record.

    Raises:
        CacheError: the cache cannot be written.
    """
    with cache_errors():
        old = replace_folder(partial, model.folder)
        write_atomic(model.folder.with_name(model.revision + RECORD), json.dumps(asdict(model)).encode())
        if old is not None:
            discard(old)


def set_aside(model: CachedModel) -> None:
    """Rename a model that is damaged, so that it can be fetched again and still be looked at.

    Another process may have done so, and have fetched it again already.
    """
    with locked(model.name), cache_errors():
        if not model.folder.exists() or _is_sound(model.folder):
            return
        aside = model.folder.with_name(f"{model.revision}{CORRUPT}{time.strftime('%Y%m%d-%H%M%S')}")
        discard(aside)
        model.folder.rename(aside)


def _is_sound(folder: Path) -> bool:
    try:
        return not verify_folder(folder)
    except BundleError:
        return False


def remove(name: str, revision: str | None) -> int:
    """Delete a model, all its revisions if none is given, and what is left of its downloads; return the bytes freed.

    Raises:
        ModelNotFoundError: it is not in the cache.
        CacheError: it cannot be deleted.
    """
    folder = repository_folder(name)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{name} is not in the cache. See what is: siglip-onnx models list")
    wanted = "" if revision is None else revision
    with locked(name), cache_errors():
        remove_stale_parts(folder)
        names = [path.name for path in folder.iterdir() if path.name.startswith(wanted)]
        doomed = [folder / name for name in names if _OWN.fullmatch(name)]
        if not doomed:
            raise ModelNotFoundError(f"{name} has no revision {revision} in the cache. See: siglip-onnx models list")
        freed = sum(folder_size(path) for path in doomed)
        for path in sorted(doomed, key=lambda path: path.suffix != RECORD):  # first what says that it is there
            discard(path)
        if not any(folder.iterdir()):
            discard(folder)
    return freed


def leftovers() -> list[Path]:
    """Return interrupted downloads and damaged models that were set aside."""
    marks = (PARTIAL, CORRUPT, REPLACED)
    return sorted(path for path in models_folder().glob("*/*") if any(mark in path.name for mark in marks))


def discard(path: Path) -> None:
    """Remove what is in the cache, if it is there.

    Raises:
        OSError: ``path`` is a link or not in the cache, or cannot be removed.
    """
    remove_tree(path, within=models_folder())


def folder_size(path: Path) -> int:
    """Return the bytes in a file, or in all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time change a repository's folder; the others wait.

    Raises:
        CacheError: the cache cannot be written.
    """
    with cache_errors():
        locks = models_folder().parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / (name.replace("/", "--") + ".lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cache_errors() -> Iterator[None]:
    """Turn what the file system says into an error that names the cache."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The cache {models_folder().parent} cannot be used: {error.strerror or error}. Choose another folder with "
            f"{CACHE_VARIABLE}, or free space: siglip-onnx models list"
        ) from error


def _read_record(path: Path) -> CachedModel | None:
    try:
        document = read_json_object(path)
        model = CachedModel(**document)
    except (OSError, ValueError, TypeError):
        return None  # a record that cannot be read is of no model; doctor tells the files
    is_own = isinstance(model.name, str) and path.parent == repository_folder(model.name)
    return model if is_own and path.stem == model.revision and _OWN.fullmatch(path.name) else None
