"""The export itself, step by step: checkpoint, tokenizer, towers, quantization, comparison, manifest."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .._version import __version__
from ..bundle.folder import Bundle, open_bundle
from ..bundle.integrity import FileFacts, file_facts
from ..bundle.manifest import MANIFEST, POSITIONS, TOWERS, Manifest, Variant, check_head, graph_path
from ..config import CONFIGS, NAFLEX, TOKENIZER
from ..errors import AccuracyError, MissingExtraError
from ..image.decode import ImageSource
from ..model import SigLIP
from ..system.files import remove
from ..verify.accuracy import MIN_COSINE, REFERENCE, Accuracy, verify_variants
from ..verify.samples import SAMPLE_TEXTS, sample_images
from .checkpoint import Checkpoint, open_checkpoint
from .layers import layer_cosines, weakest_layer
from .output import check_out, new_bundle_folder
from .tokenizer import write_tokenizer
from .towers import build_towers
from .variants import Build, Calibration, Int8Options, calibrate, write_tower

PRECISIONS = ("fp32", "int8")

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportedVariant:
    """One line of the closing table."""

    name: str
    size_bytes: int
    seconds: float
    accuracy: Accuracy


def export_bundle(
    checkpoint_path: Path,
    out: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    exporter: str = "native",
    min_cosine: float | None = None,
    calibration_pictures: Sequence[ImageSource] | None = None,
    reduce_range: bool = False,
    overwrite: bool = False,
    knows: str = "",
    report: Report = lambda _line: None,
) -> list[ExportedVariant]:
    """Export a checkpoint folder to the bundle folder ``out``, which appears whole or not at all.

    Args:
        checkpoint_path: a folder as on the Hugging Face Hub.
        out: the bundle to make.
        precisions: variants to keep: ``"fp32"``, ``"int8"``, ``"fp16"``, ``"q4"``.
        exporter: ``"native"``, or ``"optimum"`` to let optimum-onnx trace the PyTorch model.
        min_cosine: how near to fp32 every sample embedding of every variant must be, ``MIN_COSINE`` if None; int8
            leaves as many layers in fp32 as that takes. 0 keeps any.
        calibration_pictures: what int8 is fitted to, besides the built-in texts; the built-in pictures if None.
        reduce_range: keep int8 weights within 7 bits, which is faster on x86 CPUs without VNNI and less exact.
        overwrite: replace ``out`` if it exists.
        knows: a sentence on what the model was trained for, shown where a user may not know.
        report: called with a line of progress when a step begins.

    Raises:
        CheckpointError: the checkpoint cannot be exported, or ``out`` exists.
        AccuracyError: a variant is farther from fp32 than ``min_cosine``.
        MissingExtraError: optimum is asked for and not installed.
    """
    check_out(out, checkpoint_path, overwrite)
    report(f"Reading {checkpoint_path}")
    checkpoint = open_checkpoint(checkpoint_path)
    with (
        checkpoint.weights,
        new_bundle_folder(out, checkpoint_path) as folder,
        _towers(checkpoint, exporter, report) as build,
    ):
        report("Writing configs and tokenizer")
        _write_configs(checkpoint, folder)
        write_tokenizer(
            checkpoint_path,
            folder / TOKENIZER,
            text_length=checkpoint.config.text.max_position_embeddings,
            vocab_size=checkpoint.config.text.vocab_size,
        )
        manifest = _describe(checkpoint, exporter, folder, knows)
        options = Int8Options(MIN_COSINE["int8"] if min_cosine is None else min_cosine, reduce_range)
        seconds = _write_variants(build, folder, manifest, precisions, calibration_pictures, options, report)
        return _finish(folder, manifest, precisions, min_cosine, seconds, report)


@contextmanager
def _towers(checkpoint: Checkpoint, exporter: str, report: Report) -> Iterator[Build]:
    """Give what makes the towers in fp32, as often as asked: weights are read when a graph is saved."""
    if exporter == "native":
        yield lambda: build_towers(checkpoint.weights, checkpoint.config)
        return
    try:
        from .optimum import read_towers, trace_towers  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingExtraError(
            f"--exporter optimum needs {error.name}, which is not installed. "
            'Run: pip install "siglip-onnx[optimum]", or leave --exporter out.'
        ) from error
    with tempfile.TemporaryDirectory() as traced:
        report("Tracing the PyTorch model with optimum")
        trace_towers(checkpoint.path, checkpoint.config, Path(traced))
        yield lambda: read_towers(Path(traced), checkpoint.config)


def _write_variants(
    build: Build,
    folder: Path,
    manifest: Manifest,
    precisions: Sequence[str],
    pictures: Sequence[ImageSource] | None,
    options: Int8Options,
    report: Report,
) -> dict[str, float]:
    """Write fp32, and each other variant beside it, and enter them in the manifest; returns the seconds each took."""
    seconds = {}
    calibration: dict[str, Calibration] = {}
    for name in (REFERENCE, *(precision for precision in precisions if precision != REFERENCE)):
        report(f"Writing {name} towers")
        began = time.perf_counter()
        quantization = {tower: write_tower(name, tower, build, folder, calibration, options) for tower in TOWERS}
        seconds[name] = time.perf_counter() - began
        graphs = [graph_path(tower, name) for tower in TOWERS]
        files = {file: file_facts(folder / file) for graph in graphs for file in (graph, f"{graph}.data")}
        space = _embedding_space(name, manifest.files | files)
        manifest.variants[name] = Variant(
            space, files, {tower: facts for tower, facts in quantization.items() if facts}
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if name == REFERENCE:
            calibration = calibrate(
                open_bundle(folder), sample_images() if pictures is None else pictures, SAMPLE_TEXTS
            )
    return seconds


def _finish(
    folder: Path,
    manifest: Manifest,
    precisions: Sequence[str],
    min_cosine: float | None,
    seconds: Mapping[str, float],
    report: Report,
) -> list[ExportedVariant]:
    """Compare each variant with fp32, and write the manifest with what was found."""
    report("Comparing with fp32 on the sample pictures and texts")
    bundle = open_bundle(folder)
    accuracies = verify_variants(bundle, sample_images(), SAMPLE_TEXTS)
    for name, accuracy in accuracies.items():
        limit = MIN_COSINE[name] if min_cosine is None or name == REFERENCE else min_cosine
        if not accuracy.cosine_min >= limit:
            raise AccuracyError(_explain_loss(bundle, name, accuracy, limit))
        manifest.variants[name] = replace(manifest.variants[name], accuracy=accuracy.to_card())
    if REFERENCE not in precisions:
        for file in manifest.variants.pop(REFERENCE).files:
            remove(folder / file, within=folder)
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return [
        ExportedVariant(name, manifest.variants[name].size_bytes, seconds[name], accuracies[name])
        for name in precisions
    ]


def _explain_loss(bundle: Bundle, variant: str, accuracy: Accuracy, min_cosine: float) -> str:
    """Say how far a variant is from fp32, and which layer loses most."""
    tower = "vision" if accuracy.vision_cosine_min <= accuracy.text_cosine_min else "text"
    model = SigLIP(bundle, variant=REFERENCE)
    inputs = model.preprocess(sample_images()) if tower == "vision" else [{"input_ids": model.tokenize(SAMPLE_TEXTS)}]
    cosines = layer_cosines(bundle, variant, tower, inputs)
    worst = weakest_layer(cosines)
    part = f"what follows the {tower} encoder" if worst == "pooler_output" else worst
    return (
        f"{variant} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32 on the samples, {min_cosine} was asked "
        f"for; {part} loses most (its output's cosine is {cosines[worst]:.5f}). Nothing was written. Export with "
        f"--precision fp32, or keep the variant with --allow-inaccurate."
    )


def _embedding_space(variant: str, files: dict[str, FileFacts]) -> str:
    """Name the vectors of a variant by what determines them: graphs, weights, tokenizer and preprocessing."""
    content = "".join(f"{name} {facts.sha256}\n" for name, facts in sorted(files.items()))
    return f"{variant}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _describe(checkpoint: Checkpoint, exporter: str, folder: Path, knows: str) -> Manifest:
    weights = checkpoint.weights
    hashes = [file_facts(path).sha256 for path in weights.paths]
    logit_scale, logit_bias = (float(weights[name].item()) for name in ("logit_scale", "logit_bias"))
    check_head(logit_scale, logit_bias)
    return Manifest(
        model_name=checkpoint.path.resolve().name,
        source={
            "checkpoint": checkpoint.path.resolve().name,
            "revision": None,
            "model_type": checkpoint.config.model_type,
            "weights_sha256": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
            "exporter": f"siglip_onnx {__version__} {exporter}",
        },
        embedding_dim=checkpoint.config.text.embedding_dim,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        variants={},
        files={file.name: file_facts(file) for file in sorted(folder.iterdir()) if file.is_file()},
        description=knows,
    )


def _write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.config.model_type == NAFLEX:
        np.save(folder / POSITIONS, checkpoint.weights["vision_model.embeddings.position_embedding.weight"])
    for name in CONFIGS:
        shutil.copyfile(checkpoint.path / name, folder / name)
