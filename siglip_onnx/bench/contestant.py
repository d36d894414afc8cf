"""What a configuration is, and what a backend must offer to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ..head import Floats

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Configuration:
    """One way to run one checkpoint; plain values, because a fresh process gets it as JSON.

    ``backend`` is a module with ``load(configuration) -> Contestant``, ``files(configuration) -> list[Path]`` and
    ``packages(configuration) -> tuple[str, ...]``; ``variant`` says to it what to load, ``about`` says to the reader
    how that was set up. ``threads`` are those of one run, ``workers`` how many runs there are at once.
    """

    name: str
    backend: str
    variant: str
    bundle: str
    checkpoint: str = ""
    work: str = ""
    threads: int = 1
    workers: int = 1
    about: str = ""


class Contestant(Protocol):
    """A loaded model, both towers. Each method is one stage, and is timed by itself."""

    def decode(self, path: Path) -> Any:
        """Return the picture in a file, upright and RGB."""

    def preprocess(self, picture: Any) -> Inputs:
        """Return the vision tower's inputs, ``pixel_values`` f32 ``(1, 3, S, S)``."""

    def tokenize(self, text: str) -> NDArray[Any]:
        """Return ``input_ids`` i64 ``(1, T)``."""

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``, of any length."""

    def text(self, input_ids: NDArray[Any]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``, of any length."""

    def head(self, images: Floats, texts: Floats) -> Floats:
        """Return logits f32 ``(N, M)`` of what the towers gave."""


class Backend(Protocol):
    """The module of a backend, as :class:`Configuration` names it."""

    def load(self, configuration: Configuration) -> Contestant:
        """Load both towers; that time is measured."""

    def files(self, configuration: Configuration) -> list[Path]:
        """Return the files that must be on disk to run it."""

    def packages(self, configuration: Configuration) -> tuple[str, ...]:
        """Return the packages that compute, whose versions a reader must know."""
