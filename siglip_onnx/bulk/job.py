"""Read and write a job's folder: the facts of the job, and the plan, rows, vectors and receipt of each shard."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ..bundle.integrity import FileFacts
from ..errors import JobError, JobNotFoundError
from ..image.convert import name_background
from ..options import DROP, WHITE
from ..system.files import follow_links, open_regular, read_small, remove_own_files
from ..system.files import remove as remove_file
from ..system.json_files import read_json_object, to_json
from ..system.records import read_record
from .layouts import LAYOUTS, Layout
from .records import (
    FORMAT,
    MAX_LINE_BYTES,
    MAX_SHARD_SIZE,
    OK,
    STATUSES,
    Input,
    JobFacts,
    Receipt,
    Row,
    damaged,
    inputs_from_bytes,
    inputs_to_bytes,
    read_rows,
    rows_from_bytes,
    rows_to_bytes,
)
from .storage import LOCK, TEMPORARY, TEMPORARY_FILES, remove, write_whole, writing

FACTS, SUMMARY, ERRORS, LOG = "job.json", "summary.json", "errors.jsonl", "log.jsonl"
_INDEX_OF_0_1 = ("index.usearch", "index.json")  # version 0.1 could add an approximate index
DERIVED = (SUMMARY, ERRORS, *_INDEX_OF_0_1)
# Files of a shard, as are those of a layout.
PLAN, ROWS, RECEIPT = "plan/{:06}.jsonl", "rows/{:06}.jsonl", "receipts/{:06}.json"
PARTS = "partial"  # the folder of saved results of shards that are not complete
_MAX_LINES_BYTES = MAX_LINE_BYTES * MAX_SHARD_SIZE
_MAX_VALUE_BYTES = 8  # of a number of a vector
_OPTIONS = ("variant", "layout", "dtype", "shard_size", "fast_decode", "background")  # among the facts of a job
_NUMBER = "[0-9]{6,12}"  # of a shard
_PART_NAME = re.compile(rf"({_NUMBER})-([0-9a-f]*)-[0-9a-f]{{32}}")


class Part(NamedTuple):
    """Saved results of a shard: the run that saved them, the rows, and their vectors f32 ``(number of ok rows, D)``."""

    run: str
    rows: list[Row]
    vectors: NDArray[Any]


class Job:
    """An open job folder."""

    def __init__(self, path: Path, facts: JobFacts) -> None:
        """Use the folder ``path``, whose ``job.json`` holds these facts."""
        self.path = path
        self.facts = facts
        self.layout: Layout = LAYOUTS[facts.layout](facts.embedding_dim, np.dtype(facts.dtype))
        self._fingerprint = facts.fingerprint
        self._max_shard_bytes = _MAX_LINES_BYTES + _MAX_VALUE_BYTES * MAX_SHARD_SIZE * facts.embedding_dim

    def shards(self) -> list[int]:
        """Return the numbers of the planned shards."""
        folder = (self.path / PLAN).parent
        names = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.stem) for path in names if re.fullmatch(rf"{_NUMBER}\.jsonl", path.name))

    def read_plan(self, shard: int) -> list[Input]:
        """Return the planned inputs of a shard.

        Raises:
            JobError: the plan file is missing or damaged.
        """
        return inputs_from_bytes(self._plan_bytes(shard), str(self.path / PLAN.format(shard)))

    def write_plan(self, shard: int, inputs: Iterable[Input]) -> None:
        """Write the planned inputs of a shard; a receipt for other inputs is no longer valid."""
        remove(self.path, SUMMARY)
        write_whole(self.path, PLAN.format(shard), [inputs_to_bytes(inputs)])

    def remove_shard(self, shard: int) -> None:
        """Remove all files of a shard, the receipt first."""
        remove(self.path, SUMMARY)
        for name in (RECEIPT.format(shard), *self.layout.file_names(shard), ROWS.format(shard), PLAN.format(shard)):
            remove(self.path, name)
        self.remove_parts(shard)

    def save_part(self, shard: int, run: str, rows: list[Row], vectors: NDArray[Any]) -> None:
        """Save results of a shard that is not complete; after a power cut they may be lost."""
        body = rows_to_bytes(rows) + vectors.astype(np.float32, copy=False).tobytes()
        header = {"fingerprint": self._fingerprint, "sha256": _sha256(body), "rows": len(rows)}
        name = f"{PARTS}/{shard:06}-{run}-{uuid4().hex}"
        write_whole(self.path, name, [f"{to_json(header)}\n".encode(), body], durable=False)

    def read_parts(self, shard: int) -> Iterator[Part]:
        """Yield the saved results of a shard.

        What is damaged, belongs to another job, or together has more bytes than a shard can have is left out.
        """
        bytes_left = self._max_shard_bytes
        for path in self._part_paths(shard):
            try:
                content = read_small(path, bytes_left)
                bytes_left -= len(content)
                rows, vectors = self._read_part(content, str(path))
            except (OSError, ValueError, TypeError, KeyError, RecursionError, JobError):
                continue
            yield Part(path.name.split("-")[1], rows, vectors)

    def _read_part(self, content: bytes, name: str) -> tuple[list[Row], NDArray[Any]]:
        header, _, body = content.partition(b"\n")
        facts = json.loads(header)
        if facts["fingerprint"] != self._fingerprint or facts["sha256"] != _sha256(body):
            raise damaged(name)
        lines = body.split(b"\n", facts["rows"])
        rows = rows_from_bytes(b"\n".join(lines[:-1]), name)
        vectors = np.frombuffer(lines[-1], np.float32).reshape(-1, self.facts.embedding_dim)
        if len(rows) != facts["rows"] or len(vectors) != sum(row.status == OK for row in rows):
            raise damaged(name)
        return rows, vectors

    def remove_parts(self, shard: int) -> None:
        """Remove the saved results of a shard, but not their folder, to which other workers may be writing."""
        with writing(self.path):
            for path in self._part_paths(shard):
                remove_file(path, within=self.path)

    def clear_parts(self) -> None:
        """Remove the saved results of all shards, and their folder."""
        with writing(self.path):
            remove_own_files(self.path, [(PARTS, _PART_NAME.pattern)])

    def _part_paths(self, shard: int) -> list[Path]:
        folder = self.path / PARTS
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        matches = (_PART_NAME.fullmatch(name) for name in names)
        return [folder / match[0] for match in matches if match is not None and int(match[1]) == shard]

    def commit(self, shard: int, inputs: list[Input], rows: list[Row], vectors: NDArray[Any]) -> Receipt:
        """Write a shard's vectors ``(number of ok rows, D)`` and rows, then its receipt.

        Between the removal of an older receipt and the new one the shard counts as not done.
        """
        contents = self.layout.to_files(shard, rows, vectors) | {ROWS.format(shard): rows_to_bytes(rows)}
        remove(self.path, RECEIPT.format(shard))
        for name, content in contents.items():
            write_whole(self.path, name, [content])
        receipt = Receipt(
            fingerprint=self._fingerprint,
            plan_sha256=_sha256(inputs_to_bytes(inputs)),
            files={name: FileFacts(len(content), _sha256(content)) for name, content in contents.items()},
            counts={status: count for status in STATUSES if (count := Counter(row.status for row in rows)[status])},
            truncated=sum(row.truncated for row in rows),
        )
        write_whole(self.path, RECEIPT.format(shard), [receipt.to_bytes()])
        self.remove_parts(shard)
        return receipt

    def receipt(self, shard: int, *, read_files: bool) -> Receipt | None:
        """Return a shard's receipt if it belongs to this job and its files match; ``read_files`` also checks hashes."""
        try:
            receipt = read_record(Receipt, read_json_object(self.path / RECEIPT.format(shard)))
        except (OSError, ValueError):
            return None
        whole = (
            receipt.fingerprint == self._fingerprint
            and self._has_files(shard, receipt, read_files)
            and (not read_files or self._counts(shard) == receipt.counts)
        )
        return receipt if whole else None

    def is_done(self, shard: int, receipt: Receipt) -> bool:
        """Return whether a receipt is for the current plan of its shard."""
        return receipt.plan_sha256 == _sha256(self._plan_bytes(shard))

    def read_rows(self, shard: int) -> list[Row]:
        """Return the rows of a committed shard."""
        return rows_from_bytes(self._row_bytes(shard), str(self.path / ROWS.format(shard)))

    def find_rows(self, shard: int, rows: Iterable[int]) -> dict[int, Row]:
        """Return the rows that belong to some of a shard's vectors; only their lines are parsed.

        Raises:
            JobError: the file is missing or damaged, or has no such row.
        """
        content, name = self._row_bytes(shard), str(self.path / ROWS.format(shard))
        found = {}
        for row in rows:
            # Inside a name the quotes would be escaped.
            position = content.find(b'"row": %d,' % row)
            start, end = content.rfind(b"\n", 0, position) + 1, content.find(b"\n", position)
            found[row] = read_rows(content[start:end] if position >= 0 else b"null", name)[0]
            if found[row].row != row:
                raise damaged(name)
        return found

    def read_vectors(self, shard: int) -> NDArray[Any]:
        """Return a committed shard's vectors ``(number of ok rows, D)``, memory-mapped where its layout allows.

        Raises:
            JobError: they cannot be read, or hold NaN or infinity.
        """
        vectors = self.layout.read(self.path, shard)
        if not np.isfinite(vectors).all():
            raise self.not_finite(shard)
        return vectors

    def not_finite(self, shard: int) -> JobError:
        """Return the error for a shard whose vectors hold NaN or infinity."""
        return JobError(
            f"{self.path / self.layout.file_names(shard)[0]} holds vectors with NaN or infinity. Remove "
            f"{self.path / RECEIPT.format(shard)} and run the embed command again, which embeds these images again."
        )

    def _plan_bytes(self, shard: int) -> bytes:
        return self._read_lines(PLAN.format(shard))

    def _row_bytes(self, shard: int) -> bytes:
        return self._read_lines(ROWS.format(shard))

    def _read_lines(self, name: str) -> bytes:
        path = self.path / name
        try:
            return read_small(path, _MAX_LINES_BYTES)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise JobError(
                f"{path} cannot be read: {problem}. Start over with --overwrite, or choose another --out."
            ) from error

    def _counts(self, shard: int) -> dict[str, int]:
        """Count a shard's rows by status, without parsing them: inside a name the quotes would be escaped."""
        content = self._row_bytes(shard)
        counts = {status: content.count(b'"status": "%s",' % status.encode()) for status in STATUSES}
        return {status: count for status, count in counts.items() if count}

    def _has_files(self, shard: int, receipt: Receipt, read_files: bool) -> bool:
        if set(receipt.files) != {*self.layout.file_names(shard), ROWS.format(shard)}:
            return False
        for name, facts in receipt.files.items():
            try:
                if (self.path / name).stat().st_size != facts.size_bytes:
                    return False
                if read_files and (
                    facts.size_bytes > self._max_shard_bytes or _sha256_of_file(self.path / name) != facts.sha256
                ):
                    return False
            except (OSError, JobError):
                return False
        return True


