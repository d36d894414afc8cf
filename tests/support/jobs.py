"""Folders that bulk jobs write."""

from __future__ import annotations

import hashlib
from pathlib import Path


def tree(out: Path) -> dict[str, str]:
    """Return the hash of every file that the job promises, by name."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
