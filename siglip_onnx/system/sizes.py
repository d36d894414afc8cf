"""Multiply sizes that an untrusted file states."""

from __future__ import annotations

from collections.abc import Collection

MAX_DIMENSIONS = 64  # of an array of numpy, and of a tensor of PyTorch


def bounded_product(sizes: Collection[int], limit: int) -> int:
    """Return the product, or some number above ``limit`` where it is larger.

    Python's exact product of thousands of large sizes would take minutes.
    """
    if 0 in sizes:
        return 0
    product = 1
    for size in sizes:
        product *= size
        if product > limit:
            break
    return product
