"""Check a Parquet file before a library decodes it: its footer, and the size of every page of a column.

The sizes in the footer are claims. Those in the headers of pages hold, because a reader fills exactly these bytes: with
them, a few kilobytes of a file could take gigabytes. pyarrow ends the process if some fields of the footer are missing.
Source: https://github.com/apache/parquet-format, parquet.thrift, and the compact protocol of Apache Thrift.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any, NamedTuple

MAX_FOOTER_BYTES = 16_000_000
_MAGIC = b"PAR1"
_FOOTER_SHARE, _SMALL_FOOTER_BYTES = 4, 1_000_000  # a larger footer may have a quarter of the file
# A page may have 20 times its compressed bytes, as texts may have; images do not compress.
_SMALL_PAGE_BYTES, _PAGE_GROWTH, _MAX_PAGE_BYTES = 16_000_000, 20, 1_000_000_000
_MAX_VALUES = 16_000_000  # of a page
_FEW_VALUE_BYTES = 1_000_000  # of a fixed size, for which also a value that is absent takes memory
_FEW_LIST_VALUES, _LIST_VALUES_PER_BYTE = 1_000_000, 4  # of a column with lists, whose levels are decoded at once
_BYTES_PER_PAGE, _FEW_PAGES = 200, 1000
_HEADER_BYTES = 32_768  # of a page; its statistics have at most 4 kB a value
# Kinds of values in Thrift.
_BOOLEANS, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = (1, 2), 3, 4, 5, 6, 7, 8, 9, 10, 12
_BITS = {_I16: 16, _I32: 32, _I64: 64}
_MAX_NUMBER = 32_767  # of a field
_DICTIONARY_PAGE, _REPEATED = 2, 2
_MAX_DEPTH = 12  # of structures and of columns


class Column(NamedTuple):
    """A column of values: its names, the outermost first; whether it has lists; the size of values of a fixed size."""

    names: tuple[str, ...]
    has_lists: bool
    value_bytes: int


class RowGroup(NamedTuple):
    """A row group: its number of rows, and for each column the place and the number of its bytes."""

    num_rows: int
    chunks: list[tuple[int, int]]


class Footer(NamedTuple):
    """What the footer says of a file of ``size_bytes``."""

    size_bytes: int
    columns: list[Column]
    row_groups: list[RowGroup]


class Pages(NamedTuple):
    """The pages of one column in one row group: the largest one decompressed, in bytes, and the number of values."""

    largest_bytes: int
    num_values: int


def read_footer(file: BufferedReader) -> Footer:
    """Read and check the footer of a Parquet file, whose decoding takes many times its bytes.

    Raises:
        ValueError: the file does not end as a Parquet file, or its footer is damaged or too large.
    """
    size_bytes = os.fstat(file.fileno()).st_size
    file.seek(max(0, size_bytes - 8))
    end = file.read(8)
    if len(end) < 8 or end[4:] != _MAGIC:
        raise ValueError("it does not end as a Parquet file")
    footer_bytes = int.from_bytes(end[:4], "little")
    allowed = min(size_bytes - 8, MAX_FOOTER_BYTES, max(_SMALL_FOOTER_BYTES, size_bytes // _FOOTER_SHARE))
    if footer_bytes > allowed:
        raise ValueError(f"its footer has {footer_bytes:,} bytes, expected at most {allowed:,}")
    file.seek(size_bytes - 8 - footer_bytes)
    try:
        fields = _Fields(file.read(footer_bytes)).read_struct().check(_LIST, 2, 4).check(_I64, 3)
        columns = list(_columns(iter(fields[2]), (), has_lists=False))
        groups = [_row_group(each, size_bytes, len(columns)) for each in fields.get(4, [])]
    except (LookupError, TypeError, AttributeError, StopIteration, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError("its footer is damaged") from error
    return Footer(size_bytes, columns, groups)


def scan_column(file: BufferedReader, footer: Footer, group: int, number: int) -> Pages:
    """Return the sizes of the pages of a column in a row group.

    Raises:
        ValueError: the column is damaged, or a page is too large.
    """
    pages = scan_pages(file, *footer.row_groups[group].chunks[number])
    allowed = footer.row_groups[group].num_rows
    if footer.columns[number].has_lists:
        allowed = min(_MAX_VALUES, _FEW_LIST_VALUES + _LIST_VALUES_PER_BYTE * footer.size_bytes)
    if pages.num_values > allowed:
        name = ".".join(footer.columns[number].names)
        raise ValueError(f"the column {name:.100} has {pages.num_values:,} values, at most {allowed:,} are allowed")
    _check_fixed_size(footer, footer.columns[number], pages.num_values)
    return pages


def _check_fixed_size(footer: Footer, column: Column, num_values: int) -> None:
    """Check the size of values that are read at once: those of a list, or else one."""
    size_bytes = column.value_bytes * (num_values if column.has_lists else 1)
    allowed = max(_FEW_VALUE_BYTES, footer.size_bytes)
    if size_bytes > allowed:
        name = ".".join(column.names)
        raise ValueError(f"values of the column {name:.100} have {size_bytes:,} bytes, at most {allowed:,} are allowed")


def scan_pages(file: IO[bytes], start: int, length: int) -> Pages:
    """Return the sizes of the pages in the ``length`` bytes from ``start`` on.

    Raises:
        ValueError: a page is damaged or too large.
    """
    largest = num_values = num_pages = 0
    place, end = start, start + length
    while place < end:
        file.seek(place)
        header = _Fields(file.read(min(_HEADER_BYTES, end - place)))
        kind, page_bytes, stored_bytes, values = _read_page(header)
        place += header.place + stored_bytes
        if place > end or stored_bytes < 0 or page_bytes < 0:
            raise ValueError("a page ends outside of its column")
        allowed = min(_MAX_PAGE_BYTES, max(_SMALL_PAGE_BYTES, _PAGE_GROWTH * stored_bytes))
        if page_bytes > allowed:
            raise ValueError(f"a page of {stored_bytes:,} bytes has {page_bytes:,} decompressed, at most {allowed:,} "
                             "are allowed")  # fmt: skip
        if not 0 <= values <= (page_bytes if kind == _DICTIONARY_PAGE else _MAX_VALUES):
            raise ValueError(f"a page of {page_bytes:,} bytes has {values:,} values")
        largest, num_pages = max(largest, page_bytes), num_pages + 1
        num_values += 0 if kind == _DICTIONARY_PAGE else values
        if num_pages > _FEW_PAGES + length // _BYTES_PER_PAGE:
            raise ValueError(f"a column of {length:,} bytes has more than {num_pages - 1:,} pages")
    return Pages(largest, num_values)


def _columns(elements: Iterator[Any], names: tuple[str, ...], *, has_lists: bool) -> Iterator[Column]:
    """Yield the columns of values below the next element of a schema, which lists a tree depth first."""
    element = next(elements).check(_I32, 1, 2, 3, 5).check(_BINARY, 4)
    has_lists |= element.get(3) == _REPEATED
    num_children = element.get(5, 0)
    if len(names) > _MAX_DEPTH or num_children < 0:
        raise LookupError
    is_root = not names
    inner = names if is_root else (*names[:-1], element[4].decode())
    if num_children == 0 and not is_root:
        yield Column(inner, has_lists, max(0, element.get(2, 0)))
    for _ in range(num_children):
        yield from _columns(elements, (*inner, ""), has_lists=has_lists)


def _row_group(fields: _Struct, size_bytes: int, num_columns: int) -> RowGroup:
    chunks = []
    for chunk in fields.check(_LIST, 1).check(_I64, 2, 3)[1]:
        facts = chunk.check(_STRUCT, 3)[3].check(_I64, 5, 6, 7, 9, 10, 11)
        start, length = facts[9], facts[7]
        if 0 < facts.get(11, 0) < start:  # its dictionary comes first
            start = facts[11]
        if {1, 2, 3, 4, 5, 6} - facts.keys() or start < 0 or length < 0 or start + length > size_bytes:
            raise LookupError
        chunks.append((start, length))
    if len(chunks) != num_columns or fields[3] < 0 or 2 not in fields:
        raise LookupError
    return RowGroup(fields[3], chunks)


def _read_page(header: _Fields) -> tuple[int, int, int, int]:
    """Return the type, the bytes decompressed and stored, and the number of values of a page."""
    try:
        fields = header.read_struct().check(_I32, 1, 2, 3).check(_STRUCT, 5, 7, 8)
        kind, page_bytes, stored_bytes = (int(fields[number]) for number in (1, 2, 3))
        parts = [fields[number] for number in (5, 7, 8) if number in fields]  # by type of the page
        inner = parts[0].check(_I32, 1) if parts else {1: 0}
        return kind, page_bytes, stored_bytes, int(inner[1])
    except (LookupError, TypeError) as error:
        raise ValueError("the header of a page is damaged") from error


class _Struct(dict[int, Any]):
    """The fields of a structure by number."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[int, int] = {}

    def check(self, kind: int, *numbers: int) -> _Struct:
        """Check that these fields are of a kind, or absent: the library skips a field of another kind.

        Raises:
            LookupError: one is of another kind.
        """
        if any(self.kinds.get(number, kind) != kind for number in numbers):
            raise LookupError
        return self


