"""Facts that all vectors of a job share, and the receipt of a finished shard."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from .records import OK

FORMAT = "siglip_onnx.job/1"
MAX_SHARD_SIZE = 1000


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
        return hashlib.sha256(self._to_json().encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of ``job.json``."""
        return self._to_json().encode()

    def _to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done: the hash of its plan, its files, and the number of rows of each status."""

    fingerprint: str
    plan_sha256: str
    files: dict[str, dict[str, Any]]
    counts: dict[str, int]

    @property
    def num_inputs(self) -> int:
        """Number of rows of any status."""
        return sum(self.counts.values())

    @property
    def num_errors(self) -> int:
        """Number of rows without a vector."""
        return self.num_inputs - self.counts.get(OK, 0)
