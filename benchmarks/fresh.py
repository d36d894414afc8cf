"""A function in a fresh interpreter, and the folder of results."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call ``function`` in a new interpreter, so that nothing done before is in its memory.

    One that dies, as native code may, raises here.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
