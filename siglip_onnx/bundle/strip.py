"""Remove variants from a bundle."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..errors import BundleError
from ..system.files import remove_own_files, write_atomic
from ..system.locks import folder_locked
from .folder import open_bundle
from .integrity import find_problem
from .manifest import MANIFEST, read_manifest

_TO_REMOVE = "to_remove"  # key of the manifest's source, while a bundle is stripped
_GRAPH_FILE = re.compile(r"onnx/[\w.-]+\.onnx(_data|\.data)?", re.A)


def strip_bundle(path: Path, keep: Collection[str]) -> int:
    """Remove all variants of a bundle but ``keep`` and rewrite its manifest; return the bytes freed.

    Only files that the manifest lists are removed. It is written first, and names them until they are gone: a process
    that is killed in between leaves a bundle that opens, and a further call removes the rest.

    Raises:
        BundleError: a variant to keep is not there or is damaged, a file cannot be written or removed, or another
            process is at it.
    """
    with folder_locked(path) as is_free:
        if not is_free:
            raise BundleError(f"Another process is changing {path}; wait for it, and run the command again.")
        return _strip(path, keep)


def _strip(path: Path, keep: Collection[str]) -> int:
    bundle = open_bundle(path)
    listed = read_manifest(path)
    manifest = replace(listed, variants={bundle.choose_variant(name): bundle.manifest.variants[name] for name in keep})
    files = manifest.all_files()
    problems = [f"{name}: {problem}" for name in files if (problem := find_problem(path, name, files))]
    if problems:
        raise BundleError(f"{path} is damaged, so that nothing was removed: {'; '.join(problems)}.")
    # Files of other names, which a manifest from elsewhere may list, stay.
    unfinished = listed.source.get(_TO_REMOVE)  # by an earlier call
    names = [name for name in unfinished if isinstance(name, str)] if isinstance(unfinished, list) else []
    candidates = {*listed.all_files(), *names}
    surplus = sorted(set(filter(_GRAPH_FILE.fullmatch, candidates)) - files.keys())
    links = [name for name in (MANIFEST, *surplus) if (path / name).is_symlink()]
    if links:
        raise BundleError(
            f"{path / links[0]} is a link, as in the cache of another program, so that nothing was removed. Strip a "
            "copy of the folder with real files."
        )
    freed: int = sum((path / name).stat().st_size for name in surplus if (path / name).is_file())
    try:
        for to_remove in (surplus, []):
            source = {key: value for key, value in listed.source.items() if key != _TO_REMOVE}
            source |= {_TO_REMOVE: to_remove} if to_remove else {}
            write_atomic(path / MANIFEST, replace(manifest, source=source).to_json().encode())
            remove_own_files(path, [(str(Path(name).parent), re.escape(Path(name).name)) for name in to_remove])
    except OSError as error:
        raise BundleError(f"{path} cannot be changed: {error.strerror or error}. Run the command again.") from error
    return freed
