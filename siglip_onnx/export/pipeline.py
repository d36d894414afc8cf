"""Export a checkpoint to a bundle: shared files, then every variant, then their accuracy, then the manifest."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .._version import __version__
from ..bundle.integrity import FileFacts, file_facts
from ..bundle.manifest import MANIFEST, POSITIONS, TEXT, TOWERS, VISION, Manifest, Variant, check_head, graph_path
from ..config import NAFLEX, TOKENIZER
from ..errors import AccuracyError, CheckpointError
from ..head import Floats
from ..image.decode import ImageSource
from ..session import LazySession
from ..system.extras import extra
from ..verify.accuracy import MIN_COSINE, REFERENCE, Accuracy, compare
from ..verify.samples import SAMPLE_TEXTS, sample_images
from .calibration import Calibration, Inputs, prepare_inputs
from .checkpoint import POSITIONS_WEIGHT, Checkpoint, open_checkpoint
from .output import check_out, new_bundle_folder
from .tokenizer import write_tokenizer
from .towers import build_towers
from .variants import Int8Options, write_tower

PRECISIONS = ("fp32", "int8")

Report = Callable[[str], None]
FreshTower = Callable[[str], ir.Model]


@dataclass(frozen=True)
class ExportedVariant:
    """Summary of one exported variant."""

    name: str
    size_bytes: int
    seconds: float
    accuracy: Accuracy


@dataclass(frozen=True)
class WrittenVariant:
    """The two graphs of a variant on disk, how each was quantized, and the seconds that writing them took."""

    graphs: dict[str, Path]
    quantization: dict[str, dict[str, Any]]
    seconds: float


def export_bundle(
    checkpoint_path: Path,
    out: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    exporter: str = "native",
    min_cosine: float | None = None,
    allow_inaccurate: bool = False,
    calibration_images: Sequence[ImageSource] | None = None,
    reduce_range: bool = False,
    overwrite: bool = False,
    description: str = "",
    base: Path | None = None,
    tokenizer: Path | None = None,
    report: Report = lambda _line: None,
) -> list[ExportedVariant]:
    """Export a checkpoint to the bundle folder ``out``, which appears whole or not at all.

    Args:
        checkpoint_path: the folder or file of a checkpoint, in any layout of ``docs/export.md``.
        out: the bundle to write.
        precisions: the variants of the bundle: ``"fp32"``, ``"int8"``, ``"fp16"``, ``"q4"``.
        exporter: ``"native"``, or ``"optimum"`` to let optimum-onnx trace the PyTorch model.
        min_cosine: the cosine to fp32 that every sample embedding of every variant must reach, ``MIN_COSINE`` if None;
            int8 leaves as many layers in fp32 as it needs to reach it.
        allow_inaccurate: keep a variant that does not reach ``min_cosine``.
        calibration_images: images that int8 and q4 are fitted to; the built-in samples if None. The texts are always
            the built-in ones.
        reduce_range: keep int8 weights within 7 bits: faster on x86 CPUs without VNNI, and less exact.
        overwrite: replace ``out`` if it exists.
        description: a sentence on what the model was trained for, shown to its users.
        base: the checkpoint folder that a LoRA adapter was trained on.
        tokenizer: a ``spiece.model`` or ``tokenizer.json``, for a checkpoint that has none.
        report: called with a line of progress at the start of each step.

    Raises:
        CheckpointError: the checkpoint cannot be exported, or ``out`` exists.
        AccuracyError: a variant does not reach ``min_cosine``, and ``allow_inaccurate`` is not set.
        ImageError: a calibration image cannot be read.
        MissingExtraError: ``exporter`` is optimum, which is not installed.
    """
    check_out(out, checkpoint_path, overwrite)
    report(f"Reading {checkpoint_path}")
    with (
        open_checkpoint(checkpoint_path, base=base, tokenizer=tokenizer, report=report) as checkpoint,
        new_bundle_folder(out, checkpoint_path) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        _towers(checkpoint, exporter, report) as fresh_tower,
    ):
        head = _read_head(checkpoint)
        report("Writing configs and tokenizer")
        _write_shared_files(checkpoint, folder)
        files = {file.name: file_facts(file) for file in sorted(folder.iterdir()) if file.is_file()}
        samples = prepare_inputs(checkpoint, folder, sample_images(), SAMPLE_TEXTS)
        calibration_inputs = samples
        if calibration_images is not None:
            calibration_inputs = prepare_inputs(checkpoint, folder, calibration_images, SAMPLE_TEXTS)
        options = Int8Options(MIN_COSINE["int8"] if min_cosine is None else min_cosine, reduce_range)
        # Every variant is fitted to fp32 and compared with it; unless requested, it is written to a temporary folder.
        output_folders = {REFERENCE: Path(scratch)} | dict.fromkeys(precisions, folder)
        written = _write_variants(fresh_tower, output_folders, calibration_inputs, options, report)
        report("Comparing with fp32 on the sample images and texts")
        accuracies = _compare(written, samples, head)
        if not allow_inaccurate:
            _check_accuracies(accuracies, min_cosine)
        variants = {
            name: _describe_variant(name, variant, folder, files, accuracies[name])
            for name, variant in written.items()
            if name in precisions
        }
        manifest = Manifest(
            model_name=_name(checkpoint),
            source=_describe_source(checkpoint, exporter),
            embedding_dim=checkpoint.config.text.embedding_dim,
            **head,
            variants=variants,
            files=files,
            description=description,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return [
        ExportedVariant(name, variants[name].size_bytes, written[name].seconds, accuracies[name]) for name in precisions
    ]


@contextmanager
def _towers(checkpoint: Checkpoint, exporter: str, report: Report) -> Iterator[FreshTower]:
    """Yield a function that builds a fresh fp32 tower by name; its weights are read when it is saved."""
    if exporter == "native":
        yield lambda tower: build_towers(checkpoint.weights, checkpoint.config)[tower]
        return
    if checkpoint.layout != "transformers":
        raise CheckpointError(
            f"{checkpoint.path} has the layout of {checkpoint.layout}, which transformers cannot load, so that optimum "
            "cannot trace it. Use --exporter native."
        )
    with extra("optimum", "--exporter optimum"):
        from .optimum import read_towers, trace_towers  # noqa: PLC0415 - an optional extra
    with tempfile.TemporaryDirectory() as traced:
        report("Tracing the PyTorch model with optimum")
        trace_towers(checkpoint.path, checkpoint.config, Path(traced))
        yield lambda tower: read_towers(Path(traced), checkpoint.config)[tower]


def _read_head(checkpoint: Checkpoint) -> dict[str, float]:
    head = {name: float(checkpoint.weights[name].item()) for name in ("logit_scale", "logit_bias")}
    check_head(**head)
    return head


def _write_shared_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the files that all variants share: configs, tokenizer, and the positions of a NaFlex model."""
    if checkpoint.config.model_type == NAFLEX:
        np.save(folder / POSITIONS, checkpoint.weights[POSITIONS_WEIGHT])
    for name, content in checkpoint.config_files.items():
        (folder / name).write_bytes(content)
    write_tokenizer(
        checkpoint.tokenizer,
        folder / TOKENIZER,
        cleaning=checkpoint.cleaning,
        text_length=checkpoint.config.text.max_position_embeddings,
        vocab_size=checkpoint.config.text.vocab_size,
    )


