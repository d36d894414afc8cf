"""Run a job of the benchmark in a fresh interpreter with pinned threads and no network."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from ..system.frozen import module_command
from .backend import Configuration
from .timer import Limits
from .worker import JOB, RESULT

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "ORT_INTRA_OP_NUM_THREADS",
)  # fmt: skip
# Nothing may be downloaded or reported during a measurement.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ORT_DISABLE_TELEMETRY": "1",
    "CI": "true",  # in which openvino's conversion tools, that the peers use, report nothing
    "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip
_WATCHDOG_SECONDS = 900


@dataclass(frozen=True)
class Job:
    """What a fresh process measures: the stages, or, with ``batch``, images per second."""

    paths: Sequence[Path]
    texts: Sequence[str]
    limits: Limits
    batch: int = 0
    seconds: float = 0.0
    repeat: bool = False

    def to_document(self, configuration: Configuration) -> dict[str, Any]:
        """Return the JSON document that the process reads; the clock starts now."""
        return {
            "configuration": asdict(configuration),
            "paths": [str(path) for path in self.paths],
            "texts": list(self.texts),
            "limits": asdict(self.limits),
            "task": "rates" if self.batch else "stages",
            "batch": self.batch,
            "seconds": self.seconds,
            "repeat": self.repeat,
            "began": time.perf_counter(),
        }


def run_job(configuration: Configuration, job: Job, folder: Path, search_path: Sequence[Path] = ()) -> dict[str, Any]:
    """Measure one configuration in a fresh interpreter; its answers are in ``folder`` afterwards.

    Raises:
        BenchmarkError: the process failed; its last line says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = pinned_environment(configuration, search_path)
    (folder / JOB).write_text(json.dumps(job.to_document(configuration)), encoding="utf-8")
    command = module_command("siglip_onnx.bench.worker", str(folder), first=search_path)
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=_WATCHDOG_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{configuration.name} did not end within {_WATCHDOG_SECONDS} s.") from error
    if done.returncode:
        raise BenchmarkError(f"{configuration.name} failed: {last_line(done.stderr) or f'status {done.returncode}'}")
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return result


def pinned_environment(configuration: Configuration, search_path: Sequence[Path] = ()) -> dict[str, str]:
    """Return the environment of a process with the configuration's threads per worker, and no network."""
    threads = dict.fromkeys(_THREAD_VARIABLES, str(configuration.threads))
    paths = [*map(str, search_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | threads | _OFFLINE | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def last_line(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
