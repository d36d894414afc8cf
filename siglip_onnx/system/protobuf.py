"""Read and write messages in protobuf's encoding, as far as ONNX graphs need it: numbers, strings and messages."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from mmap import mmap
from typing import Any

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types
_MAX_SHIFT = 63  # of the last 7 bits of a number
_MAX_KEY = 1 << 32
Message = bytes | mmap | memoryview
Entry = tuple[int, int | bytes]  # number and value of a field


def read_fields(message: int | Message, only: Container[int] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each field of a message.

    Values are numbers, and bytes or, of a ``memoryview``, views. With ``only``, values of fields of other numbers are
    None, so that they are not copied.

    Raises:
        ValueError: it is damaged, is a number itself, or has numbers of fixed size, which ``only`` skips.
    """
    if isinstance(message, int):
        raise ValueError("a number where a message is expected")
    place = 0
    while place < len(message):
        begin, (key, place) = place, _read_varint(message, place)
        if key >= _MAX_KEY or place - begin > max(1, -(-key.bit_length() // 7)):  # of which libraries take 32 bits
            raise ValueError("a field whose number is written in an odd way")
        kind, number = key & 7, 0
        if kind in (_VARINT, _BYTES):
            number, place = _read_varint(message, place)
        elif only is None or kind not in (_FIXED_32, _FIXED_64):
            raise ValueError("a number of fixed size")
        begin = place
        place += {_VARINT: 0, _BYTES: number, _FIXED_32: 4, _FIXED_64: 8}[kind]
        if place > len(message):
            raise ValueError("a field that ends too late")
        if kind not in (_VARINT, _BYTES) or (only is not None and key >> 3 not in only):
            yield key >> 3, None
        else:
            yield key >> 3, message[begin:place] if kind == _BYTES else number


def read_values(message: int | bytes | mmap, field: int) -> list[bytes]:
    """Return the values of a field that are messages or strings; see :func:`read_fields` for errors."""
    return [value for _, value in read_fields(message, (field,)) if isinstance(value, bytes)]


def _read_varint(message: Message, place: int) -> tuple[int, int]:
    """Return a number and the place after it."""
    number = 0
    for shift in range(0, _MAX_SHIFT + 1, 7):
        if place == len(message):
            raise ValueError("a number that ends too late")
        byte, place = message[place], place + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a number of too many bytes")


def write_fields(fields: Iterable[Entry]) -> bytes:
    """Return a message of these fields."""
    parts = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            parts += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            parts += _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    return bytes(parts)


def _varint(number: int) -> bytes:
    low = [number >> shift & 127 | 128 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*low[:-1], low[-1] & 127])
