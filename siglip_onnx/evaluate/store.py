"""Embed a data set with every variant in one pass, in blocks that survive an interruption."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..bulk.progress import Changes, Progress
from ..errors import DataError, ImageError, SiglipOnnxError
from ..head import Floats
from ..image.preprocess import Inputs
from ..model import SigLIP
from ..system.files import follow_links, is_part, read_small, write_atomic
from ..system.json_files import read_json_object, to_json
from ..system.npy_files import NPY_ERRORS
from ..system.workers import in_batches, map_in_order
from .sources import Sample

_BLOCK = 256  # inputs that are stored together
FACTS = "evaluation.json"
_BLOCKS = "embeddings"
_MAX_BLOCK_BYTES = 200_000_000  # ten variants of 1,536 dimensions have 16 MB
_DIGEST_BYTES = 32  # at the end of a block
Prepare = Callable[[SigLIP, Image.Image], Inputs]


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings f32 ``(N, D)`` by variant, of the inputs that could be read.

    Attributes:
        embeddings: by name of the variant.
        rows: the positions of these inputs in the data set.
        errors: why the others could not be read, by position.
    """

    embeddings: dict[str, Floats]
    rows: list[int]
    errors: dict[int, ImageError]


class Store:
    """Blocks of embeddings in a folder, or nowhere; each is one file with its hash, written atomically."""

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        """Use a folder that is new or empty, or holds an evaluation of the same model, data and steps.

        Raises:
            DataError: it holds another evaluation, or other files.
            SiglipOnnxError: it cannot be written.
        """
        self._folder = folder
        content = to_json(facts, indent=2)
        self._key = hashlib.sha256(content.encode()).digest()  # of the blocks of this evaluation
        if folder is None:
            return
        path = folder / FACTS
        try:
            known = read_json_object(path) if path.exists() else None
            if known is None and folder.exists() and not all(map(_is_left_over, folder.iterdir())):
                raise DataError(
                    f"{folder} is not empty and holds no evaluation, so nothing is written there; choose another --out."
                )
            follow_links(folder).mkdir(parents=True, exist_ok=True)
            if known is None:
                write_atomic(path, content.encode())
            (folder / _BLOCKS).mkdir(exist_ok=True)
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}. Choose another folder for --out.") from error
        except OSError as error:
            raise SiglipOnnxError(f"{folder} cannot be written: {error.strerror}. Choose another --out.") from error
        if known is not None and known != json.loads(content):
            different = ", ".join(key for key in facts if known.get(key) != json.loads(content)[key])
            raise DataError(
                f"{folder} holds another evaluation; different are: {different or 'its keys'}. Choose another --out."
            )

    def read(self, kind: str, block: int) -> dict[str, Any] | None:
        """Return a block's arrays, None if it must be computed: it is missing or damaged."""
        path = self._path(kind, block)
        if path is None:
            return None
        try:
            stored = read_small(path, _MAX_BLOCK_BYTES)
            content, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
            if self._digest(content) != digest:  # damaged, or of another evaluation that began here at the same time
                return None
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return dict(arrays)
        except (*NPY_ERRORS, LookupError, NotImplementedError, AttributeError, zipfile.BadZipFile, zlib.error):
            return None

    def write(self, kind: str, block: int, arrays: Mapping[str, Any]) -> None:
        """Store a block."""
        path = self._path(kind, block)
        if path is None:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            content = buffer.getvalue()
            write_atomic(path, content + self._digest(content), durable=False)
        except OSError as error:
            raise SiglipOnnxError(f"{path} cannot be written: {error.strerror}. Free some space.") from error

    def _digest(self, content: bytes) -> bytes:
        return hashlib.sha256(self._key + content).digest()

    def _path(self, kind: str, block: int) -> Path | None:
        return self._folder and self._folder / _BLOCKS / f"{kind}-{block:06}.npz"


