"""Records of a job: its facts, the receipts of its shards, and its inputs before and after they are embedded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from .. import demo
from ..bundle.integrity import FileFacts
from ..errors import ImageError, JobError
from ..options import DROP, MOST_PIXELS, RuntimeOptions
from ..system.json_files import to_json
from ..system.records import read_record

FORMAT = "siglip_onnx.job/1"
MAX_SHARD_SIZE = 1000
# Paths of 4,096 bytes, each an escape of 6, twice in a row with a message. A folder from elsewhere may claim any size.
MAX_LINE_BYTES = 65_536
DTYPES = ("float32", "float16")
_MAX_DIM = 65_536
_MAX_INT = 2**63 - 1
_PATCHES = re.compile(r"-([0-9]{1,5})patches\Z")  # of an embedding space
OK, CRASH = "ok", "crash"
STATUSES = (OK, *ImageError.STATUSES, CRASH)


@dataclass(frozen=True)
class JobFacts:
    """The facts that all vectors of a job share, stored as ``job.json``."""

    model_name: str
    variant: str
    embedding_space: str
    embedding_dim: int
    logit_scale: float | None  # None of a model that does not compare images with texts
    logit_bias: float | None
    preprocessing: dict[str, Any]
    layout: str
    dtype: str
    shard_size: int
    model: str = ""  # name or absolute path by which the model was opened; not part of the fingerprint

    def __post_init__(self) -> None:
        """Check the values on which memory and arithmetic depend.

        Raises:
            ValueError: a value is not possible.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r:.40}, expected one of {', '.join(DTYPES)}")
        for name, largest in (("embedding_dim", _MAX_DIM), ("shard_size", MAX_SHARD_SIZE)):
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {largest}")
        head = (self.logit_scale or 0.0, self.logit_bias or 0.0)
        if not (abs(head[0]) <= 10 and abs(head[1]) <= 1000):
            raise ValueError(f"logit_scale is {self.logit_scale} and logit_bias {self.logit_bias}, expected raw ones")

    @property
    def fingerprint(self) -> str:
        """Hash of the facts, by which a shard of this job is distinguished from one of another."""
        return hashlib.sha256(replace(self, model="").to_bytes()).hexdigest()

    def name_model(self) -> str:
        """Return the name or absolute path of the model.

        Raises:
            JobError: it is a relative path, which leads elsewhere from each folder: no job of ours has one.
        """
        name = self.model or self.model_name
        if name != demo.NAME and not os.path.isabs(name) and os.path.isdir(name):  # noqa: PTH112, PTH117 - any text
            raise JobError(
                f"The vectors name their model {name!r:.200}, and the current folder has a folder of this name. If it "
                "is the model and you trust it, name it yourself: --model ./FOLDER, or open_collection(..., model=...)."
            )
        return name

    @property
    def max_num_patches(self) -> int | None:
        """Number of patches of a NaFlex model that the vectors were embedded with; None for the checkpoint's own."""
        found = _PATCHES.search(self.embedding_space)
        return None if found is None else int(found[1])

    @property
    def background(self) -> str:
        """Background of transparent images; ``"drop"`` in a job of version 0.1, which did not record it."""
        return str(self.preprocessing.get("background", DROP))

    @property
    def fast_decode(self) -> bool:
        """Whether large JPEGs were decoded at a fraction of their size."""
        return bool(self.preprocessing.get("fast_decode"))

    @property
    def allow_truncated(self) -> bool:
        """Whether the job was begun with images whose files end early."""
        return bool(self.preprocessing.get("allow_truncated"))

    @property
    def max_pixels(self) -> int | None:
        """Limit of an image with which the job was begun, in pixels; None if it is not recorded."""
        limits = self.preprocessing.get("image_limits")
        pixels = limits.get("max_pixels") if isinstance(limits, dict) else None
        return pixels if type(pixels) is int and 0 < pixels <= MOST_PIXELS else None

    def deciding(self) -> dict[str, Any]:
        """Return by name what decides the vectors and their files.

        The largest number of pixels and ``allow_truncated``, which decide only whether an image has a vector, may
        change from run to run; so may the name of the model.
        """
        facts = asdict(self)
        preprocessing: dict[str, Any] = facts.pop("preprocessing")
        for values, name in ((facts, "model"), (preprocessing, "allow_truncated")):
            values.pop(name, None)
        if isinstance(limits := preprocessing.get("image_limits"), dict):
            limits.pop("max_pixels", None)
        return {**facts, **preprocessing}

    def to_bytes(self) -> bytes:
        """Return the content of ``job.json``."""
        facts = {name: value for name, value in asdict(self).items() if name != "model" or value}
        return f"{to_json({'format': FORMAT} | facts, indent=2)}\n".encode()


