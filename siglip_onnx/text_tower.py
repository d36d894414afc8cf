"""The text tower: from texts to unit embeddings, with a cache for labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .bundle.manifest import TEXT
from .head import Floats, average_unit
from .options import RuntimeOptions
from .session import open_tower
from .system.fork import renewed_lock
from .system.workers import map_in_order
from .text.label_cache import LabelCache
from .text.templates import check_texts, fill_templates
from .text.tokenizer import Tokenizer
from .text.vocabulary import PIECES


class TextTower:
    """Tokenizer, session and label cache of one variant's text tower, for any number of threads.

    Attributes:
        session: runs the tower, ``pooler_output`` f32 ``(M, D)``.
    """

    def __init__(self, bundle: Bundle, variant: str, options: RuntimeOptions) -> None:
        """Prepare the parts; tokenizer and graph load at first use."""
        self.session = open_tower(bundle, TEXT, variant, options)
        self._embedding_dim = bundle.manifest.embedding_dim
        space = bundle.manifest.variants[variant].embedding_space
        self._labels = LabelCache(space, self._embedding_dim, options.label_cache)
        self._workers = options.workers
        self._tokenizer_path = bundle.tokenizer_path
        self._use_pieces = PIECES in bundle.manifest.files  # an unlisted file is not verified, and not read
        self._text_length = bundle.config.text.max_position_embeddings
        self._tokenizer: Tokenizer | None = None
        self._lock = renewed_lock(self)

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tower's ``input_ids`` i64 ``(M, T)``.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the tokenizer's file is damaged.
        """
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(self._tokenizer_path, self._text_length, use_pieces=self._use_pieces)
        return self._tokenizer(check_texts(texts))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``; each text is a run of its own, so that it does not depend on others.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the tokenizer or the graph cannot be loaded or run.
        """
        inputs = ({"input_ids": row[np.newaxis]} for row in self.tokenize(texts))
        rows = map_in_order(self.session.embed, inputs, self._workers)
        return np.concatenate([np.empty((0, self._embedding_dim), np.float32), *rows])

    def embed_labels(self, texts: Sequence[str], template: str | Sequence[str] = "{}") -> Floats:
        """Return unit embeddings f32 ``(M, D)`` of texts in a template, or their mean over several templates.

        Prompts that are cached, in memory or in the folder ``label_cache``, are not embedded again.

        Raises:
            TextError: a template has no ``{}``, or a text cannot be tokenized.
            BundleError: the tokenizer or the graph cannot be loaded or run.
            SiglipOnnxError: the folder ``label_cache`` cannot be written.
        """
        prompts = fill_templates(template, texts)
        known = {prompt: self._labels.get(prompt) for row in prompts for prompt in row}
        missing = [prompt for prompt, embedding in known.items() if embedding is None]
        if missing:
            for prompt, embedding in zip(missing, self.embed(missing), strict=True):
                known[prompt] = embedding
                self._labels.put(prompt, embedding)
        if not prompts:
            return np.empty((0, self._embedding_dim), np.float32)
        return average_unit(np.array([[known[prompt] for prompt in row] for row in prompts], np.float32))

    def missing_labels(self, texts: Sequence[str], template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`embed_labels` would have to embed, in order, each once.

        Raises:
            TextError: a template has no ``{}``.
        """
        prompts = {prompt: None for row in fill_templates(template, texts) for prompt in row}
        return [prompt for prompt in prompts if self._labels.get(prompt) is None]
