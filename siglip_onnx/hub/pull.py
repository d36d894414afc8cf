"""From a repository on the Hub to a verified bundle in the cache: a bundle is copied, a checkpoint is exported."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..bundle.folder import verify_folder
from ..bundle.manifest import DEFAULT_ORDER, MANIFEST, Manifest, read_manifest
from ..config import CONFIGS, SENTENCEPIECE, SHARD_INDEX, TOKENIZER, WEIGHTS
from ..errors import BundleError, DownloadError
from ..system.extras import check_extra
from .cache import PARTIAL, CachedModel, cache_errors, discard, find_cached, keep, locked, repository_folder
from .download import Repository, fetch, is_offline, look_up

BUNDLE, CHECKPOINT = "bundle", "checkpoint"
TOKENIZERS = (SENTENCEPIECE, TOKENIZER)  # the first that there is
_BYTES_PER_S = 10e6  # a usual line, to say how long a download may take
_EXPORT_BYTES_PER_S = 25e6  # of weights, on two cores

Report = Callable[[str], None]


def pull(name: str, revision: str | None, variants: Sequence[str], report: Report) -> CachedModel:
    """Fetch ``owner/name`` into the cache, or what it lacks of ``variants``; the best one that there is if empty.

    One process at a time does it for one name; the others wait and find it done.

    Raises:
        DownloadError: offline, or it does not arrive.
        BundleError: what arrives is no model, or lacks a variant.
        MissingExtraError: a checkpoint is to be exported, and the exporter's packages are missing.
    """
    if is_offline():
        raise DownloadError(offline_message(name, revision))
    with locked(name):
        repository = look_up(name, revision)
        cached = find_cached(name, repository.revision)
        if cached is not None and _has(cached, variants):
            report(f"{name} is in the cache already, at revision {repository.revision[:12]}")
            return cached
        kind = BUNDLE if MANIFEST in repository.files else CHECKPOINT
        partial = repository_folder(name) / f"{repository.revision}{PARTIAL}"
        make = _copy_bundle if kind == BUNDLE else _export_checkpoint
        made = make(repository, variants, partial, report)
        problems = verify_folder(made)
        if problems:
            with cache_errors():
                discard(partial)
            raise BundleError(f"{name} is damaged on the Hub: {'; '.join(problems)}. Tell its owner.")
        model = CachedModel(name, repository.revision, kind, time.time(), revision or "")
        keep(model, made)
        with cache_errors():
            discard(partial)
        report(f"{name} is in the cache: {model.folder}")
        return model


def offline_message(name: str, revision: str | None) -> str:
    """Say what to run where there is a network."""
    full = name if revision is None else f"{name}@{revision}"
    return (
        f"{full} is not in the cache, and the network is not to be used (--offline or HF_HUB_OFFLINE). "
        f"Run where it may: siglip-onnx models pull {full}"
    )


def _has(cached: CachedModel, variants: Sequence[str]) -> bool:
    try:
        present = read_manifest(cached.folder).variants
        return set(variants) <= set(present) and not verify_folder(cached.folder)
    except BundleError:
        return False


def _copy_bundle(repository: Repository, variants: Sequence[str], partial: Path, report: Report) -> Path:
    """Download the files of the chosen variants and of all; the manifest is written anew, without the others."""
    fetch(repository, [MANIFEST], partial)
    manifest = _choose(read_manifest(partial), variants, repository.name)
    names = list(manifest.all_files())
    absent = [name for name in names if name not in repository.files]
    if absent:
        raise BundleError(f"{repository.name} lacks {absent[0]}, which its {MANIFEST} names. Tell its owner.")
    _announce(repository, names, report)
    fetch(repository, names, partial)
    folder = partial / "bundle"
    with cache_errors():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).replace(folder / name)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def _choose(manifest: Manifest, variants: Sequence[str], name: str) -> Manifest:
    present = manifest.variants
    chosen = list(variants) or [next(variant for variant in DEFAULT_ORDER if variant in present)]
    absent = [variant for variant in chosen if variant not in present]
    if absent:
        raise BundleError(f"{name} has no variant {absent[0]!r}; it has {', '.join(present)}. Choose one of these.")
    return replace(manifest, variants={variant: present[variant] for variant in chosen})


def _export_checkpoint(repository: Repository, variants: Sequence[str], partial: Path, report: Report) -> Path:
    """Download a checkpoint and export it, in a process of its own: the runtime does not import the exporter."""
    check_extra("export", f"{repository.name} is a checkpoint; its export")
    checkpoint = partial / repository.name.split("/")[1]  # its name becomes the model's
    names = _checkpoint_files(repository)
    _announce(repository, names, report, exported=True)
    fetch(repository, names, checkpoint)
    if SHARD_INDEX in names:
        fetch(repository, _shards(repository), checkpoint)
    folder = partial / "bundle"
    with cache_errors():
        discard(folder)
    _run_export(checkpoint, folder, variants or (DEFAULT_ORDER[0],), report)
    manifest = read_manifest(folder)
    source = manifest.source | {"checkpoint": repository.name, "revision": repository.revision}
    with cache_errors():
        (folder / MANIFEST).write_text(replace(manifest, source=source).to_json(), encoding="utf-8")
    return folder


def _checkpoint_files(repository: Repository) -> list[str]:
    """Return the files that an export reads, and no other."""
    tokenizers = [name for name in TOKENIZERS if name in repository.files]
    weights = [name for name in (WEIGHTS, SHARD_INDEX) if name in repository.files]
    absent = [name for name in CONFIGS if name not in repository.files]
    if absent or not tokenizers or not weights:
        lacks = (absent or ([] if tokenizers else [TOKENIZERS[0]]) or [WEIGHTS])[0]
        raise BundleError(
            f"{repository.name} is neither a model of siglip_onnx nor a SigLIP checkpoint: it has no {lacks}. Choose "
            "one of: siglip-onnx models list --known"
        )
    return [*CONFIGS, tokenizers[0], weights[0]]


def _shards(repository: Repository) -> list[str]:
    return [name for name in repository.files if name.startswith("model-") and name.endswith(".safetensors")]


def _announce(repository: Repository, names: Sequence[str], report: Report, *, exported: bool = False) -> None:
    """Say how much is downloaded and how long that may take, before it begins."""
    listed = [*names, *(_shards(repository) if SHARD_INDEX in names else [])]
    size_bytes = repository.size_bytes(listed)
    line = (
        f"{repository.name} at revision {repository.revision[:12]}: {len(listed)} files, {size_bytes / 1e6:,.1f} MB, "
        f"about {_duration(size_bytes / _BYTES_PER_S)} at {_BYTES_PER_S / 1e6:.0f} MB/s"
    )
    if exported:
        line += f", then about {_duration(size_bytes / _EXPORT_BYTES_PER_S)} to export it"
    report(line)


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def _run_export(checkpoint: Path, out: Path, variants: Sequence[str], report: Report) -> None:
    precisions = [argument for variant in variants for argument in ("--precision", variant)]
    command = [sys.executable, "-m", "siglip_onnx", "export", str(checkpoint), str(out), "--json", *precisions]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        for line in process.stderr or ():
            last = line.strip()
            report(last)
    if process.returncode != 0:
        reason = last.removeprefix("siglip-onnx: ")
        raise BundleError(f"{checkpoint.name} could not be exported (exit code {process.returncode}): {reason}")
