"""Damage files in the ways that disks, tools and people do: cut, flipped, replaced, and with values that do not fit."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .mutate import mutate

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, -(2**63), 2**200, "", "x" * 5000, "0",
    "\0", "../x", "/", "\ud800", [], {}, [[]], [None], {"": None},
]  # fmt: skip
_DEEP = b"[" * 100_000
_LONG_NUMBER = b'{"shard_size": ' + b"9" * 5000 + b"}"
_HEADERS = [
    "{'descr': '<f8', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '>f4', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '<U4', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 128), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (5, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (128, 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (640,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 128, 1), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**12, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 128), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ('5', 128), }",
    "{'descr': '<f4', 'fortran_order': False}",
    "{'descr': 3, 'fortran_order': 3, 'shape': 3}",
    "{" * 100,
    "(" * 118,
    "'\\ud800'",
    "",
]
Damage = tuple[str, Callable[[Path], None]]


def damages(path: Path, rng: random.Random) -> Iterator[Damage]:
    """Yield the ways to damage a file or folder, each with its name; one is applied to a copy of ``path``."""
    yield "removed", remove
    yield "a loop of links", _link_to_itself
    if path.is_dir():
        yield "a file in place of the folder", _put_file
        yield "an unknown file inside", lambda target: _replace(target / "notes.txt", b"\xff")
        yield "an odd number inside", lambda target: (target / "999999999999999999999.jsonl").mkdir()
        return
    yield "a folder in place of the file", _put_folder
    yield "a pipe in place of the file", _put_pipe
    for name, content in _contents(path, path.read_bytes(), rng):
        yield name, partial(_replace, content=content)


def _contents(path: Path, content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "half", content[: len(content) // 2]
    yield "a byte short", content[:-1]
    yield "a byte long", content + b"\0"
    yield "zeros", bytes(len(content))
    yield "not UTF-8", b"\xff\xfe" + content
    yield "nested deeply", _DEEP
    yield "a long number", _LONG_NUMBER
    for number in range(8):
        yield f"bits flipped {number}", _flip(content, rng)
        yield f"mutated {number}", mutate(content or b"\0", [content or b"\0"], rng)
    if path.suffix == ".json":
        yield from _json(content)
    elif path.suffix == ".jsonl":
        yield from _json_lines(content, rng)
    elif path.suffix == ".npy":
        yield from _npy(content)
    elif path.suffix == ".parquet":
        yield from _parquet(content)


def _json(content: bytes) -> Iterator[tuple[str, bytes]]:
    document = json.loads(content)
    for value in VALUES:
        yield f"is {value!r:.20}", _dump(value)
    for keys in _places(document):
        for value in (*VALUES, ...):
            name = ".".join(map(str, keys))
            shown = "missing" if value is ... else repr(value)[:20]
            yield f"{name} is {shown}", _dump(_changed(document, keys, value))
    yield "an unknown key", _dump(document | {"unknown": 1}) if isinstance(document, dict) else b"{}"


def _json_lines(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    lines = content.splitlines()
    if not lines:
        return
    yield "lines reversed", b"\n".join(reversed(lines)) + b"\n"
    yield "a line twice", b"\n".join([*lines, lines[0]]) + b"\n"
    yield "a line missing", b"\n".join(lines[1:]) + b"\n"
    yield "one long line", b"".join(lines)
    number = rng.randrange(len(lines))
    for name, damaged in _json(lines[number]):
        yield f"line {number}: {name}", b"\n".join([*lines[:number], damaged, *lines[number + 1 :]]) + b"\n"


def _npy(content: bytes) -> Iterator[tuple[str, bytes]]:
    for header in _HEADERS:
        padded = header.encode().ljust(117)[:117] + b"\n"
        yield header[:60], content[:8] + len(padded).to_bytes(2, "little") + padded + content[128:]
    for version in ((1, 1), (2, 0), (3, 0), (9, 9), (0, 0)):
        yield f"version {version}", content[:6] + bytes(version) + content[8:]
    array = np.load(io.BytesIO(content))
    for name, changed in {
        "NaN": np.full_like(array, np.nan), "infinity": np.full_like(array, np.inf), "zero": np.zeros_like(array),
        "huge": np.full_like(array, np.finfo(array.dtype).max), "one NaN": _with_nan(array),
        "float64": array.astype(np.float64), "fewer": array[:-1], "more": np.concatenate([array, array]),
        "narrower": array[..., :-1],
    }.items():  # fmt: skip
        buffer = io.BytesIO()
        np.save(buffer, changed)
        yield name, buffer.getvalue()


def _parquet(content: bytes) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    last = table.column_names[-1]
    count = len(table)
    columns = {
        "text": pa.array(["x"] * count),
        "numbers": pa.array(range(count)),
        "nulls": pa.nulls(count),
        "lists of float64": pa.array([[0.5] * 128] * count),
        "lists of other lengths": pa.array([[0.5] * number for number in range(count)], pa.list_(pa.float32())),
        "lists of text": pa.array([["x"] * 128] * count),
        "narrower": pa.array([[0.5] * 127] * count, pa.list_(pa.float32(), 127)),
        "nulls inside": pa.array([[None] * 128] * count, pa.list_(pa.float32(), 128)),
        "NaN": pa.array([[float("nan")] * 128] * count, pa.list_(pa.float32(), 128)),
    }
    changed = {name: table.set_column(len(table.column_names) - 1, last, column) for name, column in columns.items()}
    changed |= {
        "no column": table.drop_columns([last]), "fewer rows": table.slice(1), "no rows": table.slice(0, 0),
        "more rows": pa.concat_tables([table, table]), "the column twice": table.append_column(last, table[last]),
    }  # fmt: skip
    for name, other in changed.items():
        buffer = io.BytesIO()
        pq.write_table(other, buffer)
        yield name, buffer.getvalue()


def _places(document: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value of a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document[:2])
    for key, value in items:
        yield (*keys, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*keys, key))


def _changed(document: Any, keys: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    node = copy
    for key in keys[:-1]:
        node = node[key]
    if value is ...:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return copy


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 4])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _with_nan(array: Any) -> Any:
    changed = array.copy()
    changed.flat[:1] = np.nan
    return changed


def remove(target: Path) -> None:
    """Remove a file, link or folder."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _link_to_itself(target: Path) -> None:
    remove(target)
    target.symlink_to(target.name)


def _put_file(target: Path) -> None:
    remove(target)
    target.write_bytes(b"x")


def _put_folder(target: Path) -> None:
    remove(target)
    (target / "inside").mkdir(parents=True)


def _put_pipe(target: Path) -> None:
    remove(target)
    os.mkfifo(target)


def _replace(target: Path, content: bytes) -> None:
    target.write_bytes(content)
