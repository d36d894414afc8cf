"""Damages files in the ways that find bugs: flips, cuts, splices, repeats, and numbers at their limits."""

import json
import random
from typing import Any

_EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\1", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff" * 4,
             b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\1\0\0", b"\xff" * 8]  # fmt: skip


_WAYS = ("flip", "flip", "flip", "overwrite", "overwrite", "insert", "delete", "cut", "repeat", "splice")
_VALUES: list[Any] = [None, True, 0, -1, 1e308, 2**63, 2**200, "", "x" * 5000, [], {}, [[]], "\0", "../x", float("nan")]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return ``data`` with one to eight changes; half of them in its first bytes, where headers are."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        data = _mutate_once(data, others, rng) or b"\0"
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))


def _mutate_once(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    way = rng.choice(_WAYS)
    other = rng.choice(others) if way == "splice" else b""
    place = _place(data, rng)
    new, end = b"", place
    match way:
        case "flip":
            new, end = bytes([data[place] ^ (1 << rng.randrange(8))]), place + 1
        case "overwrite":
            new = rng.choice(_EXTREMES)
            end = place + len(new)
        case "insert":
            new = rng.randbytes(rng.randrange(1, 20))
        case "delete":
            end = place + rng.randrange(1, 40)
        case "cut":
            end = len(data)
        case "repeat":
            new = data[place : place + rng.randrange(1, 100)] * rng.randrange(2, 20)
        case "splice":
            new, end = other[_place(other, rng) :], len(data)
    return data[:place] + new + data[end:]


def mutate_json(document: Any, rng: random.Random) -> str:
    """Return JSON of ``document`` with a value or key changed somewhere, or with bytes changed in its text."""
    copy = json.loads(json.dumps(document))
    for _ in range(rng.randrange(1, 4)):
        _change(copy, rng)
    text = json.dumps(copy)
    if rng.random() < 0.3:
        return mutate(text.encode(), [text.encode()], rng).decode("utf-8", errors="surrogateescape")
    return text


def _change(node: Any, rng: random.Random) -> None:
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and rng.random() < 0.7:
            node = node[key]
            continue
        break
    if rng.random() < 0.3:
        del node[key]
    elif rng.random() < 0.2 and isinstance(node, dict):
        node[rng.choice(["x", "", "../x", "size_bytes"])] = node.pop(key)
    else:
        node[key] = rng.choice(_VALUES)
