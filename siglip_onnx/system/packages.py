"""Versions of installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None if it is not installed.

    A module that is imported under the name counts too: ``onnxruntime`` may come from the wheel ``onnxruntime-gpu``.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        return None if loaded is None else str(loaded)
