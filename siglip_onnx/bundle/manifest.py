"""The manifest of a bundle, ``manifest.json``: head, variants, files and their hashes; read and written here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import CONFIG, CONFIGS, TOKENIZER
from ..errors import BundleError
from ..system.files import open_regular
from ..system.json_files import MAX_JSON_BYTES, read_json_object
from ..system.names import leaves_folder
from ..system.records import read_record
from .integrity import FileFacts, check_names

FORMAT = "siglip_onnx.bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
POSITIONS = "position_embeddings.npy"  # NaFlex only
# Of the graph files, as users of transformers.js know them.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "q4": "_q4"}
DEFAULT_ORDER = ("int8", "fp32", "fp16", "q4")
VISION, TEXT = "vision", "text"
TOWERS = (VISION, TEXT)
MANIFEST_HASH = "manifest_sha256"
_NO_HASH = "0" * 64
_HASH_LINE = re.compile(rf'"{MANIFEST_HASH}": "([0-9a-f]{{64}})"')
_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it also names folders of caches
_OLD_DESCRIPTION = "knows"  # the key of ``description`` in version 0.1
_OLD_CARD_KEYS = {"num_pictures": "num_images"}


def graph_path(tower: str, variant: str) -> str:
    """Return a tower's graph file inside a bundle; its weights are in ``<graph>.data`` beside it."""
    return f"onnx/{tower}_model{SUFFIXES[variant]}.onnx"


@dataclass(frozen=True)
class Variant:
    """One precision of both towers.

    Attributes:
        embedding_space: id of the vectors it makes; vectors of different spaces must not be compared.
        files: its graphs and weights, by their paths inside the bundle.
        quantization: how each tower was quantized.
        accuracy: the accuracy card, its differences from fp32.
    """

    embedding_space: str
    files: Mapping[str, FileFacts]
    quantization: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of both towers on disk."""
        return sum(facts.size_bytes for facts in self.files.values())

    def within_7_bits(self, tower: str) -> bool:
        """Say whether a tower's int8 weights are within 7 bits (``reduce_range``), so that no CPU saturates on them."""
        facts = self.quantization.get(tower)
        return isinstance(facts, dict) and bool(facts.get("reduce_range"))


@dataclass(frozen=True)
class Manifest:
    """What the runtime must know about a bundle beyond its graphs.

    Attributes:
        model_name: name of the model, shown to users.
        source: the checkpoint and the exporter.
        embedding_dim: width of an embedding.
        logit_scale: the checkpoint's raw, log-space parameter.
        logit_bias: the checkpoint's parameter.
        variants: the variants that the bundle holds, by name.
        files: the files that all variants share, by their paths inside the bundle.
        description: what the model was trained for; empty for general models.
    """

    model_name: str
    source: dict[str, Any]
    embedding_dim: int
    logit_scale: float
    logit_bias: float
    variants: Mapping[str, Variant]
    files: Mapping[str, FileFacts]
    description: str = field(default="", metadata={"aliases": (_OLD_DESCRIPTION,)})

    @property
    def knows(self) -> str:
        """The name of ``description`` in version 0.1."""
        return self.description

    def all_files(self) -> dict[str, FileFacts]:
        """Return the shared files and those of every variant."""
        files = dict(self.files)
        for variant in self.variants.values():
            files |= variant.files
        return files

    def to_json(self) -> str:
        """Return the text of ``manifest.json``; it contains its own hash, computed with zeros in place of the hash."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, MANIFEST_HASH: _NO_HASH}
        text = json.dumps(head | asdict(self), indent=2, ensure_ascii=False) + "\n"
        return text.replace(_NO_HASH, hashlib.sha256(text.encode()).hexdigest(), 1)


def check_head(logit_scale: float, logit_bias: float) -> None:
    """Check the head's parameters; the raw scales of SigLIP are near 4.7, so 100 would already be exponentiated.

    Raises:
        BundleError: a parameter is not finite, or the scale is not a raw one.
    """
    if not (abs(logit_scale) <= 10 and abs(logit_bias) <= 1000):
        raise BundleError(
            f"logit_scale is {logit_scale} and logit_bias {logit_bias}; expected finite numbers, and the scale as the "
            "checkpoint stores it: before exp, between -10 and 10."
        )


def manifest_problem(path: Path) -> str:
    """Compare a manifest with its own hash; return what is wrong, empty if nothing is or if it has no hash."""
    if leaves_folder(path.parent, path):
        return f"a link to {path.resolve()}, outside the folder"
    try:
        with open_regular(path) as file:
            text = file.read(MAX_JSON_BYTES).decode("utf-8")
    except ValueError as error:
        return str(error)
    stored = _HASH_LINE.search(text)
    if stored is None:
        unknown = _unknown_keys(text)
        return f"no hash, and unknown keys: {', '.join(sorted(unknown))}" if unknown else ""
    hashed = text[: stored.start(1)] + _NO_HASH + text[stored.end(1) :]
    sha256 = hashlib.sha256(hashed.encode()).hexdigest()
    return "" if stored[1] == sha256 else f"sha256 {sha256}, expected {stored[1]}"


def _unknown_keys(text: str) -> set[str]:
    """Return the keys of a manifest that this version does not know: a damaged key may have been that of the hash."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return set()  # read_manifest gives a better message
    known = {"format", "format_version", _OLD_DESCRIPTION, *(field.name for field in fields(Manifest))}
    return set(document) - known if isinstance(document, dict) else set()


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a model folder, without looking at the folder's other files.

    Raises:
        BundleError: the manifest is missing, damaged or of a newer format.
    """
    manifest_path = path / MANIFEST
    if leaves_folder(path, manifest_path):
        raise BundleError(f"{manifest_path} is a link to {manifest_path.resolve()}, outside the folder. Copy it there.")
    try:
        document = read_json_object(manifest_path)
    except FileNotFoundError as error:
        hint = ""
        if (path / CONFIG).exists():
            hint = f" It looks like a checkpoint; export it first: siglip-onnx export {path} OUT"
        raise BundleError(f"{path} is not a model bundle: it has no {MANIFEST}.{hint}") from error
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
        manifest = read_record(Manifest, document, ignore_unknown=True)
        _check(manifest)
    except ValueError as error:
        raise BundleError(f"{manifest_path} is incomplete or damaged ({error}). Export the model again.") from error
    variants = dict(manifest.variants)
    for name, variant in variants.items():
        card = {_OLD_CARD_KEYS.get(key, key): value for key, value in variant.accuracy.items()}
        variants[name] = replace(variant, accuracy=card)
    return replace(manifest, variants=variants)


def _check(manifest: Manifest) -> None:
    """Raise a ValueError for variants and files that a bundle cannot have, and for a damaged head."""
    variants = manifest.variants
    if not variants or variants.keys() - SUFFIXES.keys():
        raise ValueError(f"variants {sorted(variants)}, expected some of {sorted(SUFFIXES)}")
    for name, variant in variants.items():
        if missing := {graph_path(tower, name) for tower in TOWERS} - variant.files.keys():
            raise ValueError(f"variant {name!r} does not list {', '.join(sorted(missing))}")
        if not _SPACE.fullmatch(variant.embedding_space):
            raise ValueError(f"variant {name!r} has embedding space {variant.embedding_space!r}")
    if missing := {*CONFIGS, TOKENIZER} - manifest.files.keys():
        raise ValueError(f"it does not list {', '.join(sorted(missing))}")
    for files in (manifest.files, *(variant.files for variant in variants.values())):
        check_names(files)
    check_head(manifest.logit_scale, manifest.logit_bias)
