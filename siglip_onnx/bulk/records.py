"""Records of a job: its facts, the receipts of its shards, and its inputs before and after they are embedded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..bundle.integrity import FileFacts
from ..errors import ImageError, JobError
from ..options import DROP
from ..system.json_files import to_json

FORMAT = "siglip_onnx.job/1"
MAX_SHARD_SIZE = 1000
OK, CRASH = "ok", "crash"
STATUSES = (OK, *ImageError.STATUSES, CRASH)


@dataclass(frozen=True)
class JobFacts:
    """The facts that all vectors of a job share, stored as ``job.json``."""

    model_name: str
    variant: str
    embedding_space: str
    embedding_dim: int
    logit_scale: float
    logit_bias: float
    preprocessing: dict[str, Any]
    layout: str
    dtype: str
    shard_size: int

    @property
    def fingerprint(self) -> str:
        """Hash of all facts, by which a shard of this job is distinguished from one of another."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def background(self) -> str:
        """Background of transparent images; ``"drop"`` in a job of version 0.1, which did not record it."""
        return str(self.preprocessing.get("background", DROP))

    def to_bytes(self) -> bytes:
        """Return the content of ``job.json``."""
        return (json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done: the hash of its plan, its files, and the number of rows of each status."""

    fingerprint: str
    plan_sha256: str
    files: dict[str, FileFacts]
    counts: dict[str, int]

    @property
    def num_inputs(self) -> int:
        """Number of rows of any status."""
        return sum(self.counts.values())

    @property
    def num_errors(self) -> int:
        """Number of rows without a vector."""
        return self.num_inputs - self.counts.get(OK, 0)


class Input(NamedTuple):
    """One input as it was listed; ``size_bytes`` and ``mtime_ns`` are None if the path is not a regular file."""

    path: str
    size_bytes: int | None
    mtime_ns: int | None


@dataclass(frozen=True)
class Row:
    """The result for one input.

    ``row`` is its row in the shard's vectors, None unless ``status`` is ``"ok"``. ``sha256`` is the hash of the bytes
    that were embedded; ``width`` and ``height`` are the pixels of the decoded image after EXIF rotation.
    """

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    status: str
    row: int | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    truncated: bool = False
    message: str = ""

    @property
    def input(self) -> Input:
        """The input as it was listed."""
        return Input(self.path, self.size_bytes, self.mtime_ns)


def inputs_to_bytes(inputs: Iterable[Input]) -> bytes:
    """Return a plan file's content."""
    return "".join(f"{to_json(item._asdict())}\n" for item in inputs).encode()


def inputs_from_bytes(content: bytes, name: str) -> list[Input]:
    """Read a plan file's content; see :func:`read_lines`."""
    return [Input(**line) for line in read_lines(content, Input._fields, name)]


def rows_to_bytes(rows: Iterable[Row]) -> bytes:
    """Return the content of a shard's rows."""
    return "".join(f"{to_json(asdict(row))}\n" for row in rows).encode()


def rows_from_bytes(content: bytes, name: str) -> list[Row]:
    """Read the content of a shard's rows; see :func:`read_lines`."""
    return [Row(**line) for line in read_lines(content, tuple(Row.__dataclass_fields__), name)]


def read_lines(content: bytes, fields: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Read JSON lines that must have exactly these fields, in this order.

    Raises:
        JobError: they do not; the message calls their file ``name``.
    """
    try:
        # JSON escapes line feeds in names, so every line feed ends a line.
        lines = [json.loads(line) for line in content.split(b"\n") if line]
    except ValueError as error:
        raise _damaged(name) from error
    if not all(isinstance(line, dict) and tuple(line) == fields for line in lines):
        raise _damaged(name)
    return lines


def _damaged(name: str) -> JobError:
    return JobError(f"{name} is damaged. Start over with --overwrite, or choose another --out.")
