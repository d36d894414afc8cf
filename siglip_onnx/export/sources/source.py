"""What every layout of a checkpoint is turned into: Hugging Face's configs and names of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import DUAL, TEXT, TOWERS_OF
from .tensor import Tensors

Json = dict[str, Any]
Report = Callable[[str], None]
TWO_TOWERS = "This version exports checkpoints with two towers, vision and text"


@dataclass(frozen=True)
class Request:
    """What the user gave; ``base`` is for adapters, ``tokenizer`` for files that come without one.

    ``opened`` closes the files that a layout opens. ``tower`` is the only one to export; None exports all.
    """

    path: Path
    opened: ExitStack
    base: Path | None = None
    tokenizer: Path | None = None
    report: Report = lambda _line: None
    tower: str | None = None

    def towers(self, kind: str) -> tuple[str, ...]:
        """Return the towers to export of a checkpoint of this kind."""
        return TOWERS_OF[self.tower or kind]

    def needs_tokenizer(self) -> bool:
        """Say whether the text tower of a checkpoint with both towers is exported."""
        return TEXT in self.towers(DUAL)


@dataclass(frozen=True)
class Source:
    """A checkpoint in the terms of Hugging Face transformers 4.57.

    Attributes:
        layout: the name of the layout.
        path: the file or folder.
        config_path: the file that errors about ``config`` name.
        config: content of ``config.json``.
        preprocessor_path: the file that errors about ``preprocessor`` name.
        preprocessor: content of a flat ``preprocessor_config.json``; empty if only the text tower is exported.
        tensors: the weights.
        weight_files: the files that hold them.
        tokenizer: a ``spiece.model`` or ``tokenizer.json``, or the folder of one; None if no text tower is exported.
        cleaning: how open_clip cleans texts, or None to clean them as transformers does.
        files: config files whose bytes are copied, by name.
        facts: what the manifest says about the source.
        kind: the kind of the checkpoint's model.
        labels: of a classifier, in the order of its rows.
        problem_type: of a classifier.
    """

    layout: str
    path: Path
    config_path: Path
    config: Json
    preprocessor_path: Path
    preprocessor: Json
    tensors: Tensors
    weight_files: tuple[Path, ...]
    tokenizer: Path | None
    cleaning: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: str = DUAL
    labels: tuple[str, ...] = ()
    problem_type: str = ""
