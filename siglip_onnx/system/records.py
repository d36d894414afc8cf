"""Build dataclasses from parsed JSON documents, with errors that name the key that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
_JSON_NAMES = {
    "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list",
    "dict": "an object", "NoneType": "null",
}  # fmt: skip


def read_record(kind: type[Record], document: object, *, ignore_unknown: bool = False) -> Record:
    """Return a dataclass whose fields are the keys of a JSON object.

    Fields may be of type ``str``, ``int``, ``float`` (which also takes whole numbers), ``bool``, ``Any``, another
    dataclass, ``X | None``, and lists, sequences, ``tuple[X, ...]`` and string-keyed mappings of these. A field with a
    default may be missing. A field that was renamed lists its old keys as ``metadata={"aliases": ("old",)}``.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Size:
    ...     width: int
    ...     height: int = dataclasses.field(metadata={"aliases": ("lines",)})
    >>> read_record(Size, {"width": 3, "lines": 4})
    Size(width=3, height=4)
    >>> read_record(Size, {"width": "3", "lines": 4})
    Traceback (most recent call last):
    ValueError: width is "3", expected a whole number

    Args:
        kind: the dataclass.
        document: what ``json.loads`` returned.
        ignore_unknown: skip keys that are not a field, so that newer versions may add some.

    Raises:
        ValueError: a key is missing, unknown or of another type, or the dataclass itself refuses a value.
    """
    record: Record = _read_dataclass(kind, document, "", ignore_unknown)
    return record


def _read_dataclass(kind: Any, document: object, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(document, dict):
        raise _wrong_type(document, "an object", where)
    remaining, values = dict(document), {}
    for field, expected in _fields(kind):
        keys = [key for key in (field.name, *field.metadata.get("aliases", ())) if key in remaining]
        if keys:
            values[field.name] = _read_value(expected, remaining[keys[0]], _join(where, keys[0]), ignore_unknown)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(where, field.name)} is missing")
        for key in keys:
            del remaining[key]
    if remaining and not ignore_unknown:
        raise ValueError(f"unknown key {_join(where, min(remaining))}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _read_value(expected: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, UnionType):
        (some,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _read_value(some, value, where, ignore_unknown)
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, value, where, ignore_unknown)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _wrong_type(value, "an object", where)
        return {key: _read_value(arguments[1], item, _join(where, key), ignore_unknown) for key, item in value.items()}
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list):
            raise _wrong_type(value, "a list", where)
        items = [_read_value(arguments[0], item, f"{where}[{i}]", ignore_unknown) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise _wrong_type(value, _JSON_NAMES[expected.__name__], where)
    try:
        return expected(value)
    except OverflowError as error:
        raise ValueError(f"{where} is a whole number too large for a float") from error


@functools.cache
def _fields(kind: Any) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _wrong_type(value: object, expected: str, where: str) -> ValueError:
    shown = _JSON_NAMES[type(value).__name__] if isinstance(value, dict | list) else json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return ValueError(f"{where or 'the document'} is {shown}, expected {expected}")
