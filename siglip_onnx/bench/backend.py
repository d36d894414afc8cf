"""Configurations to measure, and the methods that a backend must offer to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ..head import Floats

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Configuration:
    """One way to run one checkpoint; plain values, because a fresh process gets it as JSON.

    ``backend`` names a module with ``load(configuration) -> Backend``, ``files(configuration) -> list[Path]`` and
    ``packages(configuration) -> tuple[str, ...]``. ``variant`` says what it loads, ``about`` tells the reader how that
    was set up. ``threads`` are those of one run, ``workers`` the number of runs at once. ``fast_decode`` reads large
    JPEGs at a fraction of their size; only this engine does that. ``provider`` is this engine's, empty for the default,
    and ``settings`` are the options of that provider.
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
    fast_decode: bool = False
    provider: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """A loaded model, both towers. Each method is one stage, and is timed by itself."""

    def decode(self, path: Path) -> Any:
        """Return the image in a file, upright and RGB."""

    def preprocess(self, image: Any) -> Inputs:
        """Return the vision tower's inputs, ``pixel_values`` f32 ``(1, 3, S, S)``."""

    def tokenize(self, text: str) -> NDArray[Any]:
        """Return ``input_ids`` i64 ``(1, T)``."""

    def vision(self, inputs: Inputs) -> Floats:
        """Return ``pooler_output`` f32 ``(N, D)``, of any length."""

    def text(self, input_ids: NDArray[Any]) -> Floats:
        """Return ``pooler_output`` f32 ``(1, D)``, of any length."""

    def head(self, images: Floats, texts: Floats) -> Floats:
        """Return logits f32 ``(N, M)`` of the towers' outputs."""
