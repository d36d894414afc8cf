"""Export a checkpoint to a bundle: shared files, then every variant, then their accuracy, then the manifest."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .._version import __version__
from ..bundle.integrity import FileFacts, file_facts
from ..bundle.manifest import (
    FEATURES,
    LOGITS,
    MANIFEST,
    POOLED,
    POSITIONS,
    Manifest,
    Variant,
    check_head,
    data_path,
    embedding_space,
    graph_path,
    joined_path,
)
from ..config import CLASSIFIER, CONFIG, DUAL, NAFLEX, TEXT, TOKENIZER, TOWERS, VISION, NaflexVisionConfig
from ..errors import AccuracyError, CheckpointError
from ..image.decode import ImageSource
from ..session import LazySession
from ..system.extras import extra
from ..verify.accuracy import MIN_COSINE, REFERENCE, Accuracy, Answers, compare
from ..verify.samples import CALIBRATION_TEXTS, SAMPLE_TEXTS, sample_images
from .calibration import Calibration, Inputs, embed, list_progress, prepare_inputs
from .checkpoint import POSITIONS_WEIGHT, Checkpoint, open_checkpoint
from .graph import Progress, ignore_progress
from .joined import write_joined
from .output import check_out, new_bundle_folder
from .tokenizer import write_tokenizer
from .towers import build_towers
from .variants import Int8Options, write_tower

PRECISIONS = ("fp32", "int8")
# Rows of a text tower's table without a token: a tokenizer that the user gave must be that of the table, which may be
# padded to a multiple of a power of two; a checkpoint's own is what its reference uses.
_SPARE_ROWS, _ANY_ROWS = 1023, sys.maxsize
_SAMPLES = {VISION: "images", TEXT: "texts"}

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
    """The graphs of a variant on disk, how each was quantized, and the seconds that writing them took."""

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
    tower: str | None = None,
    features: bool = False,
    joined: bool = False,
    report: Report = lambda _line: None,
    progress: Progress = ignore_progress,
) -> list[ExportedVariant]:
    """Export a checkpoint to the bundle folder ``out``, which appears whole or not at all.

    Args:
        checkpoint_path: the folder or file of a checkpoint, in any layout of ``docs/export.md``.
        out: the bundle to write.
        precisions: the variants of the bundle: ``"fp32"``, ``"int8"``, ``"fp16"``, ``"q4"``, ``"qdq"``.
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
        tower: the only tower to export, ``"vision"`` or ``"text"``; by default all that the checkpoint has.
        features: also give ``last_hidden_state`` of the vision tower; one without a pooling head gives only that.
        joined: also write both towers and the head as one graph, for the zero-shot pipeline of transformers.js.
        report: called with a line of progress at the start of each step.
        progress: called within a step with what is being done, how much of it is done, and how much there is.

    Raises:
        CheckpointError: the checkpoint cannot be exported, or ``out`` exists.
        AccuracyError: a variant does not reach ``min_cosine``, and ``allow_inaccurate`` is not set.
        ImageError: a calibration image cannot be read.
        MissingExtraError: ``exporter`` is optimum, which is not installed.
    """
    check_out(out, checkpoint_path, overwrite)
    report(f"Reading {checkpoint_path}")
    with (
        open_checkpoint(checkpoint_path, base=base, tokenizer=tokenizer, tower=tower, report=report) as checkpoint,
        new_bundle_folder(out, checkpoint_path, overwrite) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        _towers(checkpoint, exporter, features, report) as fresh_tower,
    ):
        if joined and (checkpoint.kind != DUAL or checkpoint.config.model_type == NAFLEX):
            what = "NaFlex model" if checkpoint.config.model_type == NAFLEX else f"model of kind {checkpoint.kind!r}"
            raise CheckpointError(
                f"{checkpoint_path} is a {what}, which transformers.js does not open joined. Leave out --joined."
            )
        if calibration_images is not None and checkpoint.config.vision is None:
            raise CheckpointError(f"{checkpoint_path} has no vision tower to calibrate. Leave out --calibration.")
        manifest = _begin_manifest(checkpoint, exporter, features, description)
        report("Writing configs and tokenizer")
        _write_shared_files(checkpoint, folder, _ANY_ROWS if tokenizer is None else _SPARE_ROWS)
        files = {file.name: file_facts(file) for file in sorted(folder.iterdir()) if file.is_file()}
        samples = prepare_inputs(checkpoint, folder, sample_images(), SAMPLE_TEXTS)
        images = sample_images() if calibration_images is None else calibration_images
        calibration_inputs = prepare_inputs(checkpoint, folder, images, CALIBRATION_TEXTS)
        options = Int8Options(MIN_COSINE["int8"] if min_cosine is None else min_cosine, reduce_range)
        # Every variant is fitted to fp32 and compared with it; unless requested, it is written to a temporary folder.
        output_folders = {REFERENCE: Path(scratch)} | dict.fromkeys(precisions, folder)
        fitted = {VISION: manifest.vision_outputs[0], TEXT: POOLED}
        written = _write_variants(fresh_tower, output_folders, calibration_inputs, fitted, options, report, progress)
        report(f"Comparing with fp32 on the sample {' and '.join(_SAMPLES[tower] for tower in samples)}")
        answers = {name: _answer(name, variant, samples, manifest, progress) for name, variant in written.items()}
        accuracies = {name: compare(each, answers[REFERENCE], manifest) for name, each in answers.items()}
        if not allow_inaccurate:
            _check_accuracies(accuracies, min_cosine)
        variants = {
            name: _describe_variant(name, variant, folder, files, accuracies[name])
            for name, variant in written.items()
            if name in precisions
        }
        if joined:
            report("Joining the towers of each variant in one graph")
            variants = {name: _join(name, variant, folder, manifest.head) for name, variant in variants.items()}
        manifest = replace(manifest, variants=variants, files=files)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return [
        ExportedVariant(name, variants[name].size_bytes, written[name].seconds, accuracies[name]) for name in precisions
    ]


@contextmanager
def _towers(checkpoint: Checkpoint, exporter: str, features: bool, report: Report) -> Iterator[FreshTower]:
    """Yield a function that builds a fresh fp32 tower by name; its weights are read when it is saved."""
    outputs = _choose_outputs(checkpoint, features)
    if exporter == "native":
        yield lambda tower: build_towers(checkpoint.weights, checkpoint.config, outputs)[tower]
        return
    if checkpoint.kind != DUAL or outputs != (POOLED,):
        raise CheckpointError(
            "optimum traces checkpoints with both towers, and only their pooled outputs. Use --exporter native."
        )
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


def _choose_outputs(checkpoint: Checkpoint, features: bool) -> tuple[str, ...]:
    """Return the outputs of the vision tower's graph; the first is the one that int8 is fitted to.

    Raises:
        CheckpointError: ``features`` are requested without a vision tower.
    """
    vision = checkpoint.config.vision
    if vision is None:
        if features:
            raise CheckpointError(f"{checkpoint.path} has no vision tower to give features. Leave out --features.")
        return (POOLED,)
    if checkpoint.kind == CLASSIFIER:
        outputs: tuple[str, ...] = (POOLED, LOGITS)
    else:
        outputs = (POOLED,) if vision.vision_use_head else ()
    return (*outputs, FEATURES) if features or not outputs else outputs


def _begin_manifest(checkpoint: Checkpoint, exporter: str, features: bool, description: str) -> Manifest:
    """Return the manifest of a checkpoint, without variants and files."""
    head: dict[str, float | None] = {"logit_scale": None, "logit_bias": None}
    if checkpoint.kind == DUAL:
        numbers = {name: float(checkpoint.weights[name].item()) for name in head}
        check_head(**numbers)
        head |= numbers
    return Manifest(
        model_name=_name(checkpoint),
        source=_describe_source(checkpoint, exporter),
        embedding_dim=checkpoint.config.embedding_dim,
        **head,
        variants={},
        files={},
        description=description,
        kind=checkpoint.kind,
        labels=checkpoint.labels,
        problem_type=checkpoint.problem_type,
        vision_outputs=_choose_outputs(checkpoint, features),
    )


def _write_shared_files(checkpoint: Checkpoint, folder: Path, spare_rows: int) -> None:
    """Write the files that all variants share: configs, tokenizer, and the positions of a NaFlex model.

    Of the text tower's table ``spare_rows`` may belong to no token.
    """
    if isinstance(checkpoint.config.vision, NaflexVisionConfig):
        np.save(folder / POSITIONS, checkpoint.weights[POSITIONS_WEIGHT])
    for name, content in checkpoint.config_files.items():
        (folder / name).write_bytes(content)
    (folder / CONFIG).write_bytes(_for_transformers_js(checkpoint.config_files[CONFIG]))
    if checkpoint.config.text is not None and checkpoint.tokenizer is not None:
        write_tokenizer(
            checkpoint.tokenizer,
            folder / TOKENIZER,
            cleaning=checkpoint.cleaning,
            text_length=checkpoint.config.text.max_position_embeddings,
            vocab_size=checkpoint.config.text.vocab_size,
            min_tokens=checkpoint.config.text.vocab_size - spare_rows,
        )


def _for_transformers_js(config: bytes) -> bytes:
    """Add to ``config.json`` that weights are beside the graphs, which transformers.js must know in a browser."""
    document: dict[str, Any] = json.loads(config)
    return json.dumps(document | {"transformers.js_config": {"use_external_data_format": True}}, indent=2).encode()


def _write_variants(
    fresh_tower: FreshTower,
    output_folders: Mapping[str, Path],
    calibration_inputs: Mapping[str, Sequence[Inputs]],
    fitted: Mapping[str, str],
    options: Int8Options,
    report: Report,
    progress: Progress,
) -> dict[str, WrittenVariant]:
    """Write each variant into its output folder, fp32 first; int8 is fitted to one output of each tower."""
    calibration = {
        tower: Calibration(
            output_folders[REFERENCE] / graph_path(tower, REFERENCE),
            inputs,
            _within(f"{tower} tower", progress),
            fitted[tower],
        )
        for tower, inputs in calibration_inputs.items()
    }
    written = {}
    for name, output_folder in output_folders.items():
        report(f"Writing {name} towers")
        began = time.perf_counter()
        graphs = {tower: output_folder / graph_path(tower, name) for tower in calibration}
        quantization = {
            tower: write_tower(name, partial(fresh_tower, tower), path, calibration[tower], options)
            for tower, path in graphs.items()
        }
        written[name] = WrittenVariant(graphs, quantization, time.perf_counter() - began)
    return written


def _answer(
    name: str,
    variant: WrittenVariant,
    samples: Mapping[str, Sequence[Inputs]],
    manifest: Manifest,
    progress: Progress,
) -> Answers:
    """Return what a variant answers on the samples."""
    answers = Answers()
    for tower, inputs in samples.items():
        session = LazySession(variant.graphs[tower])
        outputs = manifest.vision_outputs if tower == VISION else (POOLED,)

        def rows(inputs: Sequence[Inputs] = inputs, tower: str = tower) -> Iterator[Inputs]:
            return list_progress(inputs, "comparing", _within(f"{name} {tower} tower", progress))

        if POOLED in outputs:
            answers = answers._replace(**{tower: np.concatenate([session.embed(row) for row in rows()])})
        if FEATURES in outputs:
            answers = answers._replace(features=embed(session, rows(), FEATURES))
        if LOGITS in outputs:
            answers = answers._replace(logits=np.concatenate([session.run(LOGITS, row) for row in rows()]))
    return answers


def _within(part: str, progress: Progress) -> Progress:
    """Return a function that reports the progress of a part."""
    return lambda step, done, total: progress(f"{part}, {step}", done, total)


def _check_accuracies(accuracies: Mapping[str, Accuracy], min_cosine: float | None) -> None:
    """Check that each variant reaches ``min_cosine``, or its own limit if that is None.

    Raises:
        AccuracyError: one does not.
    """
    for name, accuracy in accuracies.items():
        limit = MIN_COSINE[name] if min_cosine is None or name == REFERENCE else min_cosine
        if not accuracy.cosine_min >= limit:
            raise AccuracyError(
                f"{name} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32 on the samples ("
                f"{', '.join(f'{what} {worst:.5f}' for what, worst in accuracy.cosines_min.items())}), expected at "
                f"least {limit}. "
                "Nothing was written. Export with --variant fp32, or keep the variant with --allow-inaccurate."
            )


def _describe_variant(
    name: str, written: WrittenVariant, folder: Path, shared: Mapping[str, FileFacts], accuracy: Accuracy
) -> Variant:
    graphs = [path.relative_to(folder).as_posix() for path in written.graphs.values()]
    files = {file: file_facts(folder / file) for graph in graphs for file in (graph, data_path(graph))}
    return Variant(
        embedding_space=embedding_space(name, shared, files),
        files=files,
        quantization={tower: facts for tower, facts in written.quantization.items() if facts},
        accuracy=accuracy.to_card(),
    )


def _join(name: str, variant: Variant, folder: Path, head: Mapping[str, float]) -> Variant:
    """Write the joined graph of a variant; its vectors are those of the towers, so that their id stays."""
    graph = joined_path(name)
    vision, text = (folder / graph_path(tower, name) for tower in TOWERS)
    write_joined(vision, text, folder / graph, **head)
    files = {file: file_facts(folder / file) for file in (graph, data_path(graph))}
    return replace(variant, files={**variant.files, **files})


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