def open_job(path: Path) -> Job:
    """Open the folder of a job.

    Raises:
        JobError: it is not a job folder, is damaged, or was written by an incompatible version.
    """
    facts_path = path / FACTS
    try:
        document = read_json_object(facts_path)
    except FileNotFoundError as error:
        raise JobNotFoundError(
            f"{path} holds no vectors; create them with: siglip-onnx embed FOLDER --out {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise JobError(f"{facts_path} cannot be read: {error}.") from error
    if document.pop("format", None) != FORMAT:
        raise JobError(
            f"{facts_path} does not have the format {FORMAT!r}; start over with --overwrite, or use the version that "
            "wrote it."
        )
    try:
        facts = read_record(JobFacts, document)
        if facts.layout not in LAYOUTS:
            raise ValueError(f"layout is {facts.layout!r}, expected one of {', '.join(LAYOUTS)}")
    except ValueError as error:
        raise JobError(
            f"{facts_path} is damaged ({error}). Start over with --overwrite, or choose another --out."
        ) from error
    return Job(path, facts)


def make_folder(path: Path) -> None:
    """Create a job's folder if it does not exist.

    Raises:
        JobError: the path is a file, holds other files, or cannot be created.
    """
    try:
        follow_links(path).mkdir(parents=True, exist_ok=True)
        other_names = {entry.name for entry in path.iterdir()} - {TEMPORARY, LOCK}
    except FileExistsError as error:
        raise JobError(f"{path} is a file; give the name of a folder as --out.") from error
    except OSError as error:
        raise JobError(
            f"{path} cannot be created: {error.strerror}. Choose another folder, or allow to write there."
        ) from error
    if other_names and not (path / FACTS).exists():
        raise JobError(f"{path} is not empty and is not a job folder; choose another --out.")


def begin_job(path: Path, facts: JobFacts, *, overwrite: bool) -> Job:
    """Create a job in its folder, or open the job that an earlier run with the same facts left there.

    Raises:
        JobError: the folder holds a job with other facts or other files, or cannot be written.
    """
    if overwrite and (path / FACTS).exists():
        _remove_job(path)
    if (path / FACTS).exists():
        job = open_job(path)
        if differences := describe_differences(job.facts, facts):
            raise JobError(
                f"{path} was made {differences}. Use the same options to resume, --overwrite to start over, or another "
                "--out."
            )
        return job
    write_whole(path, FACTS, [facts.to_bytes()])
    return Job(path, facts)


def describe_differences(made: JobFacts, requested: JobFacts) -> str:
    """Return how a job differs from what is requested: ``with --dtype float32, not float16``; empty if it does not."""
    facts, others = made.deciding(), requested.deciding()
    if "background" not in facts and requested.background in (DROP, name_background(WHITE)):
        others.pop("background", None)  # a job of version 0.1 keeps what it did
    differences = []
    for name in facts | others:
        value, other = facts.get(name), others.get(name)
        shown = f"--{name.replace('_', '-')}" if name in _OPTIONS else name
        if value == other:
            continue
        if isinstance(value, bool):
            differences.append(f"with {shown}, not without it" if value else f"without {shown}, not with it")
        else:
            differences.append(f"with {shown} {value}, not {other}")
    return "; ".join(differences)


def _read_own_facts(path: Path) -> dict[str, Any]:
    """Return the content of a ``job.json`` that any version of this command wrote."""
    try:
        document = read_json_object(path / FACTS)
        if not str(document.get("format")).startswith(FORMAT.rpartition("/")[0] + "/"):
            raise ValueError(f"its format is {document.get('format')!r}")
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path / FACTS} does not describe a job of this command ({error}), so nothing there is overwritten; "
            "choose another --out."
        ) from error
    return document


def _remove_job(path: Path) -> None:
    """Remove the files that a job wrote, its facts last; other files and the folders that hold them stay."""
    layout = LAYOUTS.get(str(_read_own_facts(path).get("layout")))
    own = []
    for file in (RECEIPT, ROWS, PLAN, *(layout.names if layout else ())):
        folder, _, name = file.partition("/")
        own.append((folder, re.escape(name).replace(re.escape("{:06}"), _NUMBER)))
    own += [(TEMPORARY, TEMPORARY_FILES), (PARTS, _PART_NAME.pattern)]
    own += [("", re.escape(name)) for name in (*DERIVED, LOG, FACTS)]
    try:
        remove_own_files(path, own)
    except OSError as error:
        raise JobError(f"{path} cannot be overwritten: {error.strerror}. Choose another --out.") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