def embed_images(
    models: Mapping[str, SigLIP],
    samples: Sequence[Sample],
    prepare: Prepare,
    store: Store,
    progress: Progress,
    workers: int,
) -> Embedded:
    """Embed images with every variant; each is read, decoded and prepared once.

    Raises:
        DataError: no image can be read.
    """
    first = next(iter(models.values()))
    batch_size = first.vision.batch_size
    blocks = list(in_batches(range(len(samples)), _BLOCK))
    read = {block: store.read("images", block) or {} for block in range(len(blocks))}
    known = {block: arrays for block, arrays in read.items() if _is_whole(arrays, models, len(blocks[block]))}
    num_known = sum(len(blocks[block]) for block in known)
    progress.planned(Changes(new=len(samples) - num_known), len(samples), {"ok": num_known})
    for block, rows in enumerate(blocks):
        if block not in known:
            known[block] = _embed_block(models, [samples[row] for row in rows], prepare, progress, workers, batch_size)
            store.write("images", block, known[block])
    messages = [str(message) for block in range(len(blocks)) for message in known[block]["errors"]]
    statuses = [str(status) for block in range(len(blocks)) for status in known[block]["statuses"]]
    rows = [row for row, message in enumerate(messages) if not message]
    if not rows:
        raise DataError(f"None of the {len(samples)} images can be read. The first: {messages[0]}")
    return Embedded(
        {name: np.concatenate([known[block][f"embeddings_{name}"] for block in range(len(blocks))]) for name in models},
        rows,
        {row: ImageError(text, status=statuses[row]) for row, text in enumerate(messages) if text},
    )


def _is_whole(arrays: Mapping[str, Any], models: Mapping[str, SigLIP], num_inputs: int) -> bool:
    """Say whether a stored block has what :func:`_embed_block` returns, without errors, which are tried again."""
    errors = arrays.get("errors")
    if errors is None or errors.shape != (num_inputs,) or (errors != "").any() or "statuses" not in arrays:
        return False
    return _has_embeddings(arrays, models, num_inputs)


def _has_embeddings(arrays: Mapping[str, Any], models: Mapping[str, SigLIP], count: int) -> bool:
    return all(
        (rows := arrays.get(f"embeddings_{name}")) is not None
        and rows.shape == (count, model.embedding_dim)
        and rows.dtype == np.float32
        for name, model in models.items()
    )


def _embed_block(
    models: Mapping[str, SigLIP],
    samples: Sequence[Sample],
    prepare: Prepare,
    progress: Progress,
    workers: int,
    batch_size: int,
) -> dict[str, Any]:
    first = next(iter(models.values()))

    def run(inputs: Inputs) -> dict[str, Floats]:
        return {name: model.vision.session.embed(inputs) for name, model in models.items()}

    def process(sample: Sample) -> Inputs | dict[str, Floats] | ImageError:
        """Prepare an image; where images do not run in batches, embed it too, so that workers share that work."""
        try:
            image = first.vision.reader.read(sample.read()).rgb
        except ImageError as error:
            return error if sample.name in str(error) else ImageError(f"{sample.name}: {error}", status=error.status)
        inputs = prepare(first, image)
        return run(inputs) if batch_size == 1 else inputs

    results: list[dict[str, Floats]] = []
    errors: list[ImageError | None] = []
    for batch in in_batches(map_in_order(process, samples, workers), batch_size):
        errors += [result if isinstance(result, ImageError) else None for result in batch]
        readable: list[Any] = [result for result in batch if not isinstance(result, ImageError)]
        if readable and batch_size > 1:
            readable = [run({"pixel_values": np.concatenate([inputs["pixel_values"] for inputs in readable])})]
        results += readable
        for result in batch:
            progress.image_done(result.status if isinstance(result, ImageError) else "ok")
    empty = np.empty((0, first.embedding_dim), np.float32)
    return {
        **{
            f"embeddings_{name}": np.concatenate([empty, *(result[name] for result in results)]) for name in models
        },
        "errors": np.array(["" if error is None else str(error) for error in errors], np.str_),
        "statuses": np.array(["" if error is None else error.status for error in errors], np.str_),
    }  # fmt: skip


def embed_texts(models: Mapping[str, SigLIP], texts: Sequence[str], store: Store) -> dict[str, Floats]:
    """Embed captions with every variant, in blocks as images.

    Raises:
        TextError: a caption cannot be tokenized.
    """
    parts: dict[str, list[Floats]] = {name: [] for name in models}
    for block, chunk in enumerate(in_batches(texts, _BLOCK)):
        arrays = store.read("texts", block)
        if arrays is None or not _has_embeddings(arrays, models, len(chunk)):
            arrays = {f"embeddings_{name}": model.text.embed(chunk) for name, model in models.items()}
            store.write("texts", block, arrays)
        for name in models:
            parts[name].append(arrays[f"embeddings_{name}"])
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _is_left_over(entry: Path) -> bool:
    """Say whether an entry is what a run leaves that ends before it has written its facts."""
    return is_part(entry.name) or (entry.name == _BLOCKS and entry.is_dir() and not any(entry.iterdir()))


def fingerprint(lines: Sequence[str]) -> str:
    """Return a hash of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
