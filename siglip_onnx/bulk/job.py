"""A job's folder: what stands where, what all shards share, and which shards are done."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.integrity import FileFacts
from ..errors import JobError
from ..system.files import remove_own_files
from ..system.json_files import read_json_object
from ..system.records import read_record
from .facts import FORMAT, JobFacts, Receipt
from .layouts import LAYOUTS, Layout
from .records import STATUSES, Input, Row, inputs_from_bytes, inputs_to_bytes, rows_from_bytes, rows_to_bytes
from .storage import LOCK, TEMPORARY, TEMPORARY_FILES, remove, write_whole

FACTS, SUMMARY, ERRORS, LOG = "job.json", "summary.json", "errors.jsonl", "log.jsonl"
INDEX, INDEX_FACTS = "index.usearch", "index.json"
DERIVED = (SUMMARY, ERRORS, INDEX, INDEX_FACTS)
PLAN, ROWS, RECEIPTS = "plan", "rows", "receipts"


class Job:
    """An opened job's folder."""

    def __init__(self, path: Path, facts: JobFacts) -> None:
        """Take a folder whose ``job.json`` holds these facts."""
        self.path = path
        self.facts = facts
        self.layout: Layout = LAYOUTS[facts.layout](facts.embedding_dim, np.dtype(facts.dtype))
        self._fingerprint = facts.fingerprint

    def shards(self) -> list[int]:
        """Return the numbers of the planned shards."""
        return _numbers(self.path / PLAN)

    def read_plan(self, shard: int) -> list[Input]:
        """Return what a shard is to hold.

        Raises:
            JobError: the plan file is missing or damaged.
        """
        return inputs_from_bytes(self._plan_bytes(shard), str(self.path / _plan_name(shard)))

    def write_plan(self, shard: int, inputs: Iterable[Input]) -> None:
        """Say what a shard is to hold; whatever it holds now is then no longer what it should."""
        remove(self.path, SUMMARY)
        write_whole(self.path, _plan_name(shard), [inputs_to_bytes(inputs)])

    def remove_shard(self, shard: int) -> None:
        """Remove all that belongs to a shard, the receipt first."""
        remove(self.path, SUMMARY)
        for name in (_receipt_name(shard), *self.layout.file_names(shard), _rows_name(shard), _plan_name(shard)):
            remove(self.path, name)

    def commit(self, shard: int, inputs: list[Input], rows: list[Row], vectors: NDArray[Any]) -> Receipt:
        """Write a shard's vectors ``(number of ok rows, D)`` and rows, then its receipt.

        Between the removal of an older receipt and the new one the shard counts as not done.
        """
        contents = self.layout.to_files(shard, rows, vectors) | {_rows_name(shard): rows_to_bytes(rows)}
        remove(self.path, _receipt_name(shard))
        for name, content in contents.items():
            write_whole(self.path, name, [content])
        receipt = Receipt(
            fingerprint=self._fingerprint,
            plan_sha256=_sha256(inputs_to_bytes(inputs)),
            files={name: FileFacts(len(content), _sha256(content)) for name, content in contents.items()},
            counts={status: count for status in STATUSES if (count := Counter(row.status for row in rows)[status])},
        )
        write_whole(self.path, _receipt_name(shard), [(json.dumps(asdict(receipt), indent=2) + "\n").encode()])
        return receipt

    def receipt(self, shard: int, *, read_files: bool) -> Receipt | None:
        """Return a shard's receipt if it is this job's and its files are as it says; ``read_files`` checks hashes."""
        try:
            receipt = read_record(Receipt, read_json_object(self.path / _receipt_name(shard)))
        except (OSError, ValueError):
            return None
        whole = receipt.fingerprint == self._fingerprint and self._has_files(shard, receipt, read_files)
        return receipt if whole else None

    def is_done(self, shard: int, receipt: Receipt) -> bool:
        """Say whether a shard's receipt is for what the plan says now."""
        return receipt.plan_sha256 == _sha256(self._plan_bytes(shard))

    def read_rows(self, shard: int) -> list[Row]:
        """Return what became of a committed shard's inputs."""
        name = _rows_name(shard)
        return rows_from_bytes((self.path / name).read_bytes(), str(self.path / name))

    def find_paths(self, shard: int, rows: Iterable[int]) -> dict[int, str]:
        """Return the paths of some rows of a shard's vectors; only their lines are parsed."""
        content = (self.path / _rows_name(shard)).read_bytes()
        found = {}
        for row in rows:
            # Inside a name the quotes would be escaped.
            place = content.index(b'"row": %d,' % row)
            start, end = content.rfind(b"\n", 0, place) + 1, content.find(b"\n", place)
            found[row] = json.loads(content[start:end])["path"]
        return found

    def read_vectors(self, shard: int) -> NDArray[Any]:
        """Return a committed shard's vectors ``(number of ok rows, D)``, mapped where its layout allows."""
        return self.layout.read(self.path, shard)

    def _plan_bytes(self, shard: int) -> bytes:
        try:
            return (self.path / _plan_name(shard)).read_bytes()
        except OSError as error:
            raise JobError(f"{self.path / _plan_name(shard)} cannot be read: {error.strerror}.") from error

    def _has_files(self, shard: int, receipt: Receipt, read_files: bool) -> bool:
        if set(receipt.files) != {*self.layout.file_names(shard), _rows_name(shard)}:
            return False
        for name, facts in receipt.files.items():
            try:
                if (self.path / name).stat().st_size != facts.size_bytes:
                    return False
                if read_files and _sha256((self.path / name).read_bytes()) != facts.sha256:
                    return False
            except OSError:
                return False
        return True


