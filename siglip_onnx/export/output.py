"""The output folder of an export: it appears whole or not at all, and replaces only an earlier bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..bundle.folder import open_bundle
from ..bundle.manifest import MANIFEST
from ..errors import CheckpointError, SiglipOnnxError
from ..system.files import follow_links, new_part_folder, remove, remove_own_files, replace_folder


def check_out(out: Path, checkpoint: Path, overwrite: bool) -> list[str]:
    """Refuse to replace anything but a bundle, whose files are returned: there may be files of the user.

    Raises:
        CheckpointError: it holds something else, or exists and ``overwrite`` is false.
    """
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists already; choose another folder, or replace the bundle there: --overwrite")
    return _find_own_files(out, checkpoint)


def _find_own_files(out: Path, checkpoint: Path) -> list[str]:
    """Return the files of the bundle in ``out``; none if it does not exist or is empty.

    Raises:
        CheckpointError: it is something else, or holds other files.
    """
    if out.is_symlink():
        raise CheckpointError(f"{out} is a symbolic link, which is never replaced; give the folder it points to.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    try:
        manifest = open_bundle(out).manifest
    except SiglipOnnxError as error:
        raise CheckpointError(
            f"{out} is not a siglip_onnx bundle; refusing to overwrite it. Choose another folder. {error}"
        ) from error
    own = {MANIFEST, *manifest.all_files()}
    own_folders = {str(parent) for name in own for parent in Path(name).parents}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        is_own = name in own_folders if path.is_dir() else name in own
        if path.is_symlink() or not is_own:
            raise CheckpointError(
                f"{out} also holds {name}, which is not part of the bundle; refusing to overwrite it. "
                "Choose another folder."
            )
    if checkpoint.resolve().is_relative_to(out.resolve()):
        raise CheckpointError(
            f"{out} also holds the checkpoint itself; refusing to overwrite it. Choose another folder."
        )
    return sorted(own)


@contextmanager
def new_bundle_folder(out: Path, checkpoint: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder next to ``out``, which is renamed to it at the end, or removed after an error.

    Raises:
        CheckpointError: by the end ``out`` holds something other than a bundle, or has appeared and ``overwrite`` is
            false.
        SiglipOnnxError: it cannot be written.
    """
    try:
        with _new_folder(out, checkpoint, overwrite) as folder:
            yield folder
    except SiglipOnnxError:
        raise
    except OSError as error:
        raise SiglipOnnxError(f"{out} cannot be written: {error.strerror or error}. Choose another folder.") from error


@contextmanager
def _new_folder(out: Path, checkpoint: Path, overwrite: bool) -> Iterator[Path]:
    out = follow_links(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_part_folder(out) as temporary:
        yield temporary
        own = check_out(out, checkpoint, overwrite)  # an export takes minutes, in which files may have been added
        if (old := replace_folder(temporary, out)) is not None:
            _remove_bundle(old, own)


def _remove_bundle(folder: Path, own: list[str]) -> None:
    """Remove a bundle's files, and its folder if nothing else is in it."""
    remove_own_files(folder, [(str(Path(name).parent), re.escape(Path(name).name)) for name in own])
    if not any(folder.iterdir()):
        remove(folder, within=folder.parent)
