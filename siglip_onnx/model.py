"""SigLIP: two lazily loaded towers and the head."""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bundle.folder import Bundle
from .bundle.manifest import graph_path
from .config import NAFLEX, NaflexPreprocessorConfig
from .errors import BundleError, ImageError, SiglipOnnxError, TextError
from .head import Floats, Match, average_unit, compute_logits, l2_normalize, match_texts
from .image.decode import DEFAULT_LIMITS, DecodedImage, ImageLimits, ImageSource, open_image
from .image.preprocess import Inputs, NaflexPreprocessor, SquashPreprocessor
from .session import CPU_PROVIDER, Session, return_free_memory
from .system.fork import renewed_lock
from .system.threads import MAX_THREADS
from .system.workers import in_batches, map_in_order
from .text.label_cache import LabelCache
from .text.templates import check_texts, fill_templates
from .text.tokenizer import Tokenizer

_BATCH = 16
_DRAFT, _REDUCING_GAP = 4, 3.0
MAX_NUM_PATCHES = 4096  # four times what NaFlex was trained with; attention grows with the square


class EmbeddedImage(NamedTuple):
    """A picture's unit embedding f32 ``(D,)``, whether its file was truncated, and its pixels as decoded, upright."""

    embedding: Floats
    truncated: bool
    width: int
    height: int


