"""Keep the vectors of a folder of images in the cache, as a job that every search brings up to date."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import JobError
from ..options import RuntimeOptions
from ..system.cache_dir import cache_folder
from ..system.extras import is_installed
from .job import ERRORS, FACTS, describe_differences, open_job
from .listing import Listing, is_heic
from .progress import Progress
from .records import JobFacts, newly_allowed
from .run import Engine, Policy, read_errors, run_job
from .spec import ModelSpec

_NAME_CHARACTERS = 40
_WAIT_S = 3600.0  # for another search, which may be embedding a large folder


def is_job(folder: Path) -> bool:
    """Return whether a folder holds the vectors of a job rather than images."""
    return (folder / FACTS).is_file()


def newest_index(images: Path, suits: Callable[[JobFacts], bool] | None = None) -> Path | None:
    """Return the index of a folder of images that was used last, with any model, or None.

    Args:
        images: the folder of images.
        suits: says by its facts whether an index is one of those to choose from.
    """
    folder = _indexes_of(images)
    found = [path for path in folder.iterdir() if is_job(path)] if folder.is_dir() else []
    if suits is not None:
        found = [path for path in found if (facts := _facts_of(path)) is not None and suits(facts)]
    return max(found, key=_last_use, default=None)


def index_path(images: Path, facts: JobFacts) -> Path:
    """Return the folder in the cache for the vectors of a folder of images: an earlier one, or one for these facts."""
    earlier = newest_index(images, lambda stored: stored.deciding() == facts.deciding())
    return earlier or _indexes_of(images) / facts.fingerprint[:16]


def _facts_of(index: Path) -> JobFacts | None:
    try:
        return open_job(index).facts
    except JobError:  # it is damaged
        return None


def update_index(
    images: Path,
    spec: ModelSpec,
    index: Path | None,
    *,
    listing: Listing | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Embed the images of a folder that are new or have changed; return the folder of the vectors and their summary.

    Args:
        images: the folder of images.
        listing: lists the folder, and afterwards knows what it left out.
        spec: the model.
        index: folder for the vectors; by default one in the cache.
        engine: see :func:`.run_job`.
        progress: see :func:`.run_job`.

    Raises:
        JobError: the folder has no images, the index belongs to another model, or it cannot be written.
        SiglipOnnxError: the model cannot be opened or fails.
    """
    listing = listing or Listing([images])
    if listing.is_empty():
        raise JobError(
            f"{images} holds neither images nor vectors; give a folder of images, or one that siglip-onnx embed wrote."
        )
    facts = spec.job_facts()
    if index is None:
        index = index_path(images, facts)
    elif is_job(index):
        _check_inputs(images, index)
        stored = open_job(index).facts
        if stored.embedding_space != facts.embedding_space:
            raise JobError(
                f"{index} holds vectors of {stored.model_name}, variant {stored.variant}, but the model is "
                f"{facts.model_name}, variant {facts.variant}; choose another --index, or omit --model and --variant."
            )
        facts = spec.job_facts(layout=stored.layout, dtype=stored.dtype, shard_size=stored.shard_size)
        if differences := describe_differences(stored, facts):
            raise JobError(f"{index} was made {differences}; choose another --index, or leave out these options.")
    # Vectors of missing images are kept: a disk may be unplugged. Results leave them out.
    again = _can_be_read_now(index, spec.options)
    policy = Policy(fast_resume=True, retry_errors=again, wait_s=_WAIT_S, may_be_unwritable=True)
    return index, run_job(index, listing, spec.absolute(), facts, policy=policy, engine=engine, progress=progress)


def _can_be_read_now(index: Path, options: RuntimeOptions) -> bool:
    """Say whether an image that had an error may be readable now: a disk was away, an extra missing, a limit lower.

    If the list of errors is damaged, any may be; the run writes the list again.
    """
    if not (index / ERRORS).is_file():
        return False
    statuses = {"io_error", *(newly_allowed(facts, options) if (facts := _facts_of(index)) else ())}
    try:
        return any(
            error["status"] in statuses
            or (error["status"] == "unsupported" and is_heic(error["path"]) and is_installed("heic"))
            for error in read_errors(index)
        )
    except JobError:
        return True


def _check_inputs(images: Path, index: Path) -> None:
    """Refuse an index of another folder, whose images would be found too; those of a folder that was moved are gone.

    Raises:
        JobError: it holds images that exist elsewhere.
    """
    home, job = os.path.abspath(images), open_job(index)  # noqa: PTH100 - resolve() would follow links
    for shard in job.shards():
        for item in job.read_plan(shard):
            if not item.path.startswith(os.path.join(home, "")) and os.path.exists(item.path):  # noqa: PTH110, PTH118
                raise JobError(f"{index} holds images of another folder, such as {item.path}; choose another --index.")


def _indexes_of(images: Path) -> Path:
    path = os.path.abspath(images)  # noqa: PTH100 - resolve() would follow links
    name = re.sub(r"[^\w.-]", "_", Path(path).name)[:_NAME_CHARACTERS]
    return cache_folder() / "indexes" / f"{name}-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"


def _last_use(index: Path) -> float:
    return max(path.stat().st_mtime for path in index.iterdir() if path.is_file())
