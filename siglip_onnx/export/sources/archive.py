"""Zip archives of arrays, as numpy and PyTorch write them, mapped instead of read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError
from ...system.files import open_regular

_MAX_RATIO = 20  # weights compress by less than 2; an archive that grows by more is a bomb


class Archive:
    """The members of one archive, by name."""

    def __init__(self, path: Path) -> None:
        """Read the table of members.

        Raises:
            CheckpointError: the file is not a zip archive, is truncated, or would unpack to many times its size.
        """
        self.path = path
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                self.members = {entry.filename: entry for entry in archive.infolist()}
            self._mapped = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise self.damaged(error) from error
        unpacked = sum(entry.file_size for entry in self.members.values())
        if unpacked > _MAX_RATIO * self._mapped.size:
            raise self.damaged(f"it would unpack from {self._mapped.size:,} to {unpacked:,} bytes")

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def size(self, name: str) -> int:
        """Return the number of bytes of a member's content."""
        return self.members[name].file_size

    def head(self, name: str, size: int) -> bytes:
        """Return at most the first ``size`` bytes of a member, without unpacking the rest.

        Raises:
            CheckpointError: the content is damaged.
        """
        entry = self.members[name]
        packed = self._packed(entry)
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflate(packed, size).tobytes()
        return packed[:size].tobytes()

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return a member's content: a view of the mapped file unless it is compressed.

        Raises:
            CheckpointError: the content is damaged.
        """
        entry = self.members[name]
        packed = self._packed(entry)
        content = self._inflate(packed, entry.file_size + 1) if entry.compress_type else packed
        if content.size != entry.file_size:
            raise self.damaged(f"{name} has {content.size:,} bytes, expected {entry.file_size:,}")
        return content

    def _packed(self, entry: zipfile.ZipInfo) -> NDArray[np.uint8]:
        """Return a member's bytes in the file."""
        start = self._start_of(entry)
        packed = self._mapped[start : start + entry.compress_size]
        if packed.size != entry.compress_size or entry.flag_bits & 1:
            raise self.damaged(f"{entry.filename} is truncated or encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.damaged(f"{entry.filename} is compressed in an unknown way")
        return packed

    def damaged(self, problem: object) -> CheckpointError:
        """Return the error about a damaged or hostile archive."""
        return CheckpointError(f"{self.path} is not an archive of weights: {problem}. Download it again.")

    def _start_of(self, entry: zipfile.ZipInfo) -> int:
        header = self._mapped[entry.header_offset : entry.header_offset + 30].tobytes()
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise self.damaged(f"{entry.filename} is truncated")
        name_size, extra_size = struct.unpack("<HH", header[26:])
        return int(entry.header_offset + 30 + name_size + extra_size)

    def _inflate(self, packed: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        """Return at most ``size`` bytes, which must be above 0: zlib takes 0 for any number."""
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed.data, size)
        except zlib.error as error:
            raise self.damaged(error) from error
        return np.frombuffer(inflated, np.uint8)
