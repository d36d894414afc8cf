"""Measure the main job on the shapes of google/siglip-base-patch16-256-multilingual, with random weights.

    python benchmarks/base_multilingual.py --images FOLDER --spiece spiece.model

Makes the checkpoint (1.5 GB, kept in --work), exports it, compares both variants with PyTorch and with each other on
16 pictures and 16 texts, then times the towers in alternating rounds, beside those that optimum exports, and whole
processes. Random weights prove parity, speed and memory, not accuracy; the vocabulary is grown to its true size.
Writes benchmarks/results/base_multilingual.json, or base_multilingual_no_vnni.json on an x86 CPU without VNNI, and
its table in the README.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

import siglip_onnx
from siglip_onnx.export.verify import SAMPLE_TEXTS

RESULTS = Path(__file__).parent / "results" / "base_multilingual.json"
NO_VNNI_RESULTS = RESULTS.with_name("base_multilingual_no_vnni.json")
README = Path(__file__).parent.parent / "README.md"
ROUNDS = 5
Result = TypeVar("Result")
VOCAB_SIZE, IMAGE_SIZE = 250_000, 256


@click.command(help=__doc__)
@click.option("--images", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of photographs.")
@click.option("--spiece", type=click.Path(path_type=Path, exists=True), required=True, help="A SentencePiece model.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bench")
def main(images: Path, spiece: Path, work: Path) -> None:
    """Measure everything and write the results."""
    checkpoint, bundle, traced = work / "checkpoint", work / "bundle", work / "bundle_of_optimum"
    if not checkpoint.exists():
        in_fresh_process(make_checkpoint, checkpoint, spiece)
    pictures = [str(path) for path in sorted(images.rglob("*.jpg"))[:16]]
    arguments = ["export", str(checkpoint), str(bundle), "--overwrite", "--json"]
    export, output = run_process([sys.executable, "-m", "siglip_onnx", *arguments])
    run_process([sys.executable, "-m", "siglip_onnx", "export", str(checkpoint), str(traced), "--overwrite",
                 "--exporter", "optimum"])  # fmt: skip
    results = {
        "machine": describe_machine(),
        "export": export | {"variants": json.loads(output)["variants"]},
        "fidelity": in_fresh_process(measure_fidelity, checkpoint, bundle, pictures),
        "towers": in_fresh_process(time_towers, {"": bundle, " of optimum": traced}, pictures[0]),
        "processes": measure_processes(bundle, pictures[0]),
    }
    path = RESULTS if has_vnni(results["machine"]["cpu_flags"]) else NO_VNNI_RESULTS
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    replace_in_readme(path.stem, markdown(results))
    click.echo(markdown(results))


def has_vnni(cpu_flags: list[str]) -> bool:
    """Say whether the CPU has int8 instructions that do not saturate."""
    return not {"avx_vnni", "avx512_vnni"}.isdisjoint(cpu_flags)


def replace_in_readme(mark: str, table: str) -> None:
    """Put results between their marks in the README."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    README.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """Return the results as the table that stands in the README."""
    machine, export, towers, fidelity = (results[key] for key in ("machine", "export", "towers", "fidelity"))
    classify = results["processes"]["classify, one picture and two texts"]
    sizes = {variant["name"]: variant["size_bytes"] for variant in export["variants"]}
    rows = [
        ("vision tower, one picture, min / median ms", *_latencies(towers, "vision")),
        ("text tower, one text, min / median ms", *_latencies(towers, "text")),
        *(
            (f"{tower} tower as optimum exports it, min / median ms", *_latencies(towers, tower, " of optimum"))
            for tower in ("vision", "text")
            if f"{tower} fp32 of optimum" in towers
        ),
        ("files, MB", *(f"{sizes[variant] / 1e6:.0f}" for variant in ("fp32", "int8"))),
        ("vision: fidelity", *_fidelity(fidelity, "vision")),
        ("text: fidelity", *_fidelity(fidelity, "text")),
    ]
    lines = ["| | fp32 | int8 |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    closing = (
        f"The whole `classify` process with int8, one picture and two texts, took {classify['min_seconds']:.2f} s "
        f"(min) and {classify['median_seconds']:.2f} s (median) and at most {classify['peak_memory_mb']:.0f} MB. "
        f"Exporting both variants took {export['seconds']:.0f} s and {export['peak_memory_mb']:.0f} MB. "
        f"Machine: {machine['cpu']}, {machine['threads']} cores, {', '.join(machine['cpu_flags'])}; onnxruntime "
        f"{machine['packages']['onnxruntime']}, Python {machine['python']}."
    )
    return "\n".join([*lines, "", closing])


def _latencies(towers: dict[str, Any], tower: str, origin: str = "") -> list[str]:
    found = [towers[f"{tower} {variant}{origin}"] for variant in ("fp32", "int8")]
    return [f"{one['min_ms']:.0f} / {one['median_ms']:.0f}" for one in found]


def _fidelity(fidelity: dict[str, Any], tower: str) -> list[str]:
    return [
        f"{fidelity[f'{tower}_fp32_max_abs_to_pytorch']:.0e} largest difference to PyTorch",
        f"{fidelity[f'{tower}_int8_min_cosine_to_fp32']:.5f} smallest cosine to fp32",
    ]


def make_checkpoint(path: Path, spiece: Path) -> None:
    """Write a random checkpoint of the true shapes, as transformers does."""
    import torch  # noqa: PLC0415 - only this step needs these
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel  # noqa: PLC0415

    torch.manual_seed(0)
    config = SiglipConfig(text_config={"vocab_size": VOCAB_SIZE}, vision_config={"image_size": IMAGE_SIZE})
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.0)
    model.save_pretrained(path)
    SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(path)
    grow_vocabulary(spiece, path / "spiece.model")


def grow_vocabulary(spiece: Path, out: Path) -> None:
    """Add random pieces to a SentencePiece model until it is as large as the real one, and costs what that costs."""
    from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only this step needs it

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    model.ParseFromString(spiece.read_bytes())
    known = {piece.piece for piece in model.pieces}
    letters = sorted({letter for piece in known for letter in piece if letter.isalpha()})
    rng = np.random.default_rng(0)
    while len(known) < VOCAB_SIZE:
        piece = "▁" * int(rng.integers(2)) + "".join(rng.choice(letters, rng.integers(2, 9)))
        if piece not in known:
            known.add(piece)
            model.pieces.add(piece=piece, score=float(rng.uniform(-14, -8)))
    out.write_bytes(model.SerializeToString())


def measure_fidelity(checkpoint: Path, bundle: Path, pictures: list[str]) -> dict[str, Any]:
    """Compare fp32 with PyTorch, and int8 with fp32."""
    import torch  # noqa: PLC0415 - the runtime part must not need it
    from transformers import SiglipModel  # noqa: PLC0415

    fp32, int8 = (siglip_onnx.load(bundle, variant=variant) for variant in ("fp32", "int8"))
    reference = SiglipModel.from_pretrained(checkpoint).eval()
    texts = list(SAMPLE_TEXTS)
    with torch.no_grad():
        pixels = np.concatenate([inputs["pixel_values"] for inputs in fp32.preprocess(pictures)])
        torch_images = reference.get_image_features(torch.from_numpy(pixels))
        torch_texts = reference.get_text_features(torch.from_numpy(fp32.tokenize(texts)))
    facts: dict[str, Any] = {"pictures": len(pictures), "texts": len(texts)}
    for tower, expected, found, quantized in (
        ("vision", torch_images, fp32.encode_images(pictures), int8.encode_images(pictures)),
        ("text", torch_texts, fp32.encode_texts(texts), int8.encode_texts(texts)),
    ):
        unit = torch.nn.functional.normalize(expected).numpy()
        facts[f"{tower}_fp32_max_abs_to_pytorch"] = float(np.abs(found - unit).max())
        facts[f"{tower}_int8_min_cosine_to_fp32"] = float((found * quantized).sum(axis=1).min())
    return facts


def time_towers(bundles: dict[str, Path], picture: str) -> dict[str, Any]:
    """Alternate the variants of all bundles for ``ROUNDS`` rounds of 8 runs; milliseconds."""
    runs: dict[str, Callable[[], object]] = {}
    for (origin, bundle), variant in itertools.product(bundles.items(), ("fp32", "int8")):
        model = siglip_onnx.load(bundle, variant=variant)
        (pixels,), ids = model.preprocess(picture), model.tokenize(["a photo of a cat"])
        for tower, inputs in (("vision", pixels), ("text", {"input_ids": ids})):
            session = model._tower(tower)  # noqa: SLF001 - the tower alone, without preprocessing
            runs[f"{tower} {variant}{origin}"] = partial(session.run, "pooler_output", inputs)
    latencies: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()  # warm the caches that the contestant before took
            for _ in range(8):
                began = time.perf_counter()
                run()
                latencies[name].append(1000 * (time.perf_counter() - began))
    facts: dict[str, Any] = {
        name: {"min_ms": round(min(values), 2), "median_ms": round(statistics.median(values), 2)}
        for name, values in latencies.items()
    }
    for tower in ("vision", "text"):
        facts[f"{tower} int8 / fp32"] = {
            key: round(facts[f"{tower} int8"][f"{key}_ms"] / facts[f"{tower} fp32"][f"{key}_ms"], 3)
            for key in ("min", "median")
        }
    return facts


def measure_processes(bundle: Path, picture: str) -> dict[str, Any]:
    """Time whole commands from start to end: one picture and two texts, and the help."""
    classify = ["classify", picture, "--text", "a photo of a cat", "--text", "犬の写真", "--model", str(bundle)]
    commands = {"classify, one picture and two texts": classify, "--help": ["--help"]}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(2 * ROUNDS):
        for name, arguments in commands.items():
            measured[name].append(run_process([sys.executable, "-m", "siglip_onnx", *arguments])[0])
    return {
        name: {
            "min_seconds": min(one["seconds"] for one in runs),
            "median_seconds": round(statistics.median(one["seconds"] for one in runs), 3),
            "peak_memory_mb": max(one["peak_memory_mb"] for one in runs),
        }
        for name, runs in measured.items()
    }


def run_process(command: list[str]) -> tuple[dict[str, float], str]:
    """Run a command; returns its wall time and peak memory, and its output."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    process.returncode = 0
    facts = {"seconds": round(time.perf_counter() - began, 3), "peak_memory_mb": round(usage.ru_maxrss / 1024, 1)}
    return facts, output


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call ``function`` in a new interpreter, so that nothing measured before is in its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    flags = next(line.split(":")[1].split() for line in cpuinfo.splitlines() if line.startswith("flags"))
    packages = ("onnxruntime", "numpy", "pillow", "tokenizers", "torch", "transformers")
    return {
        "cpu": model,
        "cpu_flags": sorted({"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)),
        "threads": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages} | {"siglip_onnx": siglip_onnx.__version__},
    }


if __name__ == "__main__":
    main()
