"""Write CSV that every reader splits into the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV, each ended by a line feed."""
    lines = io.StringIO()
    for row in rows:
        # A carriage return would end a row, and the module does not quote it.
        unquoted = any("\r" in str(cell) for cell in row)
        writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL if unquoted else csv.QUOTE_MINIMAL)
        writer.writerow(row)
    return lines.getvalue()
