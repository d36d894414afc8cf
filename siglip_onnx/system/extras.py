"""Installed packages: versions, the optional extras, and the command that installs an extra from where this one is."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import MissingExtraError

DISTRIBUTION = "siglip-onnx"
_EXPORT = ("onnx", "onnx_ir", "safetensors", "ml_dtypes", "sentencepiece", "google")  # google.protobuf
_TORCH = ("torch", "transformers")
# The packages, as they are imported, that an extra brings.
EXTRAS = {
    "export": _EXPORT,
    "optimum": (*_EXPORT, *_TORCH, "optimum"),
    "train": (*_EXPORT, *_TORCH),
    "bench": (*_EXPORT, *_TORCH, "optimum", "matplotlib", "nncf", "openvino", "sklearn", "torchao"),
    "openvino": ("openvino",),
    "heic": ("pillow_heif",),
    "parquet": ("pyarrow",),
    "ray": ("ray",),
    "web": ("fastapi", "h11", "python_multipart", "starlette", "uvicorn"),
}


@contextmanager
def extra(name: str, needed_by: str) -> Iterator[None]:
    """Import the packages of an extra within this context; ``needed_by`` is what the user asked for.

    Raises:
        MissingExtraError: a package of the extra is not installed. Any other failed import is not the extra's fault
            and is passed on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = error.name or ""
        if module.partition(".")[0] not in EXTRAS[name]:
            raise
        raise _missing(name, needed_by, module) from error


def check_extra(name: str, needed_by: str, packages: Sequence[str] = ()) -> None:
    """Check that the packages of an extra, or only some of them, are installed, without importing them.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for package in packages or EXTRAS[name]:
        if find_spec(package) is None:
            raise _missing(name, needed_by, package)


def _metadata() -> ModuleType:
    from importlib import metadata  # noqa: PLC0415 - loads email and socket, which most runs do not need

    return metadata


def is_installed(name: str) -> bool:
    """Say whether the packages of an extra are installed, without importing them."""
    return all(find_spec(package) is not None for package in EXTRAS[name])


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None if it is not installed.

    A module that is imported under the name counts too: ``onnxruntime`` may come from the wheel ``onnxruntime-gpu``.
    """
    metadata = _metadata()
    try:
        return str(metadata.version(name))
    except metadata.PackageNotFoundError:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        return None if loaded is None else str(loaded)


def owners_of(module: str) -> dict[str, str]:
    """Return the installed distributions that brought a module, with their versions.

    Several can own one folder, for example ``onnxruntime`` and ``onnxruntime-gpu``: each then overwrote files of those
    that were installed before it.
    """
    metadata = _metadata()
    names = sorted(set(metadata.packages_distributions().get(module, [])))
    return {name: metadata.version(name) for name in names}


def install_command(extra_name: str = "") -> str:
    """Return the shell command that installs this package again with an extra, from where it was installed."""
    metadata = _metadata()
    extras = f"[{extra_name}]" if extra_name else ""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return _pip_install(_checkout(extras))
    return _pip_install(_origin(json.loads(record), extras) if record else [DISTRIBUTION + extras])


def _missing(name: str, needed_by: str, module: str) -> MissingExtraError:
    return MissingExtraError(f"{needed_by} needs {module}, which is not installed. Run: {install_command(name)}")


def _checkout(extras: str) -> list[str]:
    """Return pip's arguments for a package that was not installed but lies on the path."""
    folder = Path(__file__).parents[2]
    return [f"{folder}{extras}"] if (folder / "pyproject.toml").is_file() else [DISTRIBUTION + extras]


def _origin(record: Mapping[str, Any], extras: str) -> list[str]:
    """Return pip's arguments for what ``direct_url.json`` records.

    Source: https://packaging.python.org/en/latest/specifications/direct-url-data-structure/
    """
    url = record["url"]
    if "dir_info" in record:
        folder = unquote(urlsplit(url).path)
        if os.name == "nt":
            folder = folder.removeprefix("/").replace("/", "\\")
        if not Path(folder).is_dir():
            return [DISTRIBUTION + extras]  # the folder was deleted after the installation
        return [*(["-e"] if record["dir_info"].get("editable") else []), folder + extras]
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}"
    if "subdirectory" in record:
        url += f"#subdirectory={record['subdirectory']}"
    return [f"{DISTRIBUTION}{extras} @ {url}"]


def _pip_install(arguments: list[str]) -> str:
    return " ".join(["pip install", *map(_quote, arguments)])


def _quote(argument: str) -> str:
    """Quote an argument for a shell, in double quotes where nothing in them is special: every system reads those."""
    if argument.startswith("-"):
        return argument
    return f'"{argument}"' if os.name == "nt" or not set(argument) & set('"$`\\!') else shlex.quote(argument)
