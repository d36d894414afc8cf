"""Where an ONNX graph keeps its weights, read before onnxruntime sees the graph, and without the onnx package.

Only the few fields of ONNX's protobuf messages that can lead to a tensor are followed; all else is skipped by its
length, so a graph of gigabytes costs as little as its nodes. Source: ``onnx.proto3`` of onnx 1.21.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError
from .integrity import check_name, leaves_folder

MAX_GRAPH_BYTES = 2_147_483_647  # what protobuf itself reads
MAX_FIELDS = 20_000_000
MAX_DEPTH = 40
_MAX_TEXT = 4096

# For each message, its fields that lead to tensors.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KEY, _VALUE = 1, 2


@dataclass(frozen=True)
class ExternalTensor:
    """What a graph says of one tensor outside it; sizes in bytes, ``length`` None if not given."""

    location: str
    offset: int
    length: int | None


def check_external_data(path: Path) -> set[str]:
    """Check that all weights of the graph ``path`` lie in files of its own folder; return the files' names.

    Raises:
        BundleError: a location leaves the folder, is missing or too short; or the graph is no protobuf, or too large.
    """
    try:
        tensors = _read_external_tensors(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no readable ONNX graph: {error}. Export or download the model again.") from error
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.location
        if name not in sizes:
            sizes[name] = _confined_size(path, name)
        end = tensor.offset + (tensor.length or 0)
        if tensor.offset < 0 or end > sizes[name]:
            raise BundleError(
                f"{path} has weights up to byte {end} of {name!r}, which has {sizes[name]} bytes. "
                "Export or download the model again."
            )
    return set(sizes)


def _confined_size(path: Path, name: str) -> int:
    """Return the size of the file that a graph names."""
    try:
        check_name(name)
    except ValueError as error:
        raise BundleError(
            f"{path} keeps weights in {name!r}, outside its folder; it is not loaded. Get the model from a source you "
            "trust."
        ) from error
    file = path.parent / name
    if not file.is_file():
        raise BundleError(f"{path} keeps weights in {name!r}, which is missing. Export or download the model again.")
    if leaves_folder(path.parent, file):
        raise BundleError(
            f"{path} keeps weights in {name!r}, a link to {file.resolve()}, outside its folder; it is not loaded."
        )
    return file.stat().st_size


def _read_external_tensors(path: Path) -> list[ExternalTensor]:
    size = path.stat().st_size
    if size > MAX_GRAPH_BYTES:
        raise ValueError(f"it has {size:,} bytes, and a graph at most {MAX_GRAPH_BYTES:,}")
    if size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(content).tensors()


class _Reader:
    """Walks one message after another, with a bound on fields and depth."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._fields = 0

    def tensors(self) -> list[ExternalTensor]:
        """Return all external tensors, of subgraphs and functions as well."""
        found: list[ExternalTensor] = []
        waiting = [("model", 0, len(self._content), 0)]
        while waiting:
            kind, start, end, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            inside, entries = _INSIDE[kind], {}
            for field, at, stop in self._bytes_fields(start, end):
                below = inside.get(field)
                if below == "entry":
                    key, value = self._entry(at, stop)
                    if key in entries:
                        raise ValueError(f"it says {key} of a tensor twice")
                    entries[key] = value
                elif below == "node" and self._content.find(b"location", at, stop) < 0:
                    continue  # as nearly all: no need to look into its attributes
                elif below is not None:
                    waiting.append((below, at, stop, depth + 1))
            if "location" in entries:
                found.append(_external_tensor(entries))
        return found

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        texts = {_KEY: "", _VALUE: ""}
        for field, at, stop in self._bytes_fields(start, end):
            if stop - at > _MAX_TEXT:
                raise ValueError(f"it has a location of {stop - at:,} bytes")
            texts[field] = self._content[at:stop].decode("utf-8")
        return texts[_KEY], texts[_VALUE]

    def _bytes_fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, start and end of each field that has a length; the others cannot hold a message."""
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            tag, at = self._varint(at, end)
            wire = tag & 7
            if wire == _BYTES:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise ValueError("it ends early")
                yield tag >> 3, at, at + length
                at += length
            elif wire == _VARINT:
                _, at = self._varint(at, end)
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
            else:
                raise ValueError(f"it is no protobuf (wire type {wire})")
        if at != end:
            raise ValueError("it ends early")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("it ends early")


def _external_tensor(entries: dict[str, str]) -> ExternalTensor:
    length = entries.get("length")
    return ExternalTensor(entries["location"], int(entries.get("offset", "0")), None if length is None else int(length))