class SigLIP:
    """A model ready to use; make one with :func:`siglip_onnx.load`.

    Any number of threads may share one. In a child process that inherits one, its towers load anew when used.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        workers: int = 1,
        fast_decode: bool = False,
        max_num_patches: int | None = None,
        cache: Path | None = None,
        image_limits: ImageLimits | None = None,
        allow_truncated: bool = False,
    ) -> None:
        """Store the parts; see :func:`siglip_onnx.load` for the arguments."""
        self.bundle = bundle
        self.variant = bundle.choose_variant(variant)
        self._providers = providers
        self._workers, self._threads = check_workers(workers, threads)
        self._preprocessor = make_preprocessor(bundle, max_num_patches, fast_decode=fast_decode)
        self._draft_size = draft_size(self._preprocessor) if fast_decode else None
        self._image_limits = DEFAULT_LIMITS if image_limits is None else image_limits
        self._allow_truncated = allow_truncated
        self._labels = LabelCache(self.embedding_space, self.embedding_dim, cache)
        self._towers: dict[str, Session] = {}
        self._closed = False
        self._lock = renewed_lock(self)
        self._tokenizer_lock = renewed_lock(self, "_tokenizer_lock")
        self._made_tokenizer: Tokenizer | None = None

    def __enter__(self) -> SigLIP:
        """Return the model, which is closed at the end of the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the model."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: threads and mapped weights cannot be sent.

        Raises:
            SiglipOnnxError: always.
        """
        raise SiglipOnnxError(
            f"A model cannot be sent to another process. Load it there: siglip_onnx.load({str(self.bundle.path)!r})"
        )

    def close(self) -> None:
        """Free the model's memory for good; runs of other threads end first. Closing again does nothing."""
        with self._lock:
            self._closed = True
            self._towers.clear()
        return_free_memory()

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

    @property
    def providers(self) -> list[str]:
        """The execution providers in use: those asked for, or the CPU; none is ever replaced in silence."""
        return [CPU_PROVIDER] if self._providers is None else list(self._providers)

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
        texts = check_texts(texts)
        if not texts:
            raise TextError("There are no texts to compare with the picture; give at least one.")
        labels = self.encode_labels(texts, template=template)
        logits = self.logits(self.encode_images(image), labels, logit_bias=logit_bias)
        return [match for match in match_texts(logits[0], texts) if match.probability >= threshold]

    def encode_images(self, images: ImageSource | Iterable[ImageSource]) -> Floats:
        """Return unit embeddings f32 ``(N, D)`` of one picture or an iterable of them.

        Raises:
            ImageError: a picture cannot be read.
        """
        rows = []
        for found in self.stream_images(images):
            if isinstance(found, ImageError):
                raise found
            rows.append(found)
        return np.array(rows, np.float32).reshape(len(rows), self.embedding_dim)

    def stream_images(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[Floats | ImageError]:
        """Yield for each picture its unit embedding f32 ``(D,)``, or the error of one that cannot be read, in order.

        Pictures are taken as they are needed, never more than a few at once. On the CPU each runs by itself, so that
        a vector never depends on its neighbours; on other providers pictures of fixed resolution run in batches.
        """
        found = self.stream_embeddings(images)
        return (one if isinstance(one, ImageError) else one.embedding for one in found)

    def stream_embeddings(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        """Do as :meth:`stream_images`, and say of each picture whether it was truncated."""
        if self._batch_size == 1:
            return map_in_order(self._embed_image, _as_images(images), self._workers)
        return self._stream_batches(_as_images(images))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return unit embeddings f32 ``(M, D)``, each text run by itself.

        Raises:
            TextError: a text cannot be tokenized.
        """
        inputs = [{"input_ids": row[np.newaxis]} for row in self.tokenize(texts)]
        rows = list(map_in_order(partial(self._run, "text"), inputs, self._workers))
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *rows])

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
        return [self._preprocessor(self._open(image).rgb) for image in _as_images(images)]

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the text tower's ``input_ids`` i64 ``(M, T)``."""
        return self._tokenizer(check_texts(texts))

    def missing_labels(self, texts: Sequence[str], *, template: str | Sequence[str] = "{}") -> list[str]:
        """Return the prompts that :meth:`encode_labels` would have to embed."""
        prompts = {prompt: None for row in fill_templates(template, texts) for prompt in row}
        return [prompt for prompt in prompts if self._labels.get(prompt) is None]

    def _open(self, image: ImageSource) -> DecodedImage:
        return open_image(
            image,
            limits=self._image_limits,
            allow_truncated=self._allow_truncated,
            draft_size=self._draft_size,
        )

    def _embed_image(self, image: ImageSource) -> EmbeddedImage | ImageError:
        prepared = self._try_preprocess(image)
        if isinstance(prepared, ImageError):
            return prepared
        inputs, picture = prepared
        return _embedded(self._run("vision", inputs)[0], picture)

    def _try_preprocess(self, image: ImageSource) -> tuple[Inputs, DecodedImage] | ImageError:
        """Return the vision tower's inputs, and the picture that they are made of."""
        try:
            picture = self._open(image)
        except ImageError as error:
            return error
        return self._preprocessor(picture.rgb), picture

    @property
    def _batch_size(self) -> int:
        """How many pictures run at once: int8 on the CPU would give each other vectors in company."""
        return 1 if self.providers == [CPU_PROVIDER] or self.bundle.config.model_type == NAFLEX else _BATCH

    def _stream_batches(self, images: Iterable[ImageSource]) -> Iterator[EmbeddedImage | ImageError]:
        prepared = map_in_order(self._try_preprocess, images, self._workers)
        for batch in in_batches(prepared, self._batch_size):
            good = [found[0]["pixel_values"] for found in batch if not isinstance(found, ImageError)]
            rows = iter(self._run("vision", {"pixel_values": np.concatenate(good)}) if good else ())
            yield from (found if isinstance(found, ImageError) else _embedded(next(rows), found[1]) for found in batch)

    def _run(self, tower: str, inputs: Mapping[str, NDArray[Any]]) -> Floats:
        """Return the unit embeddings f32 ``(N, D)`` of one run."""
        embeddings = l2_normalize(self._tower(tower).run("pooler_output", inputs))
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
            if self._closed:
                raise SiglipOnnxError("This model is closed. Load it again: siglip_onnx.load(...)")
            if name not in self._towers:
                path = self.bundle.path / graph_path(name, self.variant)
                variant = self.bundle.manifest.variants[self.variant]
                made = variant.quantization.get(name, {})
                self._towers[name] = Session(
                    path,
                    providers=self._providers,
                    threads=self._threads,
                    saturation_safe=bool(made.get("reduce_range")),
                )
            return self._towers[name]

    @property
    def _tokenizer(self) -> Tokenizer:
        # Not the towers' lock: texts are tokenized while a tower loads.
        with self._tokenizer_lock:
            if self._made_tokenizer is None:
                length = self.bundle.config.text.max_position_embeddings
                self._made_tokenizer = Tokenizer(self.bundle.tokenizer_path, length)
            return self._made_tokenizer


def check_workers(workers: int, threads: int | None) -> tuple[int, int | None]:
    """Return the workers and the threads of each.

    Raises:
        SiglipOnnxError: ``workers`` is no number above 0, or workers are to have several threads each.
    """
    if not isinstance(workers, int) or not 1 <= workers <= MAX_THREADS:
        raise SiglipOnnxError(f"workers is {workers!r}, expected a number from 1 to {MAX_THREADS}.")
    if workers == 1:
        return workers, threads
    if threads not in (None, 1):
        raise SiglipOnnxError(
            f"{workers} workers of {threads} threads each were asked for; each worker is one thread. Give either."
        )
    return workers, 1


def draft_size(preprocessor: SquashPreprocessor | NaflexPreprocessor) -> tuple[int, int]:
    """Return the width and height, in pixels, below which fast decoding does not go.

    Four times the target keeps what the resize filter would have seen almost as it is.
    """
    return (_DRAFT * preprocessor.largest_side,) * 2


def make_preprocessor(
    bundle: Bundle, max_num_patches: int | None, *, fast_decode: bool = False
) -> SquashPreprocessor | NaflexPreprocessor:
    """Return what turns a picture into the inputs of the bundle's vision tower.

    Raises:
        SiglipOnnxError: ``max_num_patches`` is given for a model of fixed resolution, or is not positive.
    """
    config, reducing_gap = bundle.preprocessor, _REDUCING_GAP if fast_decode else None
    if isinstance(config, NaflexPreprocessorConfig):
        if max_num_patches is not None:
            config = replace(config, max_num_patches=max_num_patches)
        if not 1 <= config.max_num_patches <= MAX_NUM_PATCHES:
            raise SiglipOnnxError(f"max_num_patches is {config.max_num_patches}, expected 1 to {MAX_NUM_PATCHES}.")
        return NaflexPreprocessor(config, bundle.read_positions(), reducing_gap=reducing_gap)
    if max_num_patches is not None:
        raise SiglipOnnxError(
            f"{bundle.manifest.model_name} takes pictures of {config.width}x{config.height} pixels; max_num_patches "
            "is for NaFlex models only. Leave it out."
        )
    return SquashPreprocessor(config, reducing_gap=reducing_gap)


def _embedded(embedding: Floats, picture: DecodedImage) -> EmbeddedImage:
    return EmbeddedImage(embedding, picture.truncated, *picture.rgb.size)


def _as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    one = isinstance(images, str | bytes | Image.Image | np.ndarray) or hasattr(images, "__fspath__")
    if not one and (not isinstance(images, Iterable) or isinstance(images, bytearray | io.IOBase)):
        raise ImageError(f"Pictures cannot be a {type(images).__name__}; give a path, bytes, a PIL image or an array.")
    return [images] if one else images  # type: ignore[list-item,return-value]
