"""A bounded mapping for several threads that evicts the least recently used entry."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from .fork import renewed_lock

Key = TypeVar("Key")
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """Up to ``size`` entries of together ``max_bytes``; a child process keeps those that it inherited."""

    def __init__(self, size: int, max_bytes: int | None = None) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = renewed_lock(self)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, which becomes the most recently used one, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Key, value: Value, size_bytes: int = 0) -> None:
        """Store a value; if there are too many, the least recently used ones are evicted."""
        with self._lock:
            self._bytes += size_bytes - self._entries.pop(key, (None, 0))[1]
            self._entries[key] = value, size_bytes
            while len(self._entries) > self._size or (self._max_bytes is not None and self._bytes > self._max_bytes):
                self._bytes -= self._entries.popitem(last=False)[1][1]
