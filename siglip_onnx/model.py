"""SigLIP: two lazily loaded towers and the head."""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bundle import Bundle, graph_path
from .config import NaflexPreprocessorConfig
from .errors import BundleError, ImageError, SiglipOnnxError, TextError
from .head import Floats, Match, average_unit, compute_logits, l2_normalize, match_texts
from .image import ImageSource, load_image
from .label_cache import LabelCache
from .preprocess import Inputs, NaflexPreprocessor, SquashPreprocessor
from .session import Session, return_free_memory
from .tokenizer import Tokenizer

MAX_NUM_PATCHES = 4096  # four times what NaFlex was trained with; attention grows with the square


class SigLIP:
    """A model ready to use; make one with :func:`siglip_onnx.load`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        max_num_patches: int | None = None,
        cache: Path | None = None,
    ) -> None:
        """Store the parts; see :func:`siglip_onnx.load` for the arguments."""
        self.bundle = bundle
        self.variant = bundle.choose_variant(variant)
        self._providers, self._threads = providers, threads
        self._preprocessor = make_preprocessor(bundle, max_num_patches)
        self._labels = LabelCache(self.embedding_space, self.embedding_dim, cache)
        self._towers: dict[str, Session] = {}
        self._lock = threading.Lock()

    @property
    def embedding_dim(self) -> int:
        """Width ``D`` of an embedding."""
        return self.bundle.manifest.embedding_dim

    @property
    def embedding_space(self) -> str:
        """Id of the vectors this model makes; vectors of different spaces must not be compared."""
        space = self.bundle.manifest.variants[self.variant].embedding_space
        chosen = self._preprocessor.config
        if isinstance(chosen, NaflexPreprocessorConfig) and chosen != self.bundle.preprocessor:
            return f"{space}-{chosen.max_num_patches}patches"
        return space

    def classify(
        self,
        image: ImageSource,
        texts: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        threshold: float = 0.0,
        logit_bias: float | None = None,
    ) -> list[Match]:
        """Say for each text how probably it describes the picture, in the order given.

        Args:
            image: path, bytes, PIL image or uint8 array.
            texts: descriptions in any language the checkpoint knows.
            template: what each text is put into, for example ``"This is a photo of {}."``; of several templates the
                mean is taken.
            threshold: leave out texts of lower probability.
            logit_bias: instead of the checkpoint's, which is a little too low for many uses.

        Raises:
            ImageError: the picture cannot be read.
            TextError: no texts, or one that cannot be tokenized.
        """
        texts = _check_texts(texts)
        if not texts:
            raise TextError("There are no texts to compare with the picture; give at least one.")
        labels = self.encode_labels(texts, template=template)
        logits = self.logits(self.encode_images(image), labels, logit_bias=logit_bias)
        return [match for match in match_texts(logits[0], texts) if match.probability >= threshold]

    def encode_images(self, images: ImageSource | Iterable[ImageSource]) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one picture or an iterable of them.

        Pictures run one by one, so that a vector never depends on its neighbours.

        Raises:
            ImageError: a picture cannot be read.
        """
        return self._encode("vision", (self._preprocess_one(image) for image in _as_images(images)))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``, each text run by itself.

        Raises:
            TextError: a text cannot be tokenized.
        """
        ids = self.tokenize(texts)
        return self._encode("text", ({"input_ids": row[np.newaxis]} for row in ids))

    def encode_labels(self, texts: Sequence[str], *, template: str | Sequence[str] = "{}") -> Floats:
        """Return unit embeddings f32 ``(M, D)`` of texts in a template, or their mean over several templates.

        What was embedded once is kept: in memory, and in the folder that ``load(cache=...)`` named.

        Raises:
            TextError: a template has no ``{}``, or a text cannot be tokenized.
        """
        rows = fill_templates(template, texts)
        known = {prompt: self._labels.get(prompt) for row in rows for prompt in row}
        missing = [prompt for prompt, embedding in known.items() if embedding is None]
        if missing:
            for prompt, embedding in zip(missing, self.encode_texts(missing), strict=True):
                known[prompt] = embedding
                self._labels.put(prompt, embedding)
        if not rows:
            return np.empty((0, self.embedding_dim), np.float32)
        return average_unit(np.array([[known[prompt] for prompt in row] for row in rows], np.float32))

    def logits(self, image_embeddings: Floats, text_embeddings: Floats, *, logit_bias: float | None = None) -> Floats:
        """Return logits f32 ``(N, M)`` of unit embeddings ``(N, D)`` and ``(M, D)``; see :func:`.sigmoid`."""
        manifest = self.bundle.manifest
        bias = manifest.logit_bias if logit_bias is None else logit_bias
        if not math.isfinite(bias):
            raise SiglipOnnxError(f"logit_bias is {bias}, expected a finite number.")
        return compute_logits(image_embeddings, text_embeddings, logit_scale=manifest.logit_scale, logit_bias=bias)

    def preprocess(self, images: ImageSource | Iterable[ImageSource]) -> list[Inputs]:
        """Return the vision tower's inputs by name, one dictionary per picture, each a batch of one.

        Fixed resolution: ``pixel_values`` f32 ``(1, 3, S, S)``. NaFlex: see
        :class:`siglip_onnx.preprocess.NaflexPreprocessor`.
        """
        return [self._preprocess_one(image) for image in _as_images(images)]

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the text tower's ``input_ids`` i64 ``(M, T)``."""
        return self._tokenizer(_check_texts(texts))

    def missing_labels(self, texts: Sequence[str], *, template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`encode_labels` would have to embed."""
        prompts = {prompt: None for row in fill_templates(template, texts) for prompt in row}
        return [prompt for prompt in prompts if self._labels.get(prompt) is None]

    def _preprocess_one(self, image: ImageSource) -> Inputs:
        return self._preprocessor(load_image(image))

    def _encode(self, tower: str, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> Floats:
        rows = [self._tower(tower).run("pooler_output", one) for one in inputs]
        if not rows:
            return np.empty((0, self.embedding_dim), np.float32)
        embeddings = l2_normalize(np.concatenate(rows))
        if not np.isfinite(embeddings).all():
            raise BundleError(
                f"The {tower} tower of {self.bundle.path}, variant {self.variant}, gave values that are no numbers. "
                "Export or download the model again, or try another variant or provider."
            )
        return embeddings

    def preload(self, tower: str) -> None:
        """Begin to load the ``"vision"`` or the ``"text"`` tower in the background; an error shows at its first use."""

        def load() -> None:
            with contextlib.suppress(SiglipOnnxError):
                self._tower(tower)

        # No daemon: an interpreter that ends while onnxruntime works in a thread aborts.
        threading.Thread(target=load).start()

    def unload(self, tower: str) -> None:
        """Free the memory of the ``"vision"`` or the ``"text"`` tower; it loads again when needed."""
        with self._lock:
            self._towers.pop(tower, None)
        return_free_memory()

    def _tower(self, name: str) -> Session:
        """Return a tower, loading it on first use; threads that ask at once get the same one."""
        with self._lock:
            if name not in self._towers:
                path = self.bundle.path / graph_path(name, self.variant)
                self._towers[name] = Session(path, providers=self._providers, threads=self._threads)
            return self._towers[name]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bundle.tokenizer_path, self.bundle.config.text.max_position_embeddings)


def make_preprocessor(bundle: Bundle, max_num_patches: int | None) -> SquashPreprocessor | NaflexPreprocessor:
    """Return what turns a picture into the inputs of the bundle's vision tower.

    Raises:
        SiglipOnnxError: ``max_num_patches`` is given for a model of fixed resolution, or is not positive.
    """
    config = bundle.preprocessor
    if isinstance(config, NaflexPreprocessorConfig):
        if max_num_patches is not None:
            config = replace(config, max_num_patches=max_num_patches)
        if not 1 <= config.max_num_patches <= MAX_NUM_PATCHES:
            raise SiglipOnnxError(f"max_num_patches is {config.max_num_patches}, expected 1 to {MAX_NUM_PATCHES}.")
        return NaflexPreprocessor(config, bundle.read_positions())
    if max_num_patches is not None:
        raise SiglipOnnxError(
            f"{bundle.manifest.model_name} takes pictures of {config.width}x{config.height} pixels; max_num_patches "
            "is for NaFlex models only. Leave it out."
        )
    return SquashPreprocessor(config)


def fill_templates(template: str | Sequence[str], texts: Sequence[str]) -> list[list[str]]:
    """Put each text in the place of ``{}``; one row per text, one column per template.

    Raises:
        TextError: a template has no ``{}``, or there is none.
    """
    templates = [template] if isinstance(template, str) else list(template)
    for one in templates or [""]:
        if "{}" not in one:
            raise TextError(f"The template {one!r} has no {{}} for the text; write for example 'a photo of {{}}'.")
    return [[one.replace("{}", text) for one in templates] for text in _check_texts(texts)]


def _check_texts(texts: Sequence[str]) -> list[str]:
    # A lone string is a sequence of its letters: surely not what was meant. A set has no order.
    if isinstance(texts, str):
        raise TextError(f"Texts cannot be one str; give a list: [{texts[:40]!r}].")
    if not isinstance(texts, Sequence):
        raise TextError(f"Texts cannot be a {type(texts).__name__}; give a list of str.")
    return list(texts)


def _as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    one = isinstance(images, str | bytes | Image.Image | np.ndarray) or hasattr(images, "__fspath__")
    if not one and (not isinstance(images, Iterable) or isinstance(images, bytearray | io.IOBase)):
        raise ImageError(f"Pictures cannot be a {type(images).__name__}; give a path, bytes, a PIL image or an array.")
    return [images] if one else images  # type: ignore[list-item,return-value]
