"""An approximate index for tens of millions of vectors, and how much of the exact answer it finds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError, MissingExtraError
from ..head import Floats
from ..system.files import atomic_path
from ..system.threads import available_threads
from .job import INDEX, INDEX_FACTS
from .search import Candidates, Collection, Hit
from .storage import clear_temporary, locked, make_temporary, write_whole, writing

_SAMPLES, _NEAREST = 100, 10
_SPARE = 16


def build_index(collection: Collection, *, threads: int | None = None) -> dict[str, Any]:
    """Write an index of all vectors into the job's folder and return its facts, with its recall against exact search.

    Recall is the share of the exact nearest 10 that it finds, for 100 of the stored vectors moved a little.

    Raises:
        MissingExtraError: usearch is not installed.
        JobError: the folder cannot be written.
    """
    usearch = _import_usearch()
    job = collection.job
    with locked(job.path):
        index = usearch.Index(ndim=job.facts.embedding_dim, metric="ip", dtype="f16")
        for shard in collection.shards:
            vectors = np.array(job.read_vectors(shard))
            if len(vectors):
                index.add(_keys(shard, len(vectors)), vectors, threads=threads or available_threads())
        facts = {"vectors": len(index), "recall_at_10": _measure_recall(collection, index), "of": _digest(collection)}
        _save(index, job.path)
        write_whole(job.path, INDEX_FACTS, [(json.dumps(facts, indent=2) + "\n").encode()])
        clear_temporary(job.path)
    return facts


def search_index(collection: Collection, query: Floats, count: int) -> list[Hit]:
    """Return about the ``count`` pictures nearest to a unit vector f32 ``(D,)``, best first.

    Raises:
        MissingExtraError: usearch is not installed.
        JobError: there is no index, or it is of other vectors than the folder holds now.
    """
    usearch = _import_usearch()
    path = collection.job.path
    try:
        of = json.loads((path / INDEX_FACTS).read_bytes())["of"]
        index = usearch.Index.restore(str(path / INDEX), view=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise JobError(f"{path} has no index; make it with: siglip-onnx index {path}") from error
    if of != _digest(collection) or index is None:
        raise JobError(f"The index of {path} is of other vectors than are there now; run: siglip-onnx index {path}")
    return collection.rank(query, _candidates(index, query, count + _SPARE), count)


def _save(index: Any, folder: Path) -> None:
    with writing(folder), atomic_path(folder / INDEX, part_dir=make_temporary(folder)) as part:
        index.save(str(part))


def _measure_recall(collection: Collection, index: Any) -> float:
    rng = np.random.default_rng(0)
    found, wanted = 0, 0
    for number in rng.integers(collection.num_vectors, size=min(_SAMPLES, collection.num_vectors)):
        query = _moved(_vector_at(collection, int(number)), rng)
        exact = {hit.path for hit in collection.search(query, _NEAREST)}
        near = collection.rank(query, _candidates(index, query, _NEAREST), _NEAREST)
        found += len(exact & {hit.path for hit in near})
        wanted += len(exact)
    return round(found / wanted, 4)


def _moved(vector: Floats, rng: np.random.Generator) -> Floats:
    """Return a unit vector at a cosine of about 0.7: no query is a stored vector."""
    noise = rng.standard_normal(len(vector)).astype(np.float32)
    moved = vector + noise / np.float32(np.linalg.norm(noise))
    unit: Floats = (moved / np.linalg.norm(moved)).astype(np.float32)
    return unit


def _vector_at(collection: Collection, number: int) -> Floats:
    for shard in collection.shards:
        vectors = collection.job.read_vectors(shard)
        if number < len(vectors):
            return np.asarray(vectors[number], np.float32)
        number -= len(vectors)
    raise IndexError(number)


def _candidates(index: Any, query: Floats, count: int) -> Candidates:
    found = index.search(query, count)
    keys = np.asarray(found.keys).astype(np.int64)
    return Candidates(keys >> 20, keys & 0xFFFFF, -np.asarray(found.distances, np.float32))


def _keys(shard: int, count: int) -> NDArray[np.uint64]:
    """Return one key per row: the shard, then 20 bits for the row."""
    return (np.uint64(shard) << np.uint64(20)) + np.arange(count, dtype=np.uint64)


def _digest(collection: Collection) -> str:
    """Return a hash of which vectors there are."""
    receipts = (collection.job.receipt(shard, read_files=False) for shard in collection.shards)
    files = [None if receipt is None else asdict(receipt)["files"] for receipt in receipts]
    lines = [f"{shard} {written}" for shard, written in zip(collection.shards, files, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _import_usearch() -> Any:
    try:
        from usearch import index  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError(
            'An index needs usearch; install it with: pip install "siglip-onnx[index]", or search without it.'
        ) from error
    return index
