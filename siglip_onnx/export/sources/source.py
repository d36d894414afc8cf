"""What every layout of a checkpoint is turned into: Hugging Face's configs and names of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .tensor import Tensors

Json = dict[str, Any]
Report = Callable[[str], None]
TWO_TOWERS = "This version exports checkpoints with two towers, vision and text"


@dataclass(frozen=True)
class Request:
    """What the user gave; ``base`` is for adapters, ``tokenizer`` for files that come without one.

    ``opened`` closes the files that a layout opens.
    """

    path: Path
    opened: ExitStack
    base: Path | None = None
    tokenizer: Path | None = None
    report: Report = lambda _line: None


@dataclass(frozen=True)
class Source:
    """A checkpoint in the terms of Hugging Face transformers 4.57.

    Attributes:
        layout: the name of the layout.
        path: the file or folder.
        config_path: the file that errors about ``config`` name.
        config: content of ``config.json``.
        preprocessor_path: the file that errors about ``preprocessor`` name.
        preprocessor: content of a flat ``preprocessor_config.json``.
        tensors: the weights.
        weight_files: the files that hold them.
        tokenizer: a ``spiece.model`` or ``tokenizer.json``, or the folder of one.
        cleaning: how open_clip cleans texts, or None to clean them as transformers does.
        files: config files whose bytes are copied, by name.
        facts: what the manifest says about the source.
    """

    layout: str
    path: Path
    config_path: Path
    config: Json
    preprocessor_path: Path
    preprocessor: Json
    tensors: Tensors
    weight_files: tuple[Path, ...]
    tokenizer: Path
    cleaning: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
