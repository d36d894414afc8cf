"""Results of a benchmark as a versioned document: raw samples, and no row without fidelity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from ..system.json_files import read_json_object, to_json
from ..system.records import read_record
from ..verify.accuracy import Closeness
from .statistics import Rounds, Summary, summarize

FORMAT = "siglip_onnx.benchmark"
SCHEMA_VERSION = 1
_MAX_BYTES = 200_000_000
_LARGEST = 1e15  # of a sample or rate; sums of larger ones would overflow
DECODE, PREPROCESS, TOKENIZE, VISION, TEXT, HEAD = "decode", "preprocess", "tokenize", "vision", "text", "head"
END_TO_END, SAME_IMAGE = "end to end", "vision, one image repeated"
STAGES = (DECODE, PREPROCESS, TOKENIZE, VISION, TEXT, HEAD, END_TO_END)


@dataclass(frozen=True, kw_only=True)
class Fidelity(Closeness):
    """How close the answers given while they were timed are to those of ``reference``, the worst of all rounds.

    ``pixel_error`` is the largest difference of ``pixel_values``, ``ids_different`` counts texts with other
    ``input_ids``; both are None if not measured: an accuracy card has neither.
    """

    reference: str
    pixel_error: float | None = None
    ids_different: int | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise BenchmarkError(f"{field_.name} is {value}; expected finite outputs. Their time is not recorded.")
        if not self.reference or any(cosine > 1 + 1e-6 for cosine in (self.vision_cosine_min, self.text_cosine_min)):
            raise BenchmarkError(f"{self} names no reference or has a cosine above 1; expected a comparison.")


@dataclass(frozen=True)
class Start:
    """One process from its start to the first answer: seconds, and its peak memory by then."""

    import_s: float
    load_s: float
    first_answer_s: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Row:
    """One configuration on one kind of inputs. ``stages`` holds milliseconds, one list per round.

    ``other_cpus`` are the CPUs that other programs used in each round, None where unknown. ``baseline_rounds`` are the
    rounds of the document's baseline that were measured next to those of this row; empty without a baseline.
    """

    name: str
    about: str
    backend: str
    variant: str
    threads: int
    inputs: str
    fidelity: Fidelity
    stages: Mapping[str, Rounds]
    starts: tuple[Start, ...]
    size_bytes: int
    packages: Mapping[str, str | None]
    load_averages: tuple[float, ...]
    other_cpus: tuple[float | None, ...] = ()
    baseline_rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.fidelity, Fidelity):
            raise BenchmarkError(f"{self.name} has no fidelity; a speed is only recorded with one.")
        for stage, rounds in self.stages.items():
            if not rounds or not all(rounds) or not all(0 < ms < _LARGEST for samples in rounds for ms in samples):
                raise BenchmarkError(f"{self.name}, {stage}: a round without samples, or a sample that took no time.")
        if not self.starts:
            raise BenchmarkError(f"{self.name} has no start of a process; expected at least one.")

    def summary(self, stage: str) -> Summary:
        """Return the summary of a stage's samples, milliseconds.

        Raises:
            BenchmarkError: the stage was not measured.
        """
        if stage not in self.stages:
            raise BenchmarkError(f"{self.name} has no samples of the stage {stage!r}. Measure again.")
        return summarize(self.stages[stage])


@dataclass(frozen=True, order=True)
class Mode:
    """``workers`` runs at once, each of ``batch`` images together on ``threads`` threads."""

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        workers = f"{self.workers} workers of {threads}" if self.workers > 1 else threads
        return f"{workers}, batches of {self.batch}" if self.batch > 1 else workers


@dataclass(frozen=True)
class Throughput:
    """Images per second, decoding included, one list of passes per round."""

    name: str
    workers: int
    batch: int
    threads: int
    rates: Rounds
    reference: str
    vision_cosine_min: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.vision_cosine_min) or not self.reference:
            raise BenchmarkError(f"{self.name}, {self.workers} workers: no fidelity; a rate is only recorded with one.")
        if (
            not self.rates
            or not all(self.rates)
            or not all(0 < rate < _LARGEST for passes in self.rates for rate in passes)
        ):
            raise BenchmarkError(f"{self.name}, {self.workers} workers: a round without rates, or a rate of zero.")

    @property
    def mode(self) -> Mode:
        """How the threads were used."""
        return Mode(self.workers, self.threads, self.batch)

    @property
    def summary(self) -> Summary:
        """The summary of all passes, images per second."""
        return summarize(self.rates)


@dataclass(frozen=True)
class Document:
    """All results of one run. ``absent`` says why a configuration has no row.

    ``baseline`` was measured between every two rows, as often as that; the ratios of a row are to it.
    """

    model: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    throughput: tuple[Throughput, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    limit: Mapping[str, Any] = field(default_factory=dict)
    processes: Mapping[str, Any] = field(default_factory=dict)
    baseline: Row | None = None
    seconds: float = 0.0

    def row(self, name: str, inputs: str | None = None) -> Row | None:
        """Return the row of a configuration, None if it has none."""
        return next((row for row in self.rows if row.name == name and inputs in (None, row.inputs)), None)

    def to_json(self) -> str:
        """Return the document as JSON, a round of samples on a line."""
        return f"{_dump({'format': FORMAT, 'schema_version': SCHEMA_VERSION} | asdict(self))}\n"


def read_document(path: Path) -> Document:
    """Read a document.

    Raises:
        BenchmarkError: the file is missing, damaged, or of another format or version.
    """
    try:
        document = read_json_object(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"{path} cannot be read as JSON: {error}. Make one with: siglip-onnx bench MODEL -o FILE.json"
        ) from error
    if document.get("format") != FORMAT:
        raise BenchmarkError(
            f"{path} holds no results of format {FORMAT!r}. Make some with: siglip-onnx bench MODEL -o FILE.json"
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BenchmarkError(
            f"{path} has schema version {version!r}, this siglip_onnx reads {SCHEMA_VERSION}. Measure again."
        )
    try:
        json.dumps(document, allow_nan=False)  # JSON has neither NaN nor Infinity
        values = {key: value for key, value in document.items() if key not in ("format", "schema_version")}
        values |= {key: _renamed(values[key]) for key in ("settings", "processes") if key in values}
        values["rows"] = [row | {"stages": _renamed(row["stages"])} for row in values["rows"]]
        return read_record(Document, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(f"{path} is incomplete or damaged ({error}). Measure again.") from error


def _renamed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with today's keys: results of version 0.1.0 say "picture" where "image" is meant."""
    return {
        key.replace("one picture again and again", "one image repeated").replace("picture", "image"): value
        for key, value in mapping.items()
    }


def _dump(value: Any, indent: str = "") -> str:
    """Return JSON like ``json.dumps(indent=1)``, but with lists of numbers on one line."""
    deeper = f"{indent} "
    if isinstance(value, Mapping) and value:
        items = [f"{deeper}{to_json(key)}: {_dump(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        return "[\n" + ",\n".join(f"{deeper}{_dump(item, deeper)}" for item in value) + f"\n{indent}]"
    if isinstance(value, str):
        return to_json(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
