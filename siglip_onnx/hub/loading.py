"""Find and open a model by name: the embedded demo model, a folder, the cache, or the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from .. import demo
from ..bundle.folder import Bundle, open_bundle
from ..classifier import make_model
from ..errors import BundleError, DownloadError, ModelNotFoundError, OptionError
from ..model import SigLIP
from ..options import DEFAULT_LIMITS, WHITE, ImageLimits, Provider, RuntimeOptions
from ..system.threads import MAX_THREADS, available_workers
from .cache import CachedModel, find_cached, quarantine
from .choice import apply_choice
from .download import is_offline
from .names import parse_hub_name
from .pull import Report, offline_message, pull

AUTO = "auto"  # as many workers as there are CPUs for this process
_log = logging.getLogger(__name__)


def load(
    name: str | os.PathLike[str] = demo.NAME,
    *,
    variant: str | None = None,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    workers: int | str = 1,
    fast_decode: bool = False,
    max_num_patches: int | None = None,
    label_cache: str | os.PathLike[str] | None = None,
    image_limits: ImageLimits | None = None,
    allow_truncated: bool = False,
    background: str = WHITE,
    isolate_decoding: bool | None = False,
    calibration: str | os.PathLike[str] | None = None,
    offline: bool = False,
    cache: str | os.PathLike[str] | None = None,
    report: Report = _log.info,
) -> SigLIP:
    """Open a model by name; its towers load at first use.

    A model on the Hub is downloaded once and verified, and a checkpoint is exported; from then on it is opened from the
    cache, without the network. A damaged model in the cache is quarantined and fetched again, once.

    Args:
        name: ``"demo"``, the folder of a bundle, or a repository on the Hugging Face Hub, ``"owner/name"`` or
            ``"owner/name@revision"``; Google's checkpoints also by their names alone.
        variant: ``"int8"`` (the default where present), ``"fp32"``, ... Without variant and providers, those are used
            that ``siglip-onnx bench MODEL --choose`` chose on this machine, with its number of threads.
        providers: execution providers in onnxruntime's spelling, or ``["OpenVINO"]``, each as a name or a pair of name
            and options; the CPU by default.
        threads: intra-op threads; by default as many as the process may use.
        workers: one worker minimizes latency: all threads process one image. Several maximize throughput: each
            processes a different image (or text) on one thread. ``"auto"`` means one per CPU that the process may use.
        fast_decode: decode large JPEGs at a fraction of their size: faster, but not quite the same pixels.
        max_num_patches: NaFlex only: the largest number of patches per image; by default the checkpoint's.
        label_cache: a folder in which embeddings of labels are stored for other runs.
        image_limits: limits of an image's pixels, sides and bytes; by default 89 megapixels.
        allow_truncated: accept truncated images and decode what is there; by default they are refused.
        background: the color behind transparent images, a name or ``#rrggbb``; ``"drop"`` gives the pixels of
            transformers 4.57 instead: see :class:`.ImageReader`.
        calibration: a file that ``siglip-onnx calibrate`` wrote for this model.
        isolate_decoding: decode images in processes of their own, one per worker, under limits of memory and time, for
            images that are not trusted; an image that exceeds them is an ``ImageError``. Costs 1 to 2 ms per image.
            None: only images of formats other than JPEG, PNG and WebP.
        offline: open no socket; ``HF_HUB_OFFLINE=1`` in the environment does the same.
        cache: the old name of ``label_cache``.
        report: called with each line of progress of a download or export; by default it is logged at level INFO.

    Raises:
        ModelNotFoundError: no such model.
        BundleError: the folder is not a bundle, or is incomplete or damaged.
        DownloadError: the model cannot be downloaded.
    """
    label_cache = label_cache or cache
    options = RuntimeOptions(
        variant=variant,
        providers=providers,
        threads=threads,
        workers=_count_workers(workers),
        fast_decode=fast_decode,
        max_num_patches=max_num_patches,
        label_cache=None if label_cache is None else Path(label_cache),
        image_limits=image_limits or DEFAULT_LIMITS,
        allow_truncated=allow_truncated,
        background=background,
        calibration=None if calibration is None else Path(calibration),
        isolate_decoding=isolate_decoding,
    )
    bundle = open_model(name, variant, offline=offline, report=report)
    return make_model(bundle, apply_choice(bundle, options, auto_workers=workers == AUTO))


def _count_workers(workers: int | str) -> int:
    if workers == AUTO:
        return available_workers()
    if isinstance(workers, str):
        raise OptionError(f"workers is {workers!r}, expected a number from 1 to {MAX_THREADS}, or {AUTO!r}.")
    return workers


def open_model(
    name: str | os.PathLike[str], variant: str | None = None, *, offline: bool = False, report: Report = _log.info
) -> Bundle:
    """Open a model's bundle and verify its files; see :func:`load`."""
    folder = _local_folder(name)
    if folder is not None:
        bundle = open_bundle(folder)
        if folder != demo.BUNDLE_PATH:  # verified when the package was installed
            bundle.check_unchanged(bundle.choose_variant(variant))
        return bundle
    hub_name = parse_hub_name(str(name))
    cached = find_cached(hub_name.name, hub_name.revision)
    offline_mode = offline or is_offline()
    if cached is None and offline_mode:
        raise DownloadError(offline_message(hub_name.name, hub_name.revision))
    if cached is None:
        cached = pull(hub_name.name, hub_name.revision, [] if variant is None else [variant], report)
    return _open_cached(cached, variant, offline_mode, report)


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a local model: embedded, a path, or in the cache.

    Raises:
        ModelNotFoundError: no such model, or it must be downloaded first.
    """
    folder = _local_folder(name)
    if folder is not None:
        return folder
    hub_name = parse_hub_name(str(name))
    cached = find_cached(hub_name.name, hub_name.revision)
    if cached is None:
        raise ModelNotFoundError(
            f"{name} is not in the cache. Fetch it first: siglip-onnx models pull {name}"
        )  # fmt: skip
    return cached.folder


def _local_folder(name: str | os.PathLike[str]) -> Path | None:
    """Return the embedded model's folder, or the folder ``name``, or None."""
    if str(name) == demo.NAME:
        return demo.BUNDLE_PATH
    return Path(name) if os.path.isdir(name) else None  # noqa: PTH112 - is_dir() raises for long names


