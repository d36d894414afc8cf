"""Find the files that an ONNX graph names for its weights."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from ..system.files import open_regular
from ..system.protobuf import read_fields

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
        OSError, ValueError: it cannot be read as a graph.
    """
    with open_regular(graph) as file:
        # A view, so that weights in the graph itself are not copied; the map is closed when no view of it is left.
        pending: list[tuple[str, Any]] = [("model", memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))]
    names = set()
    while pending:
        kind, message = pending.pop()
        parts = _PARTS[kind]
        fields = [(parts[number], value) for number, value in read_fields(message, parts) if type(value) is not int]
        if kind != "external data":
            pending += fields
        elif ("key", b"location") in fields:
            names |= {bytes(value).decode(errors="replace") for part, value in fields if part == "value"}
    return names
