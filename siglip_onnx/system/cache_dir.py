"""Location of the cache: downloaded models and verification records, all of which can be created again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import CacheError

CACHE_VARIABLE = "SIGLIP_ONNX_CACHE"


def cache_folder() -> Path:
    """Return the cache folder: the value of ``SIGLIP_ONNX_CACHE``, or the system's folder for caches.

    Raises:
        CacheError: the variable is not set, and the user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named).expanduser() if named else _system_cache()
    except RuntimeError as error:  # what pathlib raises without a home
        raise CacheError(f"There is no home folder for the cache; set {CACHE_VARIABLE} to a folder.") from error


def _system_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "siglip_onnx" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "siglip_onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglip_onnx"


def use_cache(folder: str | os.PathLike[str]) -> None:
    """Use another cache folder in this process and those that it starts."""
    os.environ[CACHE_VARIABLE] = os.fspath(folder)


def models_folder() -> Path:
    """Return the folder of downloaded and exported models."""
    return cache_folder() / "models"
