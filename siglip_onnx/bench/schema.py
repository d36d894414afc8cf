"""The results of a benchmark as a document: versioned, with raw samples, and no row without fidelity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from ..system.records import read_record
from .statistics import Rounds, Summary, summarize

FORMAT = "siglip_onnx.benchmark"
SCHEMA_VERSION = 1
DECODE, PREPROCESS, TOKENIZE, VISION, TEXT, HEAD = "decode", "preprocess", "tokenize", "vision", "text", "head"
END_TO_END, SAME_PICTURE = "end to end", "vision, one picture again and again"
STAGES = (DECODE, PREPROCESS, TOKENIZE, VISION, TEXT, HEAD, END_TO_END)


@dataclass(frozen=True)
class Fidelity:
    """How near the answers given while they were timed are to those of ``reference``, at worst of all rounds.

    Cosines are of embeddings, ``logit_error`` is absolute, ``pixel_error`` the largest difference of ``pixel_values``,
    ``ids_different`` counts texts with other ``input_ids``. Values that were not measured are None: an accuracy card
    has no pixels.
    """

    reference: str
    vision_cosine_min: float
    vision_cosine_mean: float
    text_cosine_min: float
    text_cosine_mean: float
    logit_error_mean: float
    logit_error_max: float
    pixel_error: float | None = None
    ids_different: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise BenchmarkError(f"{one.name} is {value}: the outputs are no numbers, and so is no time for them.")
        if not self.reference or any(cosine > 1 + 1e-6 for cosine in (self.vision_cosine_min, self.text_cosine_min)):
            raise BenchmarkError(f"{self} is no comparison: it names no reference, or has a cosine above 1.")

    @property
    def cosine_min(self) -> float:
        """The worst embedding of both towers."""
        return min(self.vision_cosine_min, self.text_cosine_min)


@dataclass(frozen=True)
class Start:
    """One process from its start to the first answer; seconds, and the memory it needed by then."""

    import_s: float
    load_s: float
    first_answer_s: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Row:
    """One configuration on one kind of inputs. ``stages`` holds milliseconds, one list per round."""

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

    def __post_init__(self) -> None:
        if not isinstance(self.fidelity, Fidelity):
            raise BenchmarkError(f"{self.name} has no fidelity; a speed without it says nothing.")
        for stage, rounds in self.stages.items():
            if not rounds or not all(rounds) or not all(ms > 0 for one in rounds for ms in one):
                raise BenchmarkError(f"{self.name}, {stage}: a round without samples, or a sample that took no time.")

    def summary(self, stage: str) -> Summary:
        """Return what a stage's samples say, milliseconds."""
        return summarize(self.stages[stage])


@dataclass(frozen=True)
class Throughput:
    """Pictures per second, decoding included, one list of passes per round."""

    name: str
    workers: int
    batch: int
    threads: int
    rates: Rounds
    reference: str
    vision_cosine_min: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.vision_cosine_min) or not self.reference:
            raise BenchmarkError(f"{self.name}, {self.workers} workers: no fidelity; a rate without it says nothing.")

    @property
    def summary(self) -> Summary:
        """Return what the passes say, pictures per second."""
        return summarize(self.rates)


@dataclass(frozen=True)
class Document:
    """Everything of one run. ``absent`` says why a configuration has no row."""

    model: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    throughput: tuple[Throughput, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    limit: Mapping[str, Any] = field(default_factory=dict)
    processes: Mapping[str, Any] = field(default_factory=dict)
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
        BenchmarkError: no such file, or none of this format and version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"{path} cannot be read as JSON: {error}. Make one with: siglip-onnx bench MODEL"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BenchmarkError(f"{path} holds no results of format {FORMAT!r}. Make some with: siglip-onnx bench MODEL")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BenchmarkError(
            f"{path} has schema version {version!r}, this siglip_onnx reads {SCHEMA_VERSION}. Measure again."
        )
    try:
        values = {key: value for key, value in found.items() if key not in ("format", "schema_version")}
        return read_record(Document, values)
    except ValueError as error:
        raise BenchmarkError(f"{path} is incomplete or damaged ({error}). Measure again.") from error


def _dump(value: Any, indent: str = "") -> str:
    """Return JSON like ``json.dumps(indent=1)``, but with lists of numbers on one line."""
    deeper = f"{indent} "
    if isinstance(value, Mapping) and value:
        items = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_dump(one, deeper)}" for key, one in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value):
        return "[\n" + ",\n".join(f"{deeper}{_dump(one, deeper)}" for one in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
