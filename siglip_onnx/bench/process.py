"""Fresh processes: the one that measures a configuration, and whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from .contestant import Configuration
from .timer import Limits
from .worker import JOB, RESULT

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "ORT_INTRA_OP_NUM_THREADS",
)  # fmt: skip
# Nothing may be fetched or reported while something is measured.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ORT_DISABLE_TELEMETRY": "1",
    "OPENVINO_TELEMETRY_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip
_WATCHDOG_SECONDS = 900
# A small parent, so that the memory of the command's children is not that of a large one at its start.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1024 * (1024 if sys.platform == "darwin" else 1))
print(json.dumps([done.returncode, seconds, peak, done.stderr.decode(errors="replace")]))
"""


@dataclass(frozen=True)
class Job:
    """What a fresh process measures: the stages, or, with ``batch``, the rate of pictures."""

    paths: Sequence[Path]
    texts: Sequence[str]
    limits: Limits
    batch: int = 0
    seconds: float = 0.0
    repeat: bool = False

    def to_document(self, configuration: Configuration) -> dict[str, Any]:
        """Return what the process reads; the clock starts now."""
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
    """Measure one configuration in a fresh interpreter; answers lie in ``folder`` afterwards.

    Raises:
        BenchmarkError: the process failed; its last line says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = pinned_environment(configuration, search_path)
    (folder / JOB).write_text(json.dumps(job.to_document(configuration)), encoding="utf-8")
    command = [sys.executable, "-m", "siglip_onnx.bench.worker", str(folder)]
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
    """Return the variables of a process that may use so many threads per worker, and no network."""
    threads = dict.fromkeys(_THREAD_VARIABLES, str(configuration.threads))
    paths = [*map(str, search_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | threads | _OFFLINE | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def run_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run ``siglip-onnx`` with arguments in a fresh process; returns its seconds and its own peak memory.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "siglip_onnx", *arguments]
    output = subprocess.run(  # noqa: S603 - ourselves
        command, env=None if environment is None else dict(environment), capture_output=True, check=True
    ).stdout
    status, seconds, peak, stderr = json.loads(output)
    if status:
        raise BenchmarkError(f"siglip-onnx {' '.join(arguments)} failed: {last_line(stderr) or f'status {status}'}")
    return {"seconds": round(seconds, 4), "peak_memory_mb": round(peak, 1)}


def last_line(text: str) -> str:
    """Return the last line that says something: of a traceback, the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