def _open_cached(cached: CachedModel, variant: str | None, offline_mode: bool, report: Report) -> Bundle:
    """Open a cached model; a damaged one is quarantined and fetched again, once."""
    try:
        bundle = open_bundle(cached.folder)
        if variant in (None, *bundle.manifest.variants):
            bundle.check_unchanged(bundle.choose_variant(variant))
            return bundle
    except BundleError as error:
        return _refetch(cached, variant, offline_mode, report, error)
    if offline_mode:
        raise DownloadError(offline_message(cached.name, cached.asked or None, [str(variant)]))
    return open_bundle(pull(cached.name, cached.revision, [str(variant)], report, requested=cached.asked).folder)


def _refetch(
    cached: CachedModel, variant: str | None, offline_mode: bool, report: Report, problem: BundleError
) -> Bundle:  # fmt: skip
    if offline_mode:
        raise BundleError(
            f"{problem} It can be downloaded again, but offline mode is on. With network access, run: "
            f"siglip-onnx models pull {cached.name}@{cached.asked or cached.revision}"
        ) from problem
    quarantine(cached)
    report(f"{problem} Fetching it again; the damaged files are kept in {cached.folder.parent}")
    wanted = [] if variant is None else [variant]
    pulled = pull(cached.name, cached.revision, wanted, report, requested=cached.asked)
    bundle = open_bundle(pulled.folder)
    bundle.check_unchanged(bundle.choose_variant(variant))
    return bundle
