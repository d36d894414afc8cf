"""Pull a repository of the Hub into the cache as a verified bundle: copy a bundle, export a checkpoint."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from .. import errors
from ..bundle.folder import folder_problems, open_bundle, verify_folder
from ..bundle.manifest import DEFAULT_ORDER, FORMAT, MANIFEST, Manifest, read_manifest
from ..config import (
    ADDED_TOKENS,
    CONFIG,
    DUAL,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    PYTORCH_INDEX,
    PYTORCH_WEIGHTS,
    SENTENCEPIECE,
    SHARD_INDEX,
    TEXT,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOWERS_OF,
    VISION,
    WEIGHTS,
    checkpoint_kind,
    read_document,
)
from ..errors import BundleError, DownloadError, SiglipOnnxError
from ..layouts import ADAPTER_CONFIG, SENTENCE_TRANSFORMERS, is_open_clip, transformer_folder
from ..system.extras import check_extra
from ..system.json_files import read_json_object
from ..system.steps import run_steps
from .cache import (
    PARTIAL,
    CachedModel,
    branch_of,
    cache_errors,
    discard,
    find_cached,
    forget_branch,
    locked,
    repository_folder,
    store,
    write_record,
)
from .download import Repository, fetch, is_offline, look_up
from .remote_head import read_header

BUNDLE, CHECKPOINT = "bundle", "checkpoint"
# What an export reads, by layout: of each row the first file that the repository has; some only with one of the towers.
_WEIGHTS = (WEIGHTS, SHARD_INDEX, PYTORCH_WEIGHTS, PYTORCH_INDEX)
_OF_TOWER = {VISION: (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG), TEXT: (SENTENCEPIECE, TOKENIZER)}
_OPEN_CLIP = ((OPEN_CLIP_CONFIG,), (TOKENIZER, SENTENCEPIECE), (*OPEN_CLIP_WEIGHTS, *_WEIGHTS))
_ADDED = (PROCESSOR_CONFIG, TOKENIZER_CONFIG, ADDED_TOKENS)  # small files that add to the first of their kind
_SHARDS = {SHARD_INDEX: ("model-", ".safetensors"), PYTORCH_INDEX: ("pytorch_model-", ".bin")}
_BYTES_PER_S = 10e6  # of a typical connection, to estimate how long a download takes
_EXPORT_BYTES_PER_S = 25e6  # of weights, on two cores

Report = Callable[[str], None]


def pull(
    name: str, revision: str | None, variants: Sequence[str], report: Report, *, requested: str | None = None
) -> CachedModel:
    """Fetch ``owner/name`` into the cache with the given variants; without any, with the best one that it has.

    Variants that are in the cache stay there. Only one process at a time pulls a repository; others wait for it and
    then use its result. ``requested`` is the branch or tag to record if ``revision`` is its commit.

    Raises:
        DownloadError: offline, or the download fails.
        BundleError: the repository holds no model, or not the variant.
        MissingExtraError: a checkpoint must be exported, and the exporter's packages are missing.
        SiglipOnnxError: the export failed, with the exporter's own class of error.
    """
    if is_offline():
        raise DownloadError(offline_message(name, revision))
    with locked(name):
        repository = look_up(name, revision)
        branch = branch_of(revision if requested is None else requested)
        cached = find_cached(name, repository.revision)
        sound = cached is not None and not folder_problems(cached.folder)
        if cached is not None and sound and set(variants) <= read_manifest(cached.folder).variants.keys():
            report(f"{name} is in the cache already, at revision {repository.revision[:12]}")
            cached = _remember(cached, branch)
            with cache_errors():
                write_record(cached)
                forget_branch(cached, branch)
                discard(_partial(repository))  # of a run that was killed after it had stored the model
            return cached
        variants = list(dict.fromkeys([*_cached_variants(cached), *variants]))
        kind = BUNDLE if holds_bundle(repository) else CHECKPOINT
        partial = _partial(repository)
        build = _copy_bundle if kind == BUNDLE else _export_checkpoint
        bundle = build(repository, variants, partial, report)
        problems = verify_folder(bundle)
        if problems:
            with cache_errors():
                discard(partial)
            raise BundleError(f"{name} is damaged on the Hub: {'; '.join(problems)}. Report this to its owner.")
        model = CachedModel(name, repository.revision, kind, time.time(), branch)
        if cached is not None:
            model = _remember(cached, branch)
        store(model, bundle)
        with cache_errors():
            forget_branch(model, branch)
        with cache_errors():
            discard(partial)
        report(f"{name} is in the cache: {model.folder}")
        return model


def _partial(repository: Repository) -> Path:
    return repository_folder(repository.name) / f"{repository.revision}{PARTIAL}"


def holds_bundle(repository: Repository) -> bool:
    """Say whether a repository's manifest, if it has one, is that of a bundle; other programs have such files too.

    Raises:
        DownloadError: the download fails.
    """
    if MANIFEST not in repository.files:
        return False
    with tempfile.TemporaryDirectory() as folder:
        fetch(repository, [MANIFEST], Path(folder))
        with contextlib.suppress(OSError, ValueError):
            return read_json_object(Path(folder) / MANIFEST).get("format") == FORMAT
    return False


def _remember(cached: CachedModel, branch: str) -> CachedModel:
    """Return the record of a model that was pulled again, perhaps as another branch or tag."""
    also = cached.also if branch in cached.branches else (*cached.also, branch)
    return replace(cached, pulled=time.time(), also=also)


def _cached_variants(cached: CachedModel | None) -> Collection[str]:
    """Return the variants in the cache of which files are left; none of a damaged bundle."""
    with contextlib.suppress(SiglipOnnxError):
        if cached is not None:
            return open_bundle(cached.folder).manifest.variants
    return ()


def offline_message(name: str, revision: str | None, variants: Sequence[str] = ()) -> str:
    """Return the message for a model, or variants of it, that are not in the cache and must not be downloaded."""
    full = name if revision is None else f"{name}@{revision}"
    what, option = full, ""
    if variants:
        names = ",".join(variants)
        what, option = f"Variant {names} of {full}", f" --variant {names}"
    return (
        f"{what} is not in the cache, and is not downloaded: offline mode is on (--offline or HF_HUB_OFFLINE). "
        f"With network access, run: siglip-onnx models pull {full}{option}"
    )


def _copy_bundle(repository: Repository, variants: Sequence[str], partial: Path, report: Report) -> Path:
    """Download the shared files and those of the chosen variants; write a manifest that lists only these."""
    fetch(repository, [MANIFEST], partial)
    manifest = _choose(read_manifest(partial), variants, repository.name)
    names = list(manifest.all_files())
    absent = [name for name in names if name not in repository.files]
    if absent:
        raise BundleError(f"{repository.name} lacks {absent[0]}, which its {MANIFEST} lists. Report this to its owner.")
    _announce(repository, names, report)
    fetch(repository, names, partial)
    folder = partial / "bundle"
    with cache_errors():
        discard(folder)  # of an earlier try, perhaps with other variants
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
    """Download a checkpoint and export it."""
    check_extra("export", f"{repository.name} is a checkpoint; its export")
    checkpoint = partial / repository.name.split("/")[1]  # this name becomes the model's
    names = _checkpoint_files(repository, checkpoint)
    _announce(repository, names, report, exported=True)
    fetch(repository, names, checkpoint)
    fetch(repository, _shards(repository, names), checkpoint)
    folder = checkpoint.with_name(f"{checkpoint.name}.bundle")  # the checkpoint itself may be called bundle
    with cache_errors():
        discard(folder)
    _run_export(checkpoint, folder, variants or (DEFAULT_ORDER[0],), report)
    manifest = read_manifest(folder)
    source = manifest.source | {"checkpoint": repository.name, "revision": repository.revision}
    with cache_errors():
        (folder / MANIFEST).write_text(replace(manifest, source=source).to_json(), encoding="utf-8")
    return folder


def _checkpoint_files(repository: Repository, folder: Path) -> list[str]:
    """Return the files that an export reads; those that decide which are downloaded into ``folder``.

    Raises:
        BundleError: the repository holds no checkpoint.
        CheckpointError: it holds one that cannot be exported.
        DownloadError: the download fails.
    """
    if ADAPTER_CONFIG in repository.files and not any(name in repository.files for name in _WEIGHTS):
        raise BundleError(
            f"{repository.name} holds an adapter ({ADAPTER_CONFIG}). Download it and its base, and merge them: "
            "siglip-onnx export ADAPTER OUT --base CHECKPOINT"
        )
    names, inner = [], ""  # where the model lies
    if SENTENCE_TRANSFORMERS in repository.files:
        names.append(SENTENCE_TRANSFORMERS)
        fetch(repository, names, folder)
        inner = f"{transformer_folder(folder / SENTENCE_TRANSFORMERS)}/".removeprefix("/")
    files = {name.removeprefix(inner) for name in repository.files if name.startswith(inner)}
    rows: Sequence[Sequence[str]] = _OPEN_CLIP
    if not is_open_clip(files, lambda: _weight_names(repository, inner + WEIGHTS)):
        kind = DUAL
        if CONFIG in files:
            fetch(repository, [inner + CONFIG], folder)
            kind = checkpoint_kind(read_document(folder / inner / CONFIG))
        rows = ((CONFIG,), *(_OF_TOWER[tower] for tower in TOWERS_OF[kind]), _WEIGHTS)
    for alternatives in rows:
        present = [name for name in alternatives if name in files]
        if not present:
            raise BundleError(
                f"{repository.name} is neither a model of siglip_onnx nor a SigLIP checkpoint: it has no "
                f"{inner}{alternatives[0]}. Choose one of: siglip-onnx models list --known"
            )
        names.append(inner + present[0])
    names += [inner + name for name in _ADDED if name in files and inner + name not in names]
    return names


def _weight_names(repository: Repository, file: str) -> Collection[str]:
    """Return the names of the weights in safetensors; none if these are damaged."""
    with contextlib.suppress(ValueError):
        return read_header(repository, file)[0]
    return ()


def _shards(repository: Repository, names: Sequence[str]) -> list[str]:
    """Return the weight files that an index among ``names`` stands for."""
    ends = []
    for name in names:
        folder, slash, file = name.rpartition("/")
        if file in _SHARDS:
            first, last = _SHARDS[file]
            ends.append((folder + slash + first, last))
    return [name for name in repository.files for first, last in ends if name.startswith(first) and name.endswith(last)]


def _announce(repository: Repository, names: Sequence[str], report: Report, *, exported: bool = False) -> None:
    """Report how much will be downloaded and how long that may take."""
    listed = [*names, *_shards(repository, names)]
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
    """Export in a process of its own, whose memory (0.8 GB for a base model) is free again when it ends.

    Raises:
        SiglipOnnxError: what the exporter raised, of the same class.
    """
    outcome = run_steps("siglip_onnx.export", [str(checkpoint), str(out), *variants], report)
    if outcome.exit_code != 0:
        kind: type[SiglipOnnxError] = getattr(errors, outcome.error or "BundleError", BundleError)
        raise kind(f"{checkpoint.name} could not be exported (exit code {outcome.exit_code}): {outcome.message}")