def open_job(path: Path) -> Job:
    """Open a job's folder to read it, or to go on.

    Raises:
        JobError: it is none, or one of another version.
    """
    facts_path = path / FACTS
    try:
        document = read_json_object(facts_path)
    except FileNotFoundError as error:
        raise JobError(f"{path} holds no vectors; make it with: siglip-onnx embed FOLDER --out {path}") from error
    except (OSError, ValueError) as error:
        raise JobError(f"{facts_path} cannot be read: {error}.") from error
    if document.pop("format", None) != FORMAT:
        raise JobError(f"{facts_path} is not of format {FORMAT!r}; make the job anew, or use the version that made it.")
    try:
        facts = read_record(JobFacts, document)
        if facts.layout not in LAYOUTS:
            raise ValueError(f"layout is {facts.layout!r}, expected one of {', '.join(LAYOUTS)}")
    except ValueError as error:
        raise JobError(
            f"{facts_path} is damaged ({error}). Begin anew with --overwrite, or give another --out."
        ) from error
    return Job(path, facts)


def make_folder(path: Path) -> None:
    """Make a job's folder if it is not there.

    Raises:
        JobError: it is something else, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = {one.name for one in path.iterdir()} - {TEMPORARY, LOCK}
    except FileExistsError as error:
        raise JobError(f"{path} is a file; give the name of a folder as --out.") from error
    except OSError as error:
        raise JobError(f"{path} cannot be made: {error.strerror}. Choose another place for --out.") from error
    if others and not (path / FACTS).exists():
        raise JobError(f"{path} holds other things than a job of this command; give another --out.")


def begin_job(path: Path, facts: JobFacts, *, overwrite: bool) -> Job:
    """Begin a job in its folder, or open that of an earlier run with the same facts.

    Raises:
        JobError: the folder holds a job with other facts or something else than a job, or cannot be written.
    """
    if overwrite and (path / FACTS).exists():
        _remove_job(path)
    if (path / FACTS).exists():
        job = open_job(path)
        _compare(path, asdict(job.facts), asdict(facts))
        return job
    write_whole(path, FACTS, [facts.to_bytes()])
    return Job(path, facts)


def _compare(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [f"{name} {found[name]!r}, not {asked[name]!r}" for name in asked if found[name] != asked[name]]
    if different:
        raise JobError(
            f"{path} was made with {'; '.join(different)}. Give the same options to go on, --overwrite to begin anew, "
            "or another --out."
        )


def _read_own_facts(path: Path) -> dict[str, Any]:
    """Return the content of a ``job.json`` of this command, of whatever version."""
    try:
        document = read_json_object(path / FACTS)
    except (OSError, ValueError) as error:
        raise _not_ours(path, error) from error
    if not str(document.get("format")).startswith(FORMAT.rpartition("/")[0] + "/"):
        raise _not_ours(path, f"its format is {document.get('format')!r}")
    return document


def _not_ours(path: Path, reason: object) -> JobError:
    return JobError(
        f"{path / FACTS} does not describe a job of this command ({reason}), so nothing there is overwritten; give "
        "another --out."
    )


def _remove_job(path: Path) -> None:
    """Remove what a job wrote, its facts last, and nothing else; folders that hold other files stay."""
    layout = LAYOUTS.get(str(_read_own_facts(path).get("layout")))
    own = [(RECEIPTS, r"\d{6,}\.json"), (ROWS, r"\d{6,}\.jsonl"), (PLAN, r"\d{6,}\.jsonl")]
    for file in layout.names if layout else ():
        folder, _, name = file.partition("/")
        own.append((folder, re.escape(name).replace(re.escape("{:06}"), r"\d{6,}")))
    own.append((TEMPORARY, TEMPORARY_FILES))
    own += [("", re.escape(name)) for name in (*DERIVED, LOG, FACTS)]
    try:
        remove_own_files(path, own)
    except OSError as error:
        raise JobError(f"{path} cannot be overwritten: {error.strerror}. Give another --out.") from error


def _plan_name(shard: int) -> str:
    return f"{PLAN}/{shard:06}.jsonl"


def _rows_name(shard: int) -> str:
    return f"{ROWS}/{shard:06}.jsonl"


def _receipt_name(shard: int) -> str:
    return f"{RECEIPTS}/{shard:06}.json"


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.iterdir() if re.fullmatch(r"\d{6,}\.jsonl", path.name))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
