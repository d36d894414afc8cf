"""Where the package keeps what it may always make or fetch again: downloaded models, and what was verified when."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "SIGLIP_ONNX_CACHE"
_chosen: Path | None = None


def cache_folder() -> Path:
    """Return the cache: what :func:`use_cache` chose, else ``SIGLIP_ONNX_CACHE``, else the system's place for it."""
    if _chosen is not None:
        return _chosen
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "siglip_onnx" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "siglip_onnx"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglip_onnx"


def use_cache(folder: str | os.PathLike[str] | None) -> None:
    """Let the process use another cache folder; None returns to the environment's."""
    global _chosen  # noqa: PLW0603 - one cache per process
    _chosen = None if folder is None else Path(folder)


def models_folder() -> Path:
    """Return where downloaded and exported models lie."""
    return cache_folder() / "models"
