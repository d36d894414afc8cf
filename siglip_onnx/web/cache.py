"""LRU cache of image embeddings, in memory."""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from ..head import Floats
from ..system.lru_cache import LRUCache


class CachedEmbedding(NamedTuple):
    """Width and height of an image, and its embedding f32 ``(D,)`` by one model; not its pixels."""

    width: int
    height: int
    vector: Floats


class EmbeddingCache:
    """LRU cache of embeddings by image id and model id, for any number of threads."""

    def __init__(self, size: int) -> None:
        self._entries: LRUCache[tuple[str, str], CachedEmbedding] = LRUCache(size)
        self._key = secrets.token_bytes(32)  # without it an id would tell others which image it belongs to

    def image_id(self, data: bytes) -> str:
        """Return the id of an image file."""
        return hashlib.blake2b(data, key=self._key, digest_size=16).hexdigest()

    def get(self, image_id: str, model_id: str) -> CachedEmbedding | None:
        """Return an entry, or None."""
        return self._entries.get((image_id, model_id))

    def put(self, image_id: str, model_id: str, entry: CachedEmbedding) -> None:
        """Store an entry."""
        self._entries.put((image_id, model_id), entry)
