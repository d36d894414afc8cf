"""Read ``.npy`` content that may be damaged or malicious."""

from __future__ import annotations

import io
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What numpy raises for a damaged header, which it parses as Python, and for a shape that does not fit into memory.
NPY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    SyntaxError,
    RecursionError,
    MemoryError,
    OverflowError,
    TokenError,
)


def read_npy(content: bytes) -> NDArray[Any]:
    """Return the array of a ``.npy`` file's content; what follows it is ignored, and nothing is unpickled.

    Raises:
        ValueError: it is damaged.
    """
    try:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except NPY_ERRORS as error:
        raise ValueError(f"it is not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):  # a zip archive opens as several
        raise ValueError("it is not a .npy file of numbers")
    return array
