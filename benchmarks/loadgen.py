"""The vision tower under MLCommons LoadGen: scenarios SingleStream and Offline. UNOFFICIAL: no MLPerf result.

    python benchmarks/loadgen.py --images FOLDER --checkpoint CHECKPOINT

LoadGen decides what is asked and when, and computes its own statistics; runs are shorter than the rules of MLPerf ask
for, and no result was reviewed. The load is pictures already decoded and prepared, as its rules have it. Beside each
figure stands the cosine to PyTorch fp32 of what was answered under load. Prints JSON.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from catalog import NUM_PICTURES, choose_pictures, open_catalog, random_checkpoint, tell
from fresh import in_fresh_process

from siglip_onnx.bench.contestant import Configuration, Contestant, Inputs
from siglip_onnx.bench.fidelity import cosines
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bench.run import PYTORCH_FP32
from siglip_onnx.errors import MissingExtraError
from siglip_onnx.head import Floats
from siglip_onnx.system.threads import available_threads

SCENARIOS = ("SingleStream", "Offline")
LABEL = "Measured with MLCommons LoadGen, unofficial; not an MLPerf result."
MIN_QUERIES = 64  # what LoadGen's early stopping needs to state a 90th percentile


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Instead of a random one.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), help="A SentencePiece model, to make one.")
@click.option("--name", default="base_multilingual", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
@click.option("--only", multiple=True, default=["siglip_onnx int8"], show_default=True, help="Part of names; repeat.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Of each scenario.")
@click.option("--threads", type=click.IntRange(1, 512), default=available_threads)
def main(
    images: Path,
    checkpoint: Path | None,
    spiece: Path | None,
    name: str,
    work: Path,
    only: tuple[str, ...],
    seconds: float,
    threads: int,
) -> None:
    """Run both scenarios for each configuration."""
    if find_spec("mlperf_loadgen") is None:
        raise MissingExtraError('loadgen.py needs mlcommons-loadgen. Run: pip install "siglip-onnx[bench]"')
    folder = work / name
    paths = choose_pictures(images)
    checkpoint = checkpoint or random_checkpoint(folder / "checkpoint", spiece)
    catalog = open_catalog(folder, checkpoint, paths[NUM_PICTURES:], threads, only)
    rows, reference = [], None
    for configuration in catalog.configurations:  # the reference is the first
        asked = SCENARIOS if any(part in configuration.name for part in only) else ()
        found, features = in_fresh_process(run_scenarios, configuration, paths[:NUM_PICTURES], asked, seconds)
        reference = features if reference is None else reference
        worst = float(cosines(features, reference).min())
        rows += [
            {"name": configuration.name, "vision_cosine_min": worst, "reference": PYTORCH_FP32} | one for one in found
        ]
        tell(f"{configuration.name}: {json.dumps(found)}")
    click.echo(json.dumps({"label": LABEL, "machine": describe_machine(), "rows": rows}, indent=1))


def run_scenarios(
    configuration: Configuration, paths: Sequence[Path], scenarios: Sequence[str], seconds: float
) -> tuple[list[dict[str, Any]], Floats]:
    """Return LoadGen's figures of each scenario, and the features of the last answers, f32 ``(N, D)``."""
    backend: Any = import_module(configuration.backend)
    contestant: Contestant = backend.load(configuration)
    pictures = [contestant.preprocess(contestant.decode(path)) for path in paths]
    features = [contestant.vision(inputs) for inputs in pictures]  # warms up
    began = time.perf_counter()
    for inputs in pictures:
        contestant.vision(inputs)
    rate = len(pictures) / (time.perf_counter() - began)
    found = [run_scenario(contestant, pictures, features, scenario, seconds, rate) for scenario in scenarios]
    return found, np.concatenate(features)


def run_scenario(
    contestant: Contestant,
    pictures: Sequence[Inputs],
    features: list[Floats],
    scenario: str,
    seconds: float,
    rate: float,
) -> dict[str, Any]:
    """Let LoadGen ask; what is answered replaces ``features``. ``rate`` is the samples per second to expect."""
    import mlperf_loadgen as loadgen  # noqa: PLC0415 - an optional extra

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            features[sample.index] = contestant.vision(pictures[sample.index])
            answer = features[sample.index]
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, answer.ctypes.data, answer.nbytes)])

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * seconds)
    settings.min_query_count = MIN_QUERIES
    settings.offline_expected_qps = rate
    settings.single_stream_expected_latency_ns = int(1e9 / rate)
    with tempfile.TemporaryDirectory() as folder:
        output, log = loadgen.LogOutputSettings(), loadgen.LogSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        log.log_output = output
        system = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(len(pictures), len(pictures), lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(system, library, settings, log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    return {"scenario": scenario} | read_summary(summary)


def read_summary(text: str) -> dict[str, str]:
    """Return the lines of LoadGen's summary that state a figure or a verdict, as it words them."""
    lines = (line.partition(":") for line in text.splitlines())
    wanted = ("Result is", "Samples per second", "percentile latency", "90th", "QPS", "Early stopping", "Mean latency")
    return {
        key.strip(): value.strip()
        for key, _, value in lines
        if value.strip() and any(word.lower() in key.lower() for word in wanted)
    }


if __name__ == "__main__":
    main()
