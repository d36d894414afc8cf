"""The manifest of a bundle, ``manifest.json``: file names, variants, hashes; reading and writing it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import CONFIG, CONFIGS, TOKENIZER
from ..errors import BundleError
from ..system.json_files import MAX_JSON_BYTES, read_json_object
from .integrity import FileFacts, parse_files

FORMAT = "siglip_onnx.bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
POSITIONS = "position_embeddings.npy"  # NaFlex only
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "q4": "_q4"}
DEFAULT_ORDER = ("int8", "fp32", "fp16", "q4")
VISION, TEXT = "vision", "text"
TOWERS = (VISION, TEXT)
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

    def within_7_bits(self, tower: str) -> bool:
        """Say whether a tower's int8 weights are within 7 bits (``reduce_range``), so that no CPU saturates on them."""
        return bool(self.quantization.get(tower, {}).get("reduce_range"))


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


def manifest_problem(path: Path) -> str:
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
        if (path / CONFIG).exists():
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
    if absent := {*CONFIGS, TOKENIZER} - document["files"].keys():
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