def _write_variants(
    fresh_tower: FreshTower,
    output_folders: Mapping[str, Path],
    calibration_inputs: Mapping[str, Sequence[Inputs]],
    options: Int8Options,
    report: Report,
) -> dict[str, WrittenVariant]:
    """Write each variant into its output folder, fp32 first."""
    calibration = {
        tower: Calibration(output_folders[REFERENCE] / graph_path(tower, REFERENCE), inputs)
        for tower, inputs in calibration_inputs.items()
    }
    written = {}
    for name, output_folder in output_folders.items():
        report(f"Writing {name} towers")
        began = time.perf_counter()
        graphs = {tower: output_folder / graph_path(tower, name) for tower in TOWERS}
        quantization = {
            tower: write_tower(name, partial(fresh_tower, tower), path, calibration[tower], options)
            for tower, path in graphs.items()
        }
        written[name] = WrittenVariant(graphs, quantization, time.perf_counter() - began)
    return written


def _compare(
    written: Mapping[str, WrittenVariant], samples: Mapping[str, Sequence[Inputs]], head: Mapping[str, float]
) -> dict[str, Accuracy]:
    """Compare each variant with fp32 on the same inputs."""
    embeddings = {
        name: tuple(_embed(variant, samples, tower) for tower in (VISION, TEXT)) for name, variant in written.items()
    }
    return {name: compare(*rows, *embeddings[REFERENCE], **head) for name, rows in embeddings.items()}


def _embed(variant: WrittenVariant, samples: Mapping[str, Sequence[Inputs]], tower: str) -> Floats:
    session = LazySession(variant.graphs[tower])
    return np.concatenate([session.embed(inputs) for inputs in samples[tower]])


def _check_accuracies(accuracies: Mapping[str, Accuracy], min_cosine: float | None) -> None:
    """Check that each variant reaches ``min_cosine``, or its own limit if that is None.

    Raises:
        AccuracyError: one does not.
    """
    for name, accuracy in accuracies.items():
        limit = MIN_COSINE[name] if min_cosine is None or name == REFERENCE else min_cosine
        if not accuracy.cosine_min >= limit:
            raise AccuracyError(
                f"{name} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32 on the samples (vision "
                f"{accuracy.vision_cosine_min:.5f}, text {accuracy.text_cosine_min:.5f}), expected at least {limit}. "
                "Nothing was written. Export with --precision fp32, or keep the variant with --allow-inaccurate."
            )


def _describe_variant(
    name: str, written: WrittenVariant, folder: Path, shared: Mapping[str, FileFacts], accuracy: Accuracy
) -> Variant:
    graphs = [path.relative_to(folder).as_posix() for path in written.graphs.values()]
    files = {file: file_facts(folder / file) for graph in graphs for file in (graph, f"{graph}.data")}
    return Variant(
        embedding_space=_embedding_space(name, {**shared, **files}),
        files=files,
        quantization={tower: facts for tower, facts in written.quantization.items() if facts},
        accuracy=accuracy.to_card(),
    )


def _embedding_space(variant: str, files: Mapping[str, FileFacts]) -> str:
    """Name the vectors of a variant by what determines them: graphs, weights, tokenizer and preprocessing."""
    content = "".join(f"{name} {facts.sha256}\n" for name, facts in sorted(files.items()))
    return f"{variant}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _name(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.resolve()
    return path.name if path.is_dir() else path.stem


def _describe_source(checkpoint: Checkpoint, exporter: str) -> dict[str, Any]:
    hashes = [file_facts(path).sha256 for path in checkpoint.weight_files]
    return {
        "checkpoint": _name(checkpoint),
        "revision": None,
        "model_type": checkpoint.config.model_type,
        "weights_sha256": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "exporter": f"siglip_onnx {__version__} {exporter}",
        **checkpoint.facts,
    }
