"""The model folder that export writes and the runtime reads: file names, ``manifest.json``, variants, hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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
from .integrity import FileFacts, changed_files, file_facts, find_problem, parse_files
from .json_file import MAX_JSON_BYTES, read_json_object

__all__ = [
    "Bundle",
    "FileFacts",
    "Manifest",
    "Variant",
    "check_head",
    "file_facts",
    "graph_path",
    "open_bundle",
    "read_manifest",
    "verify_folder",
]

FORMAT = "siglip_onnx.bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
POSITIONS = "position_embeddings.npy"  # NaFlex only
# The suffixes of the graph files are those that users of transformers.js know.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "q4": "_q4"}
DEFAULT_ORDER = ("int8", "fp32", "fp16", "q4")
TOWERS = ("vision", "text")
MANIFEST_HASH = "manifest_sha256"
_NO_HASH = "0" * 64
_HASH_LINE = re.compile(rf'"{MANIFEST_HASH}": "([0-9a-f]{{64}})"')
_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it also names folders of caches


def graph_path(tower: str, variant: str) -> str:
    """Return a tower's graph file inside a bundle; its weights lie beside it in ``<graph>.data``."""
    return f"onnx/{tower}_model{SUFFIXES[variant]}.onnx"


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
        """Return the text of ``manifest.json``, with the hash that this text has while zeros stand for it."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, MANIFEST_HASH: _NO_HASH}
        text = json.dumps(head | asdict(self), indent=2, ensure_ascii=False) + "\n"
        return text.replace(_NO_HASH, hashlib.sha256(text.encode()).hexdigest(), 1)


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
            positions: NDArray[np.float32] = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
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
        """Read every file and return one line per file that is missing or changed; see :func:`verify_folder`."""
        return verify_folder(self.path)

    def check_unchanged(self, variant: str) -> None:
        """Hash those files of a variant that are not as when they were last verified; see :func:`.changed_files`.

        Raises:
            BundleError: a file is not as the manifest says.
        """
        problems = changed_files(self.path, self.manifest.files | self.manifest.variants[variant].files)
        if problems:
            found = "; ".join(f"{self.path / name}: {problem}" for name, problem in problems.items())
            raise BundleError(f"The model is damaged: {found}. Export or download it again.")


def open_bundle(path: Path) -> Bundle:
    """Open a model folder; graphs are not loaded yet.

    Raises:
        BundleError: no bundle, of a newer format, or with files missing or of the wrong size.
    """
    manifest = read_manifest(path)
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


def verify_folder(path: Path) -> list[str]:
    """Read every file of a model folder and return one line per file that is missing or changed.

    If it is the manifest, it alone is named: what it says of the others cannot be trusted.

    Raises:
        BundleError: no bundle, or of a newer format.
    """
    if (path / MANIFEST).is_file() and (problem := _manifest_problem(path / MANIFEST)):
        return [f"{MANIFEST}: {problem}"]
    facts = read_manifest(path).all_files().items()
    return [f"{name}: {problem}" for name, expected in facts if (problem := find_problem(path, name, expected))]


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


def _manifest_problem(path: Path) -> str:
    """Return what is wrong with the manifest's own hash; one written before there was any has nothing to compare."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES).decode("utf-8")
    except ValueError as error:
        return str(error)
    found = _HASH_LINE.search(text)
    if found is None:
        strange = _strange_keys(text)
        return f"no hash, and unknown keys: {', '.join(sorted(strange))}" if strange else ""
    hashed = text[: found.start(1)] + _NO_HASH + text[found.end(1) :]
    sha256 = hashlib.sha256(hashed.encode()).hexdigest()
    return "" if found[1] == sha256 else f"sha256 {sha256}, expected {found[1]}"


def _strange_keys(text: str) -> set[str]:
    """Return the keys of a manifest that this version does not know: one of them may have been the hash."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return set()  # which reading it says better
    known = {"format", "format_version", *(field.name for field in fields(Manifest))}
    return set(document) - known if isinstance(document, dict) else set()


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a model folder; its files are not looked at.

    Raises:
        BundleError: there is none, or it is damaged or of a newer format.
    """
    manifest_path = path / MANIFEST
    try:
        document = read_json_object(manifest_path)
    except FileNotFoundError as error:
        hint = ""
        if (path / "config.json").exists():
            hint = f" It looks like a checkpoint; export it first: siglip-onnx export {path} OUT"
        raise BundleError(f"{path} is no model bundle: it has no {MANIFEST}.{hint}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest_path} cannot be read as JSON: {error}. Export the model again.") from error
    if document.get("format") != FORMAT:
        raise BundleError(f"{manifest_path} is not of format {FORMAT!r}; export the model with siglip-onnx export.")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{manifest_path} has format version {version!r}, but this siglip_onnx reads version {FORMAT_VERSION}. "
            "Upgrade siglip_onnx, or export the model again with this version."
        )
    try:
        return _parse_manifest(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{manifest_path} is incomplete or damaged ({error!r}). Export the model again.") from error


def _parse_manifest(document: Mapping[str, Any]) -> Manifest:
    variants = {
        name: Variant(
            embedding_space=entry["embedding_space"],
            files=parse_files(entry["files"]),
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
        if missing or not isinstance(variant.accuracy, dict) or not isinstance(variant.quantization, dict):
            raise ValueError(f"variant {name!r} lacks its graphs, accuracy or quantization")
        if not isinstance(variant.embedding_space, str) or not _SPACE.fullmatch(variant.embedding_space):
            raise ValueError(f"variant {name!r} with embedding space {variant.embedding_space!r}")
    if absent := {"config.json", "preprocessor_config.json", TOKENIZER} - document["files"].keys():
        raise ValueError(f"it does not list {', '.join(sorted(absent))}")
    check_head(float(document["logit_scale"]), float(document["logit_bias"]))
    for key, kind in {"model_name": str, "knows": str, "source": dict, "embedding_dim": int}.items():
        if not isinstance(document[key], kind):
            raise ValueError(f"{key} is {document[key]!r}")
    return Manifest(
        model_name=document["model_name"],
        source=document["source"],
        embedding_dim=document["embedding_dim"],
        logit_scale=float(document["logit_scale"]),
        logit_bias=float(document["logit_bias"]),
        variants=variants,
        files=parse_files(document["files"]),
        knows=document["knows"],
    )
