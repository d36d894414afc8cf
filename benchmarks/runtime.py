"""Measure how a model is run: workers, fast decode, memory.

    python benchmarks/runtime.py --bundle BUNDLE --images FOLDER

BUNDLE is an exported model, for example of the shapes of google/siglip-base-patch16-256-multilingual; the photographs
are also enlarged to 12 megapixels, since those are what fast decode is for. Writes benchmarks/results/runtime.json and
its table in the README.
"""

from __future__ import annotations

import io
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from base_multilingual import RESULTS, describe_machine, in_fresh_process, replace_in_readme
from PIL import Image

import siglip_onnx
from siglip_onnx.session import available_threads

OWN_RESULTS = RESULTS.with_name("runtime.json")
MARK = "runtime"
ROUNDS = 5
LARGE = (4000, 3000)


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="An exported model.")
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
def main(bundle: Path, images: Path) -> None:
    """Measure each in a fresh process and write the results."""
    pictures = [str(path) for path in sorted(images.rglob("*.jpg"))[::12]][:32]
    results = {
        "machine": describe_machine(),
        "model": siglip_onnx.load(bundle).bundle.manifest.model_name,
        "throughput": in_fresh_process(measure_throughput, bundle, pictures),
        "fast_decode": in_fresh_process(measure_fast_decode, bundle, pictures[:8]),
        "peak_memory_mb": {
            what: in_fresh_process(measure_memory, bundle, what, pictures[0]) for what in ("text", "vision", "both")
        },
    }
    OWN_RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    replace_in_readme(MARK, markdown(results))
    click.echo(markdown(results))


def measure_throughput(bundle: Path, pictures: list[str]) -> dict[str, Any]:
    """Return pictures per second, decoding included, of modes that take turns; their vectors must be the same."""
    workers = available_threads()
    models = {
        "1 worker": siglip_onnx.load(bundle, threads=1),
        f"{workers} workers": siglip_onnx.load(bundle, workers=workers),
        f"1 picture at a time, {workers} threads": siglip_onnx.load(bundle),
    }
    rates: dict[str, list[float]] = {name: [] for name in models}
    vectors = [model.encode_images(pictures[:2]) for model in models.values()]  # loads them
    assert all(np.array_equal(vectors[0], other) for other in vectors)
    for _ in range(ROUNDS):
        for name, model in models.items():
            began = time.perf_counter()
            model.encode_images(pictures)
            rates[name].append(len(pictures) / (time.perf_counter() - began))
    facts: dict[str, Any] = {
        name: {"max_per_second": round(max(found), 2), "median_per_second": round(statistics.median(found), 2)}
        for name, found in rates.items()
    }
    one, many, *_ = rates.values()
    facts["workers / 1 worker"] = round(statistics.median(many) / statistics.median(one), 3)
    facts["vectors"] = "the same bits in every mode"
    return facts


def measure_fast_decode(bundle: Path, pictures: list[str]) -> dict[str, Any]:
    """Return what fast decode saves on 12-megapixel JPEGs, and how far pixels and embeddings move."""
    exact, fast = (siglip_onnx.load(bundle, variant="fp32", fast_decode=choice) for choice in (False, True))
    large = [enlarge(path) for path in pictures]
    times: dict[str, list[float]] = {"exact": [], "fast": []}
    levels, cosines = [], []
    for content in large:
        for _ in range(3):
            times["exact"].append(milliseconds(lambda content=content: exact.preprocess(content)))  # type: ignore[misc]
            times["fast"].append(milliseconds(lambda content=content: fast.preprocess(content)))  # type: ignore[misc]
        (one,), (other,) = exact.preprocess(content), fast.preprocess(content)
        levels.append(np.abs(one["pixel_values"] - other["pixel_values"]) * 127.5)
        cosines.append(float(exact.encode_images(content)[0] @ fast.encode_images(content)[0]))
    return {
        "pictures": len(large),
        "size": list(LARGE),
        **{f"{name}_ms": {"min": round(min(found), 1), "median": round(statistics.median(found), 1)}
           for name, found in times.items()},
        "level_error_max": round(float(np.max(levels)), 2),
        "level_error_mean": round(float(np.mean(levels)), 3),
        "cosine_min": round(min(cosines), 6),
    }  # fmt: skip


def enlarge(path: str) -> bytes:
    """Return a photograph as a 12-megapixel JPEG."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").resize(LARGE, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def milliseconds(function: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


def measure_memory(bundle: Path, what: str, picture: str) -> float:
    """Return the peak memory of a process that embeds a text, a picture, or both."""
    model = siglip_onnx.load(bundle)
    if what != "vision":
        model.encode_texts(["a photo of a cat"])
    if what != "text":
        model.encode_images(picture)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def markdown(results: dict[str, Any]) -> str:
    """Return the results as they stand in the README."""
    throughput, fast, memory = (results[key] for key in ("throughput", "fast_decode", "peak_memory_mb"))
    machine = results["machine"]
    modes = [name for name, found in throughput.items() if isinstance(found, dict)]
    rows = [f"| {name} | {throughput[name]['median_per_second']} |" for name in modes]
    return "\n".join(
        [
            "| int8, decoding included | pictures per second, median |", "|---|---|", *rows, "",
            f"Workers give {throughput['workers / 1 worker']} times the rate of one, and the same vectors bit for bit. "
            f"`--fast-decode` prepares a 12-megapixel JPEG in {fast['fast_ms']['median']:.0f} instead of "
            f"{fast['exact_ms']['median']:.0f} ms (medians); pixels move by {fast['level_error_mean']} of 255 levels "
            f"on average and {fast['level_error_max']} at most, embeddings to a cosine of {fast['cosine_min']} at "
            "worst. "
            f"Peak memory: text tower {memory['text']:.0f} MB, vision {memory['vision']:.0f} MB, both "
            f"{memory['both']:.0f} MB. Machine: {machine['cpu']}, {machine['threads']} cores, "
            f"{', '.join(machine['cpu_flags'])}; onnxruntime {machine['packages']['onnxruntime']}.",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
