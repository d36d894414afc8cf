"""The fresh process in which one configuration is measured: ``python -m siglip_onnx.bench.worker FOLDER``.

Reads ``job.json`` in FOLDER and writes ``result.json`` and what was answered, as ``.npz``, there.
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
from .contestant import Configuration, Contestant, Inputs
from .fidelity import Answers
from .machine import load_average, package_version, peak_memory_mb
from .schema import DECODE, END_TO_END, HEAD, PREPROCESS, SAME_PICTURE, TEXT, TOKENIZE, VISION, Start
from .timer import Limits, time_calls

JOB, RESULT, ANSWERS = "job.json", "result.json", "answers.npz"


def main(folder: Path) -> None:
    """Load the configuration of the job, answer once, and then time what the job names."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    configuration = Configuration(**job["configuration"])
    paths, texts, limits = [Path(path) for path in job["paths"]], job["texts"], Limits(**job["limits"])
    pin(configuration.threads * configuration.workers)
    contestant, start = start_contestant(configuration, job["began"], paths[0], texts[0])
    result = describe_backend(configuration) | {"start": asdict(start)}
    if job["task"] == "stages":
        result["stages"], answers = time_stages(contestant, paths, texts, limits, repeat=job["repeat"])
        answers.save(folder / ANSWERS)
    else:
        result["rates"], vision = measure_rates(contestant, paths, configuration.workers, job["batch"], job["seconds"])
        np.savez(folder / ANSWERS, vision=vision)
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def describe_backend(configuration: Configuration) -> dict[str, Any]:
    """Return the load of the machine, and what the backend says of its files and packages."""
    backend: Any = import_module(configuration.backend)
    return {
        "load_average": load_average()[0],
        "size_bytes": sum(path.stat().st_size for path in backend.files(configuration)),
        "packages": {name: package_version(name) for name in backend.packages(configuration)},
    }


def pin(cpus: int) -> None:
    """Keep this process on as many CPUs as it has threads, the first of those it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])


def start_contestant(configuration: Configuration, began: float, path: Path, text: str) -> tuple[Contestant, Start]:
    """Load and answer once; ``began`` is the clock when the process was asked for."""
    entered = time.perf_counter()
    backend: Any = import_module(configuration.backend)
    imported = time.perf_counter()
    contestant: Contestant = backend.load(configuration)
    loaded = time.perf_counter()
    answer(contestant, path, text)
    return contestant, Start(
        import_s=round(imported - entered, 4),
        load_s=round(loaded - imported, 4),
        first_answer_s=round(time.perf_counter() - began, 4),
        peak_memory_mb=peak_memory_mb(),
    )


def answer(contestant: Contestant, path: Path, text: str) -> float:
    """Return the logit of a picture file and a text, every stage in turn."""
    image = contestant.vision(contestant.preprocess(contestant.decode(path)))
    return float(contestant.head(image, contestant.text(contestant.tokenize(text)))[0, 0])


def time_stages(
    contestant: Contestant, paths: Sequence[Path], texts: Sequence[str], limits: Limits, *, repeat: bool
) -> tuple[dict[str, list[float]], Answers]:
    """Time every stage on the outputs of the stage before; with ``repeat`` also one picture again and again."""
    stages: dict[str, list[float]] = {}

    def timed(stage: str, run: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
        samples, outputs = time_calls(run, inputs, limits)
        stages[stage] = [round(ms, 4) for ms in samples]
        return outputs

    pictures = timed(DECODE, contestant.decode, paths)
    pixels = timed(PREPROCESS, contestant.preprocess, pictures)
    ids = timed(TOKENIZE, contestant.tokenize, texts)
    images = timed(VISION, contestant.vision, pixels)
    embeddings = timed(TEXT, contestant.text, ids)
    all_texts = np.concatenate(embeddings)
    logits = timed(HEAD, lambda image: contestant.head(image, all_texts), images)
    pairs = [(path, texts[number % len(texts)]) for number, path in enumerate(paths)]
    ends = timed(END_TO_END, lambda pair: answer(contestant, *pair), pairs)
    if repeat:
        timed(SAME_PICTURE, contestant.vision, pixels[:1])
    return stages, Answers(
        pixels=[np.asarray(inputs["pixel_values"]) for inputs in pixels],
        ids=np.concatenate(ids),
        vision=np.concatenate(images),
        text=all_texts,
        logits=np.concatenate(logits),
        end_to_end=np.array(ends, np.float32),
    )


def measure_rates(
    contestant: Contestant, paths: Sequence[Path], workers: int, batch: int, seconds: float
) -> tuple[list[float], Floats]:
    """Return pictures per second of each pass over the pictures, decoding included, and the features of the last."""
    batches = [paths[start : start + batch] for start in range(0, len(paths), batch)]
    rates: list[float] = []
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        while not rates or time.perf_counter() - began < seconds:
            before = time.perf_counter()
            found = list(pool.map(lambda some: run_batch(contestant, some), batches))
            rates.append(round(len(paths) / (time.perf_counter() - before), 3))
    return rates, np.concatenate(found)


def run_batch(contestant: Contestant, paths: Sequence[Path]) -> Floats:
    """Return the features of some pictures, run together; f32 ``(N, D)``."""
    prepared: list[Inputs] = [contestant.preprocess(contestant.decode(path)) for path in paths]
    if len(prepared) == 1:
        return contestant.vision(prepared[0])
    return contestant.vision({name: np.concatenate([one[name] for one in prepared]) for name in prepared[0]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
