"""Names of repositories on the Hugging Face Hub, and the short names of published checkpoints."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .. import demo
from ..errors import ModelNotFoundError
from .published import PUBLISHED

OWNER = "google"  # of the checkpoints with short names
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w.][\w./-]{0,99}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, ``owner/name``, and the requested branch, tag or commit, if any."""

    name: str
    revision: str | None


def parse_repository(name: str) -> str:
    """Return ``owner/name``, a repository to write to, which may also be the path of a folder here.

    Raises:
        ModelNotFoundError: not such a name.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None or match[2] is not None or ".." in name:
        raise ModelNotFoundError(f"{name!r} is not a repository of the Hub; expected owner/name, without a revision.")
    return match[1]


def parse_hub_name(name: str) -> HubName:
    """Parse ``owner/name``, ``owner/name@revision`` or the short name of a published checkpoint.

    Raises:
        ModelNotFoundError: not such a name.
    """
    known = [checkpoint.name for checkpoint in PUBLISHED]
    short = name.removeprefix(f"{OWNER}/")
    if short.split("@", maxsplit=1)[0] in known and (match := _HUB_NAME.fullmatch(f"{OWNER}/{short}")):
        return HubName(match[1], match[2])
    match = _HUB_NAME.fullmatch(name)
    parts = Path(name).parts
    # A mistyped path must not become a request to the network.
    if match is None or ".." in name or os.path.exists(name) or (parts[:-1] and os.path.exists(parts[0])):  # noqa: PTH110
        problem = "is a file" if os.path.exists(name) else "was not found"  # noqa: PTH110 - exists() of a Path may raise
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise ModelNotFoundError(
            f"Model {name!r} {problem}; expected {demo.NAME!r}, the folder of an exported model, or a name on the "
            f"Hugging Face Hub.{hint} Make one with: siglip-onnx export CHECKPOINT {name}"
        )
    return HubName(match[1], match[2])
