"""The model folder that export writes and the runtime reads: file names, ``manifest.json``, variants, hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import (
    NaflexPreprocessorConfig,
    PreprocessorConfig,
    SiglipConfig,
    read_config,
    read_preprocessor_config,
)
from .errors import BundleError

FORMAT = "siglip_onnx.bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
POSITIONS = "position_embeddings.npy"  # NaFlex only
# The suffixes of the graph files are those that users of transformers.js know.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "q4": "_q4"}
DEFAULT_ORDER = ("int8", "fp32", "fp16", "q4")
TOWERS = ("vision", "text")


def graph_path(tower: str, variant: str) -> str:
    """Return a tower's graph file inside a bundle; its weights lie beside it in ``<graph>.data``."""
    return f"onnx/{tower}_model{SUFFIXES[variant]}.onnx"


@dataclass(frozen=True)
class FileFacts:
    """Size and hash of one file, to know that it arrived whole."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Variant:
    """One precision of both towers.

    ``embedding_space`` names the vectors it makes: vectors of different spaces must not be compared.
    ``quantization`` says how it was made, ``accuracy`` how near it is to fp32.
    """

    embedding_space: str
    files: dict[str, FileFacts]
    quantization: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of both towers on disk."""
        return sum(facts.size_bytes for facts in self.files.values())


@dataclass(frozen=True)
class Manifest:
    """All that the runtime needs to know of a bundle beyond its graphs."""

    model_name: str
    source: dict[str, Any]
    embedding_dim: int
    logit_scale: float
    logit_bias: float
    variants: dict[str, Variant]
    files: dict[str, FileFacts]
    knows: str = ""

    def all_files(self) -> dict[str, FileFacts]:
        """Return the files of every variant and those that all share."""
        files = dict(self.files)
        for variant in self.variants.values():
            files |= variant.files
        return files

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(self)
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Bundle:
    """An opened model folder."""

    path: Path
    manifest: Manifest
    config: SiglipConfig
    preprocessor: PreprocessorConfig | NaflexPreprocessorConfig

    @property
    def tokenizer_path(self) -> Path:
        """The exact ``tokenizer.json``."""
        return self.path / TOKENIZER

    def read_positions(self) -> NDArray[np.float32]:
        """Return the learned positions of a NaFlex model, f32 ``(num_patches, D)``.

        Raises:
            BundleError: the file is missing or of another shape.
        """
        path = self.path / POSITIONS
        expected = (self.config.vision.num_patches, self.manifest.embedding_dim)
        try:
            positions: NDArray[np.float32] = np.load(path)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}. Export the model again.") from error
        if positions.shape != expected or positions.dtype != np.float32:
            raise BundleError(
                f"{path} holds {positions.dtype} of shape {positions.shape}, expected float32 of {expected}. "
                "Export the model again."
            )
        return positions

    def choose_variant(self, name: str | None) -> str:
        """Return ``name``, or the best present variant if it is None.

        Raises:
            BundleError: the bundle does not have it.
        """
        present = self.manifest.variants
        if name is None:
            return next(variant for variant in DEFAULT_ORDER if variant in present)
        if name not in present:
            raise BundleError(f"{self.path} has no variant {name!r}; it has {', '.join(present)}. Choose one of these.")
        return name

    def verify_files(self) -> list[str]:
        """Read every file of the manifest and return one line per file that is missing or changed."""
        facts = self.manifest.all_files().items()
        return [f"{name}: {problem}" for name, expected in facts if (problem := self._compare(name, expected))]

    def _compare(self, name: str, expected: FileFacts) -> str:
        if not (self.path / name).is_file():
            return "missing"
        found = file_facts(self.path / name)
        if found.size_bytes != expected.size_bytes:
            return f"{found.size_bytes} bytes, expected {expected.size_bytes}"
        return "" if found == expected else f"sha256 {found.sha256}, expected {expected.sha256}"


def open_bundle(path: Path) -> Bundle:
    """Open a model folder; graphs are not loaded yet.

    Raises:
        BundleError: no bundle, of a newer format, or with files missing or of the wrong size.
    """
    manifest = _read_manifest(path)
    for name, facts in manifest.all_files().items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise BundleError(f"{file} {found}, expected {facts.size_bytes} bytes. Export or download the model again.")
    config = read_config(path / "config.json")
    preprocessor = read_preprocessor_config(path / "preprocessor_config.json", config)
    if manifest.embedding_dim != config.text.embedding_dim:
        raise BundleError(
            f"{path / MANIFEST} says that embeddings have {manifest.embedding_dim} dimensions, config.json says "
            f"{config.text.embedding_dim}. Export the model again."
        )
    return Bundle(path, manifest, config, preprocessor)


def check_head(logit_scale: float, logit_bias: float) -> None:
    """Check the head's parameters; raw scales of SigLIP are near 4.7, so one of 100 is exponentiated already.

    Raises:
        BundleError: one is not finite, or the scale is no raw one.
    """
    if not (abs(logit_scale) <= 10 and abs(logit_bias) <= 1000):
        raise BundleError(
            f"logit_scale is {logit_scale} and logit_bias {logit_bias}; expected finite numbers, and the scale as the "
            "checkpoint has it: before exp, between -10 and 10."
        )


def file_facts(path: Path) -> FileFacts:
    """Measure and hash a file."""
    with path.open("rb") as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _read_manifest(path: Path) -> Manifest:
    manifest_path = path / MANIFEST
    try:
        document = json.loads(manifest_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = ""
        if (path / "config.json").exists():
            hint = f" It looks like a checkpoint; export it first: siglip-onnx export {path} OUT"
        raise BundleError(f"{path} is no model bundle: it has no {MANIFEST}.{hint}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest_path} cannot be read as JSON: {error}. Export the model again.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{manifest_path} is not of format {FORMAT!r}; export the model with siglip-onnx export.")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{manifest_path} has format version {version!r}, but this siglip_onnx reads version {FORMAT_VERSION}. "
            "Upgrade siglip_onnx, or export the model again with this version."
        )
    try:
        return _parse_manifest(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{manifest_path} is incomplete or damaged ({error!r}). Export the model again.") from error


def _parse_manifest(document: Mapping[str, Any]) -> Manifest:
    variants = {
        name: Variant(
            embedding_space=entry["embedding_space"],
            files=_parse_files(entry["files"]),
            quantization=entry["quantization"],
            accuracy=entry["accuracy"],
        )
        for name, entry in document["variants"].items()
    }
    unknown = variants.keys() - SUFFIXES.keys()
    if unknown or not variants:
        raise ValueError(f"variants {sorted(variants)}, expected some of {sorted(SUFFIXES)}")
    for name, variant in variants.items():
        missing = {graph_path(tower, name) for tower in TOWERS} - variant.files.keys()
        if missing or not isinstance(variant.accuracy, dict) or not isinstance(variant.embedding_space, str):
            raise ValueError(f"variant {name!r} lacks its graphs, accuracy or embedding space")
    check_head(float(document["logit_scale"]), float(document["logit_bias"]))
    return Manifest(
        model_name=document["model_name"],
        source=document["source"],
        embedding_dim=document["embedding_dim"],
        logit_scale=float(document["logit_scale"]),
        logit_bias=float(document["logit_bias"]),
        variants=variants,
        files=_parse_files(document["files"]),
        knows=document["knows"],
    )


def _parse_files(entries: Mapping[str, Any]) -> dict[str, FileFacts]:
    files = {name: FileFacts(entry["size_bytes"], entry["sha256"]) for name, entry in entries.items()}
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file {name!r} outside the bundle")
    return files
