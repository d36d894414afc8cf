"""Cache of text embeddings, in memory and optionally on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np

from ..errors import SiglipOnnxError
from ..head import Floats
from ..system.files import open_regular, write_atomic
from ..system.lru_cache import LRUCache
from ..system.npy_files import read_npy

MAX_IN_MEMORY = 4096  # embeddings
MAX_MEMORY_BYTES = 64_000_000  # of embeddings and prompts
_MAX_FILE_BYTES = 1_000_000
_DIGEST_BYTES = 32
_CHARACTER_BYTES = 4  # at most


class LabelCache:
    """Unit embeddings f32 ``(D,)`` by prompt, the text inside its template.

    On disk each is a file ``<folder>/<embedding space>/<sha256 of the prompt>.npy``, with the sha256 of its content at
    the end, by which damage is recognized. The space of other providers than the CPU has a suffix. Files are written
    atomically, so several processes may share a folder.
    """

    def __init__(self, embedding_space: str, embedding_dim: int, folder: Path | None = None) -> None:
        self._folder = folder / embedding_space if folder else None
        self._embedding_dim = embedding_dim
        self._memory: LRUCache[str, Floats] = LRUCache(MAX_IN_MEMORY, MAX_MEMORY_BYTES)

    def get(self, prompt: str) -> Floats | None:
        """Return a prompt's embedding, or None if it is not cached; it must not be changed."""
        embedding = self._memory.get(prompt)
        if embedding is None:
            embedding = self._read(prompt)
            if embedding is not None:
                self._keep(prompt, embedding)
        return embedding

    def put(self, prompt: str, embedding: Floats) -> None:
        """Store a copy of a prompt's embedding.

        Raises:
            SiglipOnnxError: the folder cannot be written.
        """
        self._keep(prompt, embedding.copy())  # a row would keep the whole array that it is a view of
        if self._folder is None:
            return
        buffer = io.BytesIO()
        np.save(buffer, embedding)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A file that a power cut damages is computed again.
            content = buffer.getvalue()
            write_atomic(self._path(self._folder, prompt), content + hashlib.sha256(content).digest(), durable=False)
        except OSError as error:
            raise SiglipOnnxError(
                f"{self._folder} cannot be written: {error.strerror or error}. Choose another folder for the cache."
            ) from error

    def _keep(self, prompt: str, embedding: Floats) -> None:
        self._memory.put(prompt, embedding, embedding.nbytes + _CHARACTER_BYTES * len(prompt))

    def _read(self, prompt: str) -> Floats | None:
        if self._folder is None:
            return None
        # A prompt whose file is missing or damaged, or was written by version 0.1 without a hash, is embedded again.
        with contextlib.suppress(OSError, ValueError):
            with open_regular(self._path(self._folder, prompt)) as file:
                stored = file.read(_MAX_FILE_BYTES)
            content, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != digest:
                return None
            embedding: Floats = read_npy(content)
            if embedding.shape == (self._embedding_dim,) and embedding.dtype == np.float32:
                return embedding
        return None

    @staticmethod
    def _path(folder: Path, prompt: str) -> Path:
        return folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.npy"
