"""Find the files that an ONNX graph names for its weights."""

from __future__ import annotations

import mmap
from pathlib import Path

from ..system.files import open_regular
from ..system.protobuf import read_fields

MAX_FIELDS = 500_000  # half a second; the graphs of a base model have up to 16,000
_MAX_DEPTH = 100  # as protobuf's own parsers
# Numbers of the fields that lead to tensors, by message; source: onnx.proto of ONNX 1.23.
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
    "external data": {1: "key", 2: "value"},
}


def weight_files(graph: Path) -> set[str]:
    """Return the names of the files with the weights of a graph, relative to its folder, as the graph spells them.

    Raises:
        OSError, ValueError: it cannot be read as a graph, or has far more parts than graphs of models have.
    """
    search = _Search()
    with open_regular(graph) as file:
        # A view, so that weights in the graph itself are not copied; the map is closed when no view of it is left.
        search.run("model", memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    return search.names


class _Search:
    """Collects names from a message and those inside it, of which it keeps only the path to the present one."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._num_fields = 0

    def run(self, kind: str, message: memoryview, depth: int = 0) -> None:
        """Search a message of a kind of :data:`_PARTS`."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"messages inside each other, more than {_MAX_DEPTH} deep")
        parts = _PARTS[kind]
        strings: list[tuple[str, bytes]] = []
        for number, value in read_fields(message, parts):
            self._num_fields += 1
            if self._num_fields > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS:,} fields outside its weights, expected some thousands")
            if not isinstance(value, memoryview):
                continue
            if kind == "external data":
                strings.append((parts[number], bytes(value)))
            else:
                self.run(parts[number], value, depth + 1)
        if ("key", b"location") in strings:
            self.names |= {value.decode(errors="replace") for part, value in strings if part == "value"}
