"""Open a bundle, the model folder that export writes and the runtime reads, and verify its files."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import (
    CONFIG,
    PREPROCESSOR_CONFIG,
    TOKENIZER,
    NaflexPreprocessorConfig,
    PreprocessorConfig,
    SiglipConfig,
    read_config,
    read_preprocessor_config,
)
from ..errors import BundleError
from ..system.files import make_absolute, read_small
from ..system.names import leaves_folder
from .integrity import FileFacts, changed_files, find_problem
from .manifest import (
    DEFAULT_ORDER,
    MANIFEST,
    POSITIONS,
    Manifest,
    data_path,
    manifest_problem,
    old_data_path,
    read_manifest,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_POSITION_BYTES = 200_000_000  # those of the largest model known have 2 MB; a config may claim any size
_NPY_HEADER_BYTES = 1024  # numpy writes 128


@dataclass(frozen=True)
class Bundle:
    """An opened model folder; its manifest leaves out variants whose files were all deleted."""

    path: Path
    manifest: Manifest
    config: SiglipConfig
    preprocessor: PreprocessorConfig | NaflexPreprocessorConfig | None  # None without a vision tower

    @property
    def tokenizer_path(self) -> Path:
        """The exact ``tokenizer.json``."""
        return self.path / TOKENIZER

    def read_positions(self) -> NDArray[np.float32]:
        """Return the learned position embeddings of a NaFlex model, f32 ``(num_patches, D)``.

        Raises:
            BundleError: the file is missing or of another shape.
        """
        from ..system.npy_files import read_npy  # noqa: PLC0415 - numpy is for NaFlex only; `models list` does without

        path = self.path / POSITIONS
        vision = self.config.vision
        expected = (vision.num_patches, vision.hidden_size) if vision is not None else (0, 0)
        try:
            max_bytes = min(4 * expected[0] * expected[1], _MAX_POSITION_BYTES) + _NPY_HEADER_BYTES
            positions: NDArray[np.float32] = read_npy(read_small(path, max_bytes))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}. Export the model again.") from error
        if positions.shape != expected or positions.dtype != "float32":
            raise BundleError(
                f"{path} holds {positions.dtype} of shape {positions.shape}, expected float32 of {expected}. "
                "Export the model again."
            )
        return positions

    def choose_variant(self, name: str | None) -> str:
        """Return ``name``, or the best variant of the bundle if it is None, if all its files are there.

        Raises:
            BundleError: the bundle does not have the variant, or a file of it is missing or of the wrong size.
        """
        present = self.manifest.variants
        if name is None:
            name = next(variant for variant in DEFAULT_ORDER if variant in present)
        if name not in present:
            raise BundleError(f"{self.path} has no variant {name!r}; it has {', '.join(present)}. Choose one of these.")
        check_sizes(self.path, present[name].files)
        return name

    def verify_files(self) -> list[str]:
        """Read every file and return one line per file that is missing or changed; see :func:`verify_folder`."""
        return verify_folder(self.path)

    def check_unchanged(self, variant: str) -> None:
        """Hash the files of a variant that changed since they were last verified; see :func:`.changed_files`.

        Raises:
            BundleError: a file differs from the manifest.
        """
        problems = changed_files(self.path, {**self.manifest.files, **self.manifest.variants[variant].files})
        if problems:
            damage = "; ".join(f"{self.path / name}: {problem}" for name, problem in problems.items())
            raise BundleError(f"The model is damaged: {damage}. Export or download it again.")


def open_bundle(path: Path) -> Bundle:
    """Open a model folder; graphs are not loaded yet, and the files of a variant are checked when it is chosen.

    Raises:
        BundleError: not a bundle, of a newer format, or with shared files missing or of the wrong size.
    """
    path = make_absolute(path)  # towers are loaded later
    manifest = read_manifest(path)
    files = manifest.all_files()
    for name in files:
        if leaves_folder(path, path / name):
            raise BundleError(
                f"{path / name} is a link to {os.path.realpath(path / name)}, outside the folder. Copy the file itself "
                "there."
            )
    check_sizes(path, manifest.files)
    config = read_config(path / CONFIG, manifest.kind)
    preprocessor = None
    if config.vision is not None:
        preprocessor = read_preprocessor_config(path / PREPROCESSOR_CONFIG, config)
    is_naflex = isinstance(preprocessor, NaflexPreprocessorConfig)
    unlisted = {name for name in unlisted_files(path, files) if name != POSITIONS or is_naflex}
    if is_naflex:
        unlisted |= {POSITIONS} - files.keys()
    if unlisted:
        raise BundleError(
            f"{path / MANIFEST} does not list {', '.join(sorted(unlisted))}. Export or download the model again."
        )
    if manifest.embedding_dim != config.embedding_dim:
        raise BundleError(
            f"{path / MANIFEST} says that embeddings have {manifest.embedding_dim} dimensions, config.json says "
            f"{config.embedding_dim}. Export the model again."
        )
    present = {name: facts for name, facts in manifest.variants.items() if any_exists(path, facts.files)}
    if not present:
        raise BundleError(
            f"{path} has no files of its variants, {', '.join(manifest.variants)}. Export or download the model again."
        )
    return Bundle(path, replace(manifest, variants=present), config, preprocessor)


def check_sizes(path: Path, files: Mapping[str, FileFacts]) -> None:
    """Compare the sizes of files with the manifest's.

    Raises:
        BundleError: a file is missing or of the wrong size.
    """
    for name, facts in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts.size_bytes:
            state = "is missing" if size is None else f"has {size} bytes"
            raise BundleError(
                f"{file} {state}, expected {facts.size_bytes} bytes. Export or download the model again, or choose "
                "another variant."
            )


def any_exists(path: Path, names: Collection[str]) -> bool:
    """Say whether at least one of the files is there."""
    return any((path / name).exists() for name in names)


def unlisted_files(path: Path, listed: Collection[str]) -> list[str]:
    """Return the files that would be read beside the listed ones: weights of graphs, and positions."""
    graphs = [name for name in listed if name.endswith(".onnx")]
    names = {POSITIONS, *(weights for graph in graphs for weights in (data_path(graph), old_data_path(graph)))}
    return sorted(name for name in names - set(listed) if (path / name).exists())


def verify_folder(path: Path) -> list[str]:
    """Read every file of a model folder and return one line per file that is missing, changed or not listed.

    If the manifest itself is damaged, only it is named, because its entries for other files cannot be trusted.

    Raises:
        BundleError: not a bundle, or of a newer format.
    """
    if (path / MANIFEST).is_file() and (problem := manifest_problem(path / MANIFEST)):
        return [f"{MANIFEST}: {problem}"]
    files = read_manifest(path).all_files()
    problems = ((name, find_problem(path, name, files)) for name in files)
    unlisted = ((name, f"{MANIFEST} does not list it") for name in unlisted_files(path, files))
    return [f"{name}: {problem}" for name, problem in (*problems, *unlisted) if problem]


def folder_problems(path: Path) -> list[str]:
    """Return the lines of :func:`verify_folder`, or why the folder is not a bundle."""
    try:
        return verify_folder(path)
    except BundleError as error:
        return [str(error)]
