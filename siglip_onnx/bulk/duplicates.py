"""Find identical and near-identical images among the vectors of a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..head import Floats, l2_normalize
from .listing import input_of, status_of
from .records import Row
from .search import Collection

DEFAULT_THRESHOLD = 0.98
_CELLS = 16_000_000  # similarities that are in memory at once


class Copy(NamedTuple):
    """One image of a group: its cosine with the group's first image, and whether the two files are identical.

    ``missing`` says that the file no longer exists; then no other of its group does. ``truncated`` says that the file
    ends early, and only a part of the image was embedded.
    """

    path: str
    similarity: float
    identical: bool
    width: int | None
    height: int | None
    size_bytes: int
    missing: bool = False
    truncated: bool = False


class Duplicates(NamedTuple):
    """Groups of at least two images, and the number of images that were left out, because their files have changed."""

    groups: list[list[Copy]]
    num_changed: int


class _Image(NamedTuple):
    """An image with a vector, and the device and inode of its file, by which links are recognized."""

    row: Row
    missing: bool
    is_link: bool
    file: tuple[int, int] | None

    @property
    def rank(self) -> tuple[bool, int, bool, int, bool, str]:
        """By which images are sorted, the best first: it exists, has the most pixels, is whole, has the most bytes."""
        row = self.row
        pixels, size = (row.width or 0) * (row.height or 0), row.size_bytes or 0
        return self.missing, -pixels, row.truncated, -size, self.is_link, row.path


def find_duplicates(
    collection: Collection, threshold: float = DEFAULT_THRESHOLD, *, only_existing: bool = False
) -> Duplicates:
    """Return groups of at least two images whose cosine with the first of their group is at least ``threshold``.

    The first image of a group is its best one: that with the most pixels, then a whole one, then that with the most
    bytes. Groups in which copies take the most bytes come first. A link and its file are one image, named by the file.
    Images whose files have another size or time than when they were embedded are left out, missing ones where any of
    their group exists.

    Args:
        collection: the vectors; every pair is compared.
        threshold: identical files form groups with any threshold, and with 1 no others: computed cosines of different
            images may be 1.
        only_existing: leave out all images whose files no longer exist.

    Raises:
        JobError: stored vectors cannot be read.
    """
    images, vectors, num_changed = _read(collection, only_existing)
    order = _without_links(images)
    first_of_hash: dict[str, int] = {}
    for index in order:
        first_of_hash.setdefault(str(images[index].row.sha256), index)
    distinct = np.array(list(first_of_hash.values()), np.int64)
    leaders = dict(zip(distinct.tolist(), distinct[_find_leaders(vectors[distinct], threshold)].tolist(), strict=True))
    groups: dict[int, list[Copy]] = {}
    for index in order:
        leader = leaders[first_of_hash[str(images[index].row.sha256)]]
        if images[leader].missing or not images[index].missing:
            copy = _describe(images[index], images[leader], vectors[index], vectors[leader])
            groups.setdefault(leader, []).append(copy)
    found = [group for group in groups.values() if len(group) > 1]
    return Duplicates(sorted(found, key=lambda group: -sum(copy.size_bytes for copy in group[1:])), num_changed)


def _read(collection: Collection, only_existing: bool) -> tuple[list[_Image], Floats, int]:
    """Return the images with a vector, the vectors f32 ``(N, D)``, and the number of images that have changed."""
    images: list[_Image] = []
    parts = [np.empty((0, collection.job.facts.embedding_dim), np.float32)]
    num_changed = 0
    for shard in collection.shards:
        examined = [_examine(row) for row in collection.read_rows(shard)]
        num_changed += examined.count(None)
        kept = {
            number: image
            for number, image in enumerate(examined)
            if image is not None and not (only_existing and image.missing)
        }
        images += kept.values()
        vectors = collection.read_vectors(shard)[list(kept)]
        # Rounded to f16, they are not of length 1 any more.
        parts.append(l2_normalize(vectors.astype(np.float32)) if vectors.dtype == np.float16 else vectors)
    return images, np.concatenate(parts), num_changed


def _examine(row: Row) -> _Image | None:
    """Look for the file of an image; None if it has changed since it was embedded."""
    status = status_of(row.path)
    if status is None:
        return _Image(row, missing=True, is_link=False, file=None)
    if input_of(row.path, status) != row.input:
        return None
    file = (status.st_dev, status.st_ino) if status.st_ino else None  # 0 on file systems without inodes
    return _Image(row, missing=False, is_link=os.path.islink(row.path), file=file)  # noqa: PTH114


def _without_links(images: Sequence[_Image]) -> list[int]:
    """Return the numbers of the images by rank, of those with the same file only the first."""
    order, seen = [], set()
    for index in sorted(range(len(images)), key=lambda index: images[index].rank):
        file = images[index].file
        if file is None or file not in seen:
            order.append(index)
            seen.add(file)
    return order


def _find_leaders(vectors: Floats, threshold: float) -> NDArray[np.int64]:
    """Return for each vector the first earlier vector that leads a group and is near enough, or itself."""
    leaders = np.arange(len(vectors))
    if threshold >= 1:
        return leaders
    is_free = np.ones(len(vectors), bool)
    for start, similarities in _similarities(vectors):
        for index, row in enumerate(similarities, start):
            if is_free[index]:
                members = index + np.flatnonzero((row[index - start :] >= threshold) & is_free[index:])
                leaders[members] = index
                is_free[members] = is_free[index] = False
    return leaders


def _similarities(vectors: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield the index of a first row, and the cosines of some rows with all rows from that one on."""
    rows_at_once = max(1, _CELLS // max(1, len(vectors)))
    for start in range(0, len(vectors), rows_at_once):
        yield start, vectors[start : start + rows_at_once] @ vectors[start:].T


def _describe(image: _Image, leader: _Image, vector: Floats, leader_vector: Floats) -> Copy:
    row = image.row
    identical = row.sha256 == leader.row.sha256
    cosine = 1.0 if identical else float(vector.astype(np.float64) @ leader_vector.astype(np.float64))
    return Copy(row.path, min(cosine, 1.0), identical, row.width, row.height, row.size_bytes or 0, image.missing,
                row.truncated)  # fmt: skip
