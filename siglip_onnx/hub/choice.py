"""Remember how a model runs fastest on this machine: what ``siglip-onnx bench MODEL --choose`` measured.

A choice is a JSON file in the cache folder. It holds for one model, machine and set of versions; deleting it undoes it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from .._version import __version__
from ..bundle.folder import Bundle
from ..bundle.manifest import MANIFEST
from ..demo import BUNDLE_PATH
from ..errors import CacheError
from ..options import RuntimeOptions
from ..session import OPENVINO, available_providers, runtime_version
from ..system.cache_dir import cache_folder
from ..system.cpu import read_cpu
from ..system.extras import package_version
from ..system.files import open_regular, write_atomic
from ..system.json_files import read_json_object, to_json
from ..system.records import read_record
from ..system.threads import MAX_THREADS, available_threads
from .cache import cache_errors

_MAX_BYTES = 100_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The fastest way to run one model on one machine.

    Attributes:
        model: name of the model.
        variant, provider, settings, threads: of one image or text at a time; ``settings`` are the provider's options.
        workers: the number that gives the most images per second.
        cpu, cpus: the machine on which it was measured: the CPU's name, and the CPUs that the process could use.
        versions: of siglip_onnx, onnxruntime, and OpenVINO if that was chosen.
        measured: what was measured of it.
    """

    model: str
    variant: str
    provider: str
    threads: int
    workers: int
    settings: Mapping[str, str] = field(default_factory=dict)
    cpu: str = field(default_factory=lambda: read_cpu().name)
    cpus: int = field(default_factory=available_threads)
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def stale(self) -> str:
        """Return why it does not hold for this machine and its packages, empty if it does."""
        here = (read_cpu().name, available_threads())
        if here != (self.cpu, self.cpus):
            return f"it was measured on {self.cpus} CPUs, {self.cpu}, and this process has {here[1]}, {here[0]}"
        for name, version in _versions().items():
            if self.versions.get(name) != version:
                return f"it was measured with {name} {self.versions.get(name)}, and {version} is installed"
        if not (1 <= self.threads <= MAX_THREADS and 1 <= self.workers <= MAX_THREADS):
            return f"it has {self.threads} threads and {self.workers} workers"
        if self.provider not in (OPENVINO, *available_providers()):
            return f"it was measured with {self.provider}, which this onnxruntime does not have"
        if self.provider == OPENVINO and not _has_openvino(self.versions.get("openvino", "")):
            return f"it was measured with openvino {self.versions.get('openvino')}, which is not installed"
        return ""


def make_choices_folder() -> None:
    """Create the folder of choices.

    Raises:
        CacheError: it cannot be created, or nothing can be written there.
    """
    with cache_errors():
        choices_folder().mkdir(parents=True, exist_ok=True)
        if not os.access(choices_folder(), os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(choices_folder()))


def write_choice(bundle: Bundle, choice: Choice) -> Path:
    """Write a choice with the versions of its packages; return its file.

    Raises:
        CacheError: the cache cannot be written.
    """
    make_choices_folder()
    path, versions = choice_path(bundle), _versions()
    if choice.provider == OPENVINO:
        versions["openvino"] = package_version("openvino") or ""
    with cache_errors():
        write_atomic(path, to_json(asdict(replace(choice, versions=versions)), indent=2).encode())
    return path


def read_choice(path: Path) -> Choice:
    """Read a choice.

    Raises:
        OSError, ValueError: the file cannot be read, or is damaged.
    """
    return read_record(Choice, read_json_object(path, _MAX_BYTES), ignore_unknown=True)


def choice_path(bundle: Bundle) -> Path:
    """Return the file of a model's choice, named by the hash of its manifest.

    Raises:
        CacheError: there is no cache folder.
    """
    with open_regular(bundle.path / MANIFEST) as file:
        return choices_folder() / f"{hashlib.sha256(file.read()).hexdigest()}.json"


def choices_folder() -> Path:
    """Return the folder of all choices.

    Raises:
        CacheError: there is no cache folder.
    """
    return cache_folder() / "choices"


def apply_choice(bundle: Bundle, options: RuntimeOptions, *, auto_workers: bool = False) -> RuntimeOptions:
    """Return options with what was chosen for the model, unless they name a variant or providers themselves.

    A choice that does not hold here is ignored, and logged.

    Args:
        bundle: the model.
        options: those that the user gave; ``threads`` among them are kept.
        auto_workers: whether ``workers`` are a default, which the chosen number replaces.

    Raises:
        BundleError: the files of the chosen variant are damaged.
    """
    if options.variant is not None or options.providers is not None:
        return options
    try:
        path = choice_path(bundle)
        if not os.path.exists(path):  # noqa: PTH110 - in every load
            return options
        choice = read_choice(path)
        problem = choice.stale()
    except CacheError:
        return options
    except (OSError, ValueError) as error:
        problem = f"it cannot be read ({error})"
    else:
        if not problem and choice.variant not in bundle.manifest.variants:
            problem = f"the model has no variant {choice.variant} any more"
    if problem:
        _log.warning("The choice of bench --choose is ignored: %s. Measure again, or delete %s.", problem, path)
        return options
    bundle.choose_variant(choice.variant)
    if bundle.path != BUNDLE_PATH:  # which was verified when the package was installed
        bundle.check_unchanged(choice.variant)
    workers = choice.workers if auto_workers else options.workers
    provider = (choice.provider, dict(choice.settings)) if choice.settings else choice.provider
    threads = options.threads or (choice.threads if workers == 1 else None)
    return replace(options, variant=choice.variant, providers=(provider,), threads=threads, workers=workers)


def _versions() -> dict[str, str]:
    return {"siglip_onnx": __version__, "onnxruntime": runtime_version()}


def _has_openvino(version: str) -> bool:
    """Say whether this version is installed, without importing it or reading the metadata of packages."""
    spec = find_spec("openvino")
    origin = spec.origin if spec is not None else None
    return origin is not None and (Path(origin).parents[1] / f"openvino-{version}.dist-info").is_dir()
