"""Where the package keeps what it may always make or fetch again: downloaded models, and what was verified when."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import CacheError

CACHE_VARIABLE = "SIGLIP_ONNX_CACHE"


def cache_folder() -> Path:
    """Return the cache: what ``SIGLIP_ONNX_CACHE`` names, else the system's place for it.

    Raises:
        CacheError: none is named, and the user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named).expanduser() if named else _system_cache()
    except RuntimeError as error:  # what pathlib raises without a home
        raise CacheError(f"There is no home folder for a cache; name one with {CACHE_VARIABLE}.") from error


def _system_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "siglip_onnx" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "siglip_onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglip_onnx"


def use_cache(folder: str | os.PathLike[str]) -> None:
    """Let this process, and those that it starts, use another cache folder."""
    os.environ[CACHE_VARIABLE] = os.fspath(folder)


def models_folder() -> Path:
    """Return where downloaded and exported models lie."""
    return cache_folder() / "models"