class _Fields:
    """Reads structures of Thrift's compact protocol; damage is a LookupError or a TypeError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def read_struct(self, depth: int = _MAX_DEPTH) -> _Struct:
        """Return the fields of a structure, in ascending order."""
        fields, number = _Struct(), 0
        while (head := self._read_byte()) != 0:
            last, kind = number, head & 15
            number = last + (head >> 4) if head >> 4 else self._read_integer(_I16)
            if not last < number <= _MAX_NUMBER:  # the library takes the lower bits, and the last of equal ones
                raise LookupError
            fields.kinds[number] = kind
            fields[number] = kind == _BOOLEANS[0] if kind in _BOOLEANS else self._read_value(kind, depth)
        return fields

    def _read_value(self, kind: int, depth: int) -> Any:
        if kind in _BITS:
            return self._read_integer(kind)
        if kind == _BINARY:
            return self._read_bytes(self._read_varint())
        if kind in (_BYTE, *_BOOLEANS):
            return self._read_byte()
        if kind == _DOUBLE:
            return self._read_bytes(8)
        if depth == 0:
            raise LookupError
        if kind == _STRUCT:
            return self.read_struct(depth - 1)
        if kind not in (_LIST, _SET):
            raise LookupError
        head = self._read_byte()
        size = head >> 4 if head >> 4 < 15 else self._read_varint()
        if size > len(self._data):
            raise LookupError
        return [self._read_value(head & 15, depth - 1) for _ in range(size)]

    def _read_bytes(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self._data):
            raise LookupError
        return self._data[self.place - size : self.place]

    def _read_byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

    def _read_varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._read_byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise LookupError

    def _read_integer(self, kind: int) -> int:
        value = self._read_varint()
        if value.bit_length() > _BITS[kind]:
            raise LookupError
        return (value >> 1) ^ -(value & 1)
