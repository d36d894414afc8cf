"""Models by name: the embedded demo model, a folder, the cache, or the Hugging Face Hub."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "load": "hub.loading",
    "open_model": "hub.loading",
    "find_model": "hub.loading",
    "parse_hub_name": "hub.names",
    "DEMO_PATH": "demo:BUNDLE_PATH",
    "SAMPLE_PICTURES_PATH": "demo:IMAGES_PATH",
    "GOLDEN_PATH": "demo:GOLDEN_PATH",
}


def __getattr__(name: str) -> Any:
    """Import a name from its module; the names of version 0.1 stay."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"..{module}", __name__), attribute or name)
