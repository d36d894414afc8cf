"""The export itself, step by step: checkpoint, tokenizer, towers, quantization, comparison, manifest."""

from __future__ import annotations

import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..bundle import (
    MANIFEST,
    POSITIONS,
    TOKENIZER,
    Bundle,
    FileFacts,
    Manifest,
    Variant,
    check_head,
    file_facts,
    graph_path,
    open_bundle,
)
from ..config import NAFLEX
from ..errors import AccuracyError, CheckpointError, SiglipOnnxError
from ..model import SigLIP
from . import MIN_COSINE
from .checkpoint import Checkpoint, open_checkpoint
from .graph import save_graph
from .layers import layer_cosines, weakest_layer
from .quantize import quantize_int8
from .tokenizer import write_tokenizer
from .towers import build_towers
from .verify import REFERENCE, SAMPLE_TEXTS, Accuracy, sample_pictures, verify_variants

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
    min_cosine: float = MIN_COSINE,
    overwrite: bool = False,
    knows: str = "",
    report: Report = lambda _line: None,
) -> list[ExportedVariant]:
    """Export a checkpoint folder to the bundle folder ``out``, which appears whole or not at all.

    Args:
        checkpoint_path: a folder as on the Hugging Face Hub.
        out: the bundle to make.
        precisions: variants to keep, ``"fp32"`` and ``"int8"``.
        min_cosine: how near to fp32 every sample embedding of every variant must be; 0 keeps any.
        overwrite: replace ``out`` if it exists.
        knows: a sentence on what the model was trained for, shown where a user may not know.
        report: called with a line of progress when a step begins.

    Raises:
        CheckpointError: the checkpoint cannot be exported, or ``out`` exists.
        AccuracyError: a variant is farther from fp32 than ``min_cosine``.
    """
    _check_out(out, checkpoint_path, overwrite)
    report(f"Reading {checkpoint_path}")
    checkpoint = open_checkpoint(checkpoint_path)
    with checkpoint.weights, _writing(out), _new_folder(out) as folder:
        report("Writing configs and tokenizer")
        _write_configs(checkpoint, folder)
        write_tokenizer(
            checkpoint_path,
            folder / TOKENIZER,
            text_length=checkpoint.config.text.max_position_embeddings,
            vocab_size=checkpoint.config.text.vocab_size,
        )
        manifest = _describe(checkpoint, folder, knows)
        return _write_variants(checkpoint, folder, manifest, precisions, min_cosine, report)


def _check_out(out: Path, checkpoint: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a bundle: the folder may hold the checkpoint, or somebody's own files."""
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists already; choose another folder, or replace the model there: --overwrite")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        try:
            manifest = open_bundle(out).manifest
        except SiglipOnnxError as error:
            raise CheckpointError(
                f"{out} is no model folder and is not replaced; choose another one. {error}"
            ) from error
        own = {MANIFEST, *manifest.files}.union(*(variant.files for variant in manifest.variants.values()))
        others = [str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file()]
        foreign = [name for name in others if name not in own]
        if foreign or checkpoint.resolve().is_relative_to(out.resolve()):
            held = foreign[0] if foreign else "the checkpoint itself"
            raise CheckpointError(f"{out} also holds {held}, which is no part of the model, and is not replaced.")


def _write_variants(
    checkpoint: Checkpoint,
    folder: Path,
    manifest: Manifest,
    precisions: Sequence[str],
    min_cosine: float,
    report: Report,
) -> list[ExportedVariant]:
    """Write each variant, compare it with fp32, and write the manifest."""
    seconds = {}
    for name in (REFERENCE, *(p for p in precisions if p != REFERENCE)):
        report(f"Writing {name} towers")
        began = time.perf_counter()
        variant = _write_variant(checkpoint, folder, name, manifest)
        seconds[name] = time.perf_counter() - began
        manifest.variants[name] = variant
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")

    report("Comparing with fp32 on the sample pictures and texts")
    bundle = open_bundle(folder)
    accuracies = verify_variants(bundle, sample_pictures(), SAMPLE_TEXTS)
    for name, accuracy in accuracies.items():
        if not accuracy.cosine_min >= min_cosine:
            raise AccuracyError(_explain_loss(bundle, name, accuracy, min_cosine))
        manifest.variants[name] = replace(manifest.variants[name], accuracy=accuracy.to_card())
    if REFERENCE not in precisions:
        for file in manifest.variants.pop(REFERENCE).files:
            (folder / file).unlink()
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return [
        ExportedVariant(name, manifest.variants[name].size_bytes, seconds[name], accuracies[name])
        for name in precisions
    ]


def _explain_loss(bundle: Bundle, variant: str, accuracy: Accuracy, min_cosine: float) -> str:
    """Say how far a variant is from fp32, and which layer loses most."""
    tower = "vision" if accuracy.vision_cosine_min <= accuracy.text_cosine_min else "text"
    model = SigLIP(bundle, variant=REFERENCE)
    inputs = model.preprocess(sample_pictures()) if tower == "vision" else [{"input_ids": model.tokenize(SAMPLE_TEXTS)}]
    cosines = layer_cosines(bundle, variant, tower, inputs)
    worst = weakest_layer(cosines)
    part = f"what follows the {tower} encoder" if worst == "pooler_output" else worst
    return (
        f"{variant} reaches only a cosine of {accuracy.cosine_min:.5f} to fp32 on the samples, {min_cosine} was asked "
        f"for; {part} loses most (its output's cosine is {cosines[worst]:.5f}). Nothing was written. Export with "
        f"--precision fp32, or keep the variant with --allow-inaccurate."
    )


def _write_variant(checkpoint: Checkpoint, folder: Path, name: str, manifest: Manifest) -> Variant:
    quantization: dict[str, Any] = {}
    files: dict[str, FileFacts] = {}
    # The towers are built anew for each variant: weights are read when a graph is saved, so this costs nothing.
    for tower, model in build_towers(checkpoint.weights, checkpoint.config).items():
        if name == "int8":
            quantization[tower] = quantize_int8(model)
        graph = graph_path(tower, name)
        save_graph(model, folder / graph)
        files |= {file: file_facts(folder / file) for file in (graph, f"{graph}.data")}
    return Variant(_embedding_space(name, manifest.files | files), files, quantization)


def _embedding_space(variant: str, files: dict[str, FileFacts]) -> str:
    """Name the vectors of a variant by what determines them: graphs, weights, tokenizer and preprocessing."""
    content = "".join(f"{name} {facts.sha256}\n" for name, facts in sorted(files.items()))
    return f"{variant}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _describe(checkpoint: Checkpoint, folder: Path, knows: str) -> Manifest:
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
            "exporter": f"siglip_onnx {__version__} native",
        },
        embedding_dim=checkpoint.config.text.embedding_dim,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        variants={},
        files={file.name: file_facts(file) for file in sorted(folder.iterdir()) if file.is_file()},
        knows=knows,
    )


def _write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.config.model_type == NAFLEX:
        np.save(folder / POSITIONS, checkpoint.weights["vision_model.embeddings.position_embedding.weight"])
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(checkpoint.path / name, folder / name)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Name the folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise SiglipOnnxError(f"{out} cannot be written: {error.strerror or error}. Choose another folder.") from error


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out`` that takes its name once all went well, and vanishes otherwise."""
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            old = temporary.with_name(temporary.name + ".old")
            out.rename(old)
            temporary.rename(out)
            shutil.rmtree(old)
        else:
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
