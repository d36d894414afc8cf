"""The fresh process that measures one configuration: ``python -m siglip_onnx.bench.worker FOLDER``.

It reads ``job.json`` in FOLDER and writes ``result.json`` and the answers, as ``.npz``, there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..head import Floats
from ..system.extras import package_version
from .backend import Backend, Configuration, Inputs
from .fidelity import Answers
from .machine import load_average, peak_memory_mb
from .schema import DECODE, END_TO_END, HEAD, PREPROCESS, SAME_IMAGE, TEXT, TOKENIZE, VISION, Start
from .timer import Limits, time_calls

JOB, RESULT, ANSWERS = "job.json", "result.json", "answers.npz"


def main(folder: Path) -> None:
    """Load the configuration of the job, answer once, and then time what the job asks for."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    configuration = Configuration(**job["configuration"])
    paths, texts, limits = [Path(path) for path in job["paths"]], job["texts"], Limits(**job["limits"])
    pin(configuration.threads * configuration.workers)
    backend, start = start_backend(configuration, job["began"], paths[0], texts[0])
    result = describe_backend(configuration) | {"start": asdict(start)}
    if job["task"] == "stages":
        result["stages"], answers = time_stages(backend, paths, texts, limits, repeat=job["repeat"])
        answers.save(folder / ANSWERS)
    else:
        result["rates"], vision = measure_rates(backend, paths, configuration.workers, job["batch"], job["seconds"])
        np.savez(folder / ANSWERS, vision=vision)
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def describe_backend(configuration: Configuration) -> dict[str, Any]:
    """Return the load of the machine, and the size of the backend's files and the versions of its packages."""
    module: Any = import_module(configuration.backend)
    return {
        "load_average": load_average()[0],
        "size_bytes": sum(path.stat().st_size for path in module.files(configuration)),
        "packages": {name: package_version(name) for name in module.packages(configuration)},
    }


def pin(cpus: int) -> None:
    """Keep this process on as many CPUs as it has threads, the first of those that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])


def start_backend(configuration: Configuration, began: float, path: Path, text: str) -> tuple[Backend, Start]:
    """Load and answer once; ``began`` is the clock when the process was started."""
    entered = time.perf_counter()
    module: Any = import_module(configuration.backend)
    imported = time.perf_counter()
    backend: Backend = module.load(configuration)
    loaded = time.perf_counter()
    answer(backend, path, text)
    return backend, Start(
        import_s=round(imported - entered, 4),
        load_s=round(loaded - imported, 4),
        first_answer_s=round(time.perf_counter() - began, 4),
        peak_memory_mb=peak_memory_mb(),
    )


def answer(backend: Backend, path: Path, text: str) -> float:
    """Return the logit of an image file and a text, every stage in turn."""
    image = backend.vision(backend.preprocess(backend.decode(path)))
    return float(backend.head(image, backend.text(backend.tokenize(text)))[0, 0])


def time_stages(
    backend: Backend, paths: Sequence[Path], texts: Sequence[str], limits: Limits, *, repeat: bool
) -> tuple[dict[str, list[float]], Answers]:
    """Time every stage on the outputs of the stage before; with ``repeat`` also one image repeatedly."""
    stages: dict[str, list[float]] = {}

    def timed(stage: str, run: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
        samples, outputs = time_calls(run, inputs, limits)
        stages[stage] = [round(ms, 4) for ms in samples]
        return outputs

    decoded = timed(DECODE, backend.decode, paths)
    pixels = timed(PREPROCESS, backend.preprocess, decoded)
    ids = timed(TOKENIZE, backend.tokenize, texts)
    images = timed(VISION, backend.vision, pixels)
    embeddings = timed(TEXT, backend.text, ids)
    all_texts = np.concatenate(embeddings)
    logits = timed(HEAD, lambda image: backend.head(image, all_texts), images)
    pairs = [(path, texts[number % len(texts)]) for number, path in enumerate(paths)]
    ends = timed(END_TO_END, lambda pair: answer(backend, *pair), pairs)
    if repeat:
        timed(SAME_IMAGE, backend.vision, pixels[:1])
    return stages, Answers(
        pixels=[np.asarray(inputs["pixel_values"]) for inputs in pixels],
        ids=np.concatenate(ids),
        vision=np.concatenate(images),
        text=all_texts,
        logits=np.concatenate(logits),
        end_to_end=np.array(ends, np.float32),
    )


def measure_rates(
    backend: Backend, paths: Sequence[Path], workers: int, batch: int, seconds: float
) -> tuple[list[float], Floats]:
    """Return images per second of each pass over the images, decoding included, and the features of the last."""
    batches = [paths[start : start + batch] for start in range(0, len(paths), batch)]
    rates: list[float] = []
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        while not rates or time.perf_counter() - began < seconds:
            before = time.perf_counter()
            features = list(pool.map(lambda batch_paths: run_batch(backend, batch_paths), batches))
            rates.append(round(len(paths) / (time.perf_counter() - before), 3))
    return rates, np.concatenate(features)


def run_batch(backend: Backend, paths: Sequence[Path]) -> Floats:
    """Return the features of some images, run together; f32 ``(N, D)``."""
    prepared: list[Inputs] = [backend.preprocess(backend.decode(path)) for path in paths]
    if len(prepared) == 1:
        return backend.vision(prepared[0])
    return backend.vision({name: np.concatenate([inputs[name] for inputs in prepared]) for name in prepared[0]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
