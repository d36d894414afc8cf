"""The folder that export writes: it appears whole or not at all, and nothing but a bundle is ever replaced."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..bundle.folder import open_bundle
from ..bundle.manifest import MANIFEST
from ..errors import CheckpointError, SiglipOnnxError


def check_out(out: Path, checkpoint: Path, overwrite: bool) -> None:
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


@contextmanager
def new_bundle_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out`` that takes its name once all went well, and vanishes otherwise.

    Raises:
        SiglipOnnxError: it cannot be written.
    """
    try:
        with _new_folder(out) as folder:
            yield folder
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
