"""Embeddings of texts asked again and again, in memory and, if wanted, on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import OrderedDict
from pathlib import Path

import numpy as np

from ..errors import SiglipOnnxError
from ..head import Floats
from ..system.files import write_atomic
from ..system.fork import renewed_lock

MAX_IN_MEMORY = 4096


class LabelCache:
    """Unit embeddings f32 ``(D,)`` by prompt: the text as it stands in its template.

    On disk each is a file ``<folder>/<embedding space>/<sha256 of the prompt>.npy``, written whole or not at all, so
    several processes may share a folder.
    """

    def __init__(self, embedding_space: str, embedding_dim: int, folder: Path | None = None) -> None:
        self._folder = folder / embedding_space if folder else None
        self._embedding_dim = embedding_dim
        self._memory: OrderedDict[str, Floats] = OrderedDict()
        self._lock = renewed_lock(self)

    def get(self, prompt: str) -> Floats | None:
        """Return a prompt's embedding, or None if it is not known."""
        with self._lock:
            if prompt in self._memory:
                self._memory.move_to_end(prompt)
                return self._memory[prompt]
        found = self._read(prompt)
        if found is not None:
            self._remember(prompt, found)
        return found

    def put(self, prompt: str, embedding: Floats) -> None:
        """Keep a prompt's embedding.

        Raises:
            SiglipOnnxError: the folder cannot be written.
        """
        self._remember(prompt, embedding)
        if self._folder is None:
            return
        buffer = io.BytesIO()
        np.save(buffer, embedding)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # What a power cut damages is computed again.
            write_atomic(self._path(self._folder, prompt), buffer.getvalue(), durable=False)
        except OSError as error:
            raise SiglipOnnxError(
                f"{self._folder} cannot be written: {error.strerror or error}. Choose another folder for the cache."
            ) from error

    def _remember(self, prompt: str, embedding: Floats) -> None:
        with self._lock:
            self._memory[prompt] = embedding
            if len(self._memory) > MAX_IN_MEMORY:
                self._memory.popitem(last=False)

    def _read(self, prompt: str) -> Floats | None:
        if self._folder is None:
            return None
        # A file that is missing or damaged is one that must be made again.
        with contextlib.suppress(OSError, ValueError, EOFError):
            found: Floats = np.load(self._path(self._folder, prompt), allow_pickle=False)
            if found.shape == (self._embedding_dim,) and found.dtype == np.float32:
                return found
        return None

    @staticmethod
    def _path(folder: Path, prompt: str) -> Path:
        return folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.npy"
