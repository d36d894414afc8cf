"""Tables for a terminal, in which wide characters align."""

from __future__ import annotations

from collections.abc import Sequence

from wcwidth import wcswidth, wcwidth


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return aligned lines; the first ``left`` columns are set left, the others, numbers, right."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            _pad(cell, width, right=column >= left)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def three_digits(value: float) -> str:
    """Return a probability with three significant digits, never rounded to 0 or 1: ``0.987``, ``1.40e-04``."""
    if 0 < value < 0.001:
        return f"{value:.2e}"
    if 0.9995 <= value < 1:
        return f"1-{1 - value:.1e}"
    return f"{value:#.3g}"


def printable(cell: str) -> str:
    """Replace control characters, which would break the line or the terminal."""
    return "".join(character if wcwidth(character) >= 0 else "\N{REPLACEMENT CHARACTER}" for character in cell)


def _width(cell: str) -> int:
    return int(wcswidth(cell))


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space