def newly_allowed(facts: JobFacts, options: RuntimeOptions) -> set[str]:
    """Return the statuses of errors that options allow, with which the job of these facts was not begun."""
    raised = facts.max_pixels is not None and options.image_limits.max_pixels > facts.max_pixels
    truncated = options.allow_truncated and not facts.allow_truncated
    return {status for status, allowed in (("too_large", raised), ("truncated", truncated)) if allowed}


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done: the hash of its plan, its files, and the number of rows of each status.

    ``truncated`` counts the vectors of images whose files end early.
    """

    fingerprint: str
    plan_sha256: str
    files: dict[str, FileFacts]
    counts: dict[str, int]
    truncated: int = 0

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: a status is unknown, or a shard cannot have that many rows.
        """
        if unknown := self.counts.keys() - set(STATUSES):
            raise ValueError(f"counts has {min(unknown)!r:.40}, expected some of {', '.join(STATUSES)}")
        if not all(0 < count <= MAX_SHARD_SIZE for count in self.counts.values()):
            raise ValueError(f"counts are {self.counts!r:.80}, expected 1 to {MAX_SHARD_SIZE} each")

        if not 0 <= self.truncated <= self.num_vectors:
            raise ValueError(f"truncated is {self.truncated}, expected 0 to {self.num_vectors}")

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        facts = {name: value for name, value in asdict(self).items() if name != "truncated" or value}
        return f"{json.dumps(facts, indent=2)}\n".encode()

    @property
    def num_inputs(self) -> int:
        """Number of rows of any status."""
        return sum(self.counts.values())

    @property
    def num_vectors(self) -> int:
        """Number of rows with a vector."""
        return self.counts.get(OK, 0)

    @property
    def num_errors(self) -> int:
        """Number of rows without a vector."""
        return self.num_inputs - self.num_vectors


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


ROW_FIELDS = tuple(Row.__dataclass_fields__)


def inputs_to_bytes(inputs: Iterable[Input]) -> bytes:
    """Return a plan file's content."""
    return "".join(f"{to_json(item._asdict())}\n" for item in inputs).encode()


def inputs_from_bytes(content: bytes, name: str) -> list[Input]:
    """Read a plan file's content; see :func:`read_lines`."""
    inputs = [Input(**line) for line in read_lines(content, Input._fields, name)]
    if not all(map(_is_input, inputs)):
        raise damaged(name)
    return inputs


def rows_to_bytes(rows: Iterable[Row]) -> bytes:
    """Return the content of a shard's rows."""
    return "".join(f"{to_json(asdict(row))}\n" for row in rows).encode()


def rows_from_bytes(content: bytes, name: str) -> list[Row]:
    """Read the content of a shard's rows; see :func:`read_lines`."""
    rows = read_rows(content, name)
    # The vectors of a shard are those of its rows with the status ok, in their order.
    numbers = [row.row for row in rows if row.status == OK]
    if numbers != list(range(len(numbers))) or any(row.row is not None for row in rows if row.status != OK):
        raise damaged(name)
    return rows


def read_rows(content: bytes, name: str) -> list[Row]:
    """Read some of a shard's rows; see :func:`read_lines`."""
    try:
        rows = [read_record(Row, line) for line in read_lines(content, ROW_FIELDS, name)]
    except ValueError as error:
        raise damaged(name) from error
    if not all(_is_input(row.input) and row.status in STATUSES for row in rows):
        raise damaged(name)
    return rows


def read_lines(content: bytes, fields: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Read JSON lines that must have exactly these fields, in this order.

    Raises:
        JobError: they do not; the message calls their file ``name``.
    """
    try:
        # JSON escapes line feeds in names, so every line feed ends a line.
        lines = [json.loads(line) for line in content.split(b"\n") if line]
    except (ValueError, RecursionError) as error:
        raise damaged(name) from error
    if not all(isinstance(line, dict) and tuple(line) == fields for line in lines):
        raise damaged(name)
    return lines


def _is_input(item: Input) -> bool:
    """Say whether the values are those of an input; a record of each would take too long for millions of them."""
    if type(item.path) is not str or not (item.path.isascii() or _can_be_a_path(item.path)):
        return False
    size, time = item.size_bytes, item.mtime_ns
    if size is None or time is None:
        return size is time
    return type(size) is type(time) is int and 0 <= size <= _MAX_INT and -_MAX_INT <= time <= _MAX_INT


def _can_be_a_path(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def damaged(name: str) -> JobError:
    """Return the error of a damaged plan or of damaged rows."""
    return JobError(f"{name} is damaged. Start over with --overwrite, or choose another --out.")
