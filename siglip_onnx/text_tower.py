"""The text tower: from texts to unit embeddings, with a cache for labels."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .config import TEXT
from .head import Floats, average_unit
from .options import RuntimeOptions
from .session import CPU_PROVIDER, open_tower
from .system.fork import renewed_lock
from .system.threads import available_threads
from .system.workers import in_batches, map_in_order
from .text.label_cache import LabelCache
from .text.templates import check_texts, fill_templates
from .text.tokenizer import Tokenizer
from .text.vocabulary import PIECES

MANY_TEXTS = 100  # so many take far longer than to load the graph for them
_PROMPTS_AT_ONCE = 16_384  # of labels, whose embeddings are averaged before those of the next
_AT_ONCE = 1024  # texts that are tokenized together, so that a million texts take no more memory than their embeddings


class TextTower:
    """Tokenizer, session and label cache of one variant's text tower, for any number of threads.

    Attributes:
        session: runs the tower, ``pooler_output`` f32 ``(M, D)``.
    """

    def __init__(self, bundle: Bundle, variant: str, options: RuntimeOptions) -> None:
        """Prepare the parts; tokenizer and graph load at first use.

        Raises:
            BundleError: the model has no text tower.
        """
        bundle.manifest.check_tower(TEXT)
        self.session = open_tower(bundle, TEXT, variant, options)
        self._embedding_dim = bundle.manifest.embedding_dim
        space = bundle.manifest.variants[variant].embedding_space
        if self.session.providers != [CPU_PROVIDER]:  # which may round in another way than the CPU
            space += f"-{hashlib.sha256(repr(options.providers).encode()).hexdigest()[:8]}"
        self._labels = LabelCache(space, self._embedding_dim, options.label_cache)
        self._workers, self._threads = options.workers, options.threads
        self._tokenizer_path = bundle.tokenizer_path
        self._use_pieces = PIECES in bundle.manifest.files  # an unlisted file is not verified, and not read
        self._text_length = bundle.config.text.max_position_embeddings if bundle.config.text else 0
        self._tokenizer: Tokenizer | None = None
        self._lock = renewed_lock(self)

    def tokenize(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """Return the tower's ``input_ids`` i64 ``(M, T)``.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the tokenizer's file is damaged.
        """
        return self._load_tokenizer()(check_texts(texts))

    def truncated(self, texts: Iterable[str]) -> list[bool]:
        """Return for each text whether the tower reads only its beginning, because it has too many tokens.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the tokenizer's file is damaged.
        """
        return self._load_tokenizer().truncated(check_texts(texts))

    def embed(self, texts: Iterable[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``; each text is a run of its own, so that it does not depend on others.

        On the CPU many texts are run side by side, one thread each, with the same results.

        Raises:
            TextError: a text cannot be tokenized.
            BundleError: the tokenizer or the graph cannot be loaded or run.
        """
        texts, workers = check_texts(texts), self._workers
        embeddings = np.empty((len(texts), self._embedding_dim), np.float32)
        if not texts:
            return embeddings
        with contextlib.ExitStack() as stack:
            if len(texts) >= MANY_TEXTS and workers == 1 and self.session.providers == [CPU_PROVIDER]:
                workers = self._threads or available_threads()
                if workers > 1:
                    stack.enter_context(self.session.one_thread_per_run())
            self.session.preload()  # while the tokenizer loads
            tokenizer = self._load_tokenizer()
            tokenizer.check(texts)
            rows = (row for chunk in in_batches(texts, _AT_ONCE) for row in tokenizer(chunk))
            inputs = ({"input_ids": row[np.newaxis]} for row in rows)
            for number, vectors in enumerate(map_in_order(self.session.embed, inputs, workers)):
                embeddings[number] = vectors[0]
        return embeddings

    def _load_tokenizer(self) -> Tokenizer:
        with self._lock:
            if self._tokenizer is None:
                self.session.check_files()
                self._tokenizer = Tokenizer(self._tokenizer_path, self._text_length, use_pieces=self._use_pieces)
        return self._tokenizer

    def embed_labels(self, texts: Iterable[str], template: str | Sequence[str] = "{}") -> Floats:
        """Return unit embeddings f32 ``(M, D)`` of texts in a template, or their mean over several templates.

        Prompts that are cached, in memory or in the folder ``label_cache``, are not embedded again.

        Raises:
            TextError: a template has no ``{}``, or a text cannot be tokenized.
            BundleError: the tokenizer or the graph cannot be loaded or run.
            SiglipOnnxError: the folder ``label_cache`` cannot be written.
        """
        texts, num_templates = check_texts(texts), len(fill_templates(template, [""])[0])
        blocks = list(in_batches(texts, max(1, _PROMPTS_AT_ONCE // num_templates)))
        for block in blocks if len(blocks) > 1 else ():  # before any: a text that cannot be used must not waste hours
            self._load_tokenizer().check([prompt for row in fill_templates(template, block) for prompt in row])
        labels, start = np.empty((len(texts), self._embedding_dim), np.float32), 0
        for block in blocks:
            labels[start : start + len(block)] = self._embed_prompts(fill_templates(template, block))
            start += len(block)
        return labels

    def _embed_prompts(self, prompts: Sequence[Sequence[str]]) -> Floats:
        """Return the mean f32 ``(M, D)`` of each row of prompts."""
        known = {prompt: self._labels.get(prompt) for row in prompts for prompt in row}
        missing = [prompt for prompt, embedding in known.items() if embedding is None]
        if missing:
            for prompt, embedding in zip(missing, self.embed(missing), strict=True):
                known[prompt] = embedding
                self._labels.put(prompt, embedding)
        return average_unit(np.array([[known[prompt] for prompt in row] for row in prompts], np.float32))

    def missing_labels(self, texts: Iterable[str], template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`embed_labels` would have to embed, in order, each once.

        Raises:
            TextError: a template has no ``{}``.
        """
        prompts = {prompt: None for row in fill_templates(template, texts) for prompt in row}
        return [prompt for prompt in prompts if self._labels.get(prompt) is None]
