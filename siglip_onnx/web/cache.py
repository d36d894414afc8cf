"""LRU cache of image embeddings, in memory."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple

from ..head import Floats


class CachedEmbedding(NamedTuple):
    """Width and height of an image, and its embedding f32 ``(D,)`` by one model; not its pixels."""

    width: int
    height: int
    vector: Floats


class EmbeddingCache:
    """Embeddings by image id and model id; the least recently used are evicted. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[str, str], CachedEmbedding] = OrderedDict()
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)  # without it an id would tell others which image it belongs to

    def image_id(self, data: bytes) -> str:
        """Return the id of an image file."""
        return hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()

    def get(self, image_id: str, model_id: str) -> CachedEmbedding | None:
        """Return an entry, or None."""
        with self._lock:
            if (image_id, model_id) not in self._entries:
                return None
            self._entries.move_to_end((image_id, model_id))
            return self._entries[image_id, model_id]

    def put(self, image_id: str, model_id: str, entry: CachedEmbedding) -> None:
        """Store an entry."""
        with self._lock:
            self._entries[image_id, model_id] = entry
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
