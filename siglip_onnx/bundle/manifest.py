"""The manifest of a bundle, ``manifest.json``: head, variants, files and their hashes; read and written here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import (
    CLASSIFIER,
    CONFIG,
    DUAL,
    PREPROCESSOR_CONFIG,
    PROBLEM_TYPES,
    TEXT,
    TOKENIZER,
    TOWERS_OF,
    VISION,
)
from ..errors import BundleError
from ..system.files import open_regular
from ..system.json_files import MAX_JSON_BYTES, read_json_object, to_json
from ..system.names import leaves_folder
from ..system.records import read_record
from .integrity import FileFacts, check_names

FORMAT = "siglip_onnx.bundle"
# Version 0.1 opens only the first, that of models with both towers; it advises to upgrade for the second.
FORMAT_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
POSITIONS = "position_embeddings.npy"  # NaFlex only
# Of the graph files, as users of transformers.js know them.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "q4": "_q4", "qdq": "_qdq"}
DEFAULT_ORDER = ("int8", "fp32", "fp16", "q4", "qdq")
POOLED, FEATURES, LOGITS = "pooler_output", "last_hidden_state", "logits"  # outputs of graphs
MANIFEST_HASH = "manifest_sha256"
_OF_NUMBERS = ("_min", "_mean", "_max", "_agreement")  # ends of the names of numbers in an accuracy card
_MAX_INT = 2**53  # that a float holds
_NO_HASH = "0" * 64
_HASH_LINE = re.compile(rf'"{MANIFEST_HASH}": "([0-9a-f]{{64}})"')
_OLD_DESCRIPTION = "knows"  # the key of ``description`` in version 0.1
_OLD_CARD_KEYS = {"num_pictures": "num_images"}


def graph_path(tower: str, variant: str) -> str:
    """Return a tower's graph file inside a bundle; its weights are beside it, see :func:`data_path`."""
    return f"onnx/{tower}_model{SUFFIXES[variant]}.onnx"


def joined_path(variant: str) -> str:
    """Return the file of the graph that joins both towers, which an export may add for transformers.js."""
    return f"onnx/model{SUFFIXES[variant]}.onnx"


def data_path(graph: str) -> str:
    """Return the file with a graph's weights, named as transformers.js and optimum expect it."""
    return f"{graph}_data"


def old_data_path(graph: str) -> str:
    """Return the file with a graph's weights in bundles of version 0.1."""
    return f"{graph}.data"


@dataclass(frozen=True)
class Variant:
    """One precision of all towers.

    Attributes:
        embedding_space: id of the vectors it makes, see :func:`embedding_space`; vectors of different spaces must not
            be compared.
        files: its graphs and weights, joined ones included, by their paths inside the bundle.
        quantization: how each tower was quantized.
        accuracy: the accuracy card, its differences from fp32.
    """

    embedding_space: str
    files: Mapping[str, FileFacts]
    quantization: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of its files on disk."""
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
        logit_scale: the checkpoint's raw, log-space parameter; only of models with both towers.
        logit_bias: the checkpoint's parameter; only of models with both towers.
        variants: the variants that the bundle holds, by name.
        files: the files that all variants share, by their paths inside the bundle.
        description: what the model was trained for; empty for general models.
        kind: ``"dual"``, ``"vision"``, ``"text"`` or ``"classifier"``: the towers, see :data:`.TOWERS_OF`.
        labels: of a classifier, in the order of its logits.
        problem_type: of a classifier, one of :data:`.PROBLEM_TYPES`: what its logits mean.
        vision_outputs: the outputs of the vision tower's graph.
    """

    model_name: str
    source: dict[str, Any]
    embedding_dim: int
    logit_scale: float | None
    logit_bias: float | None
    variants: Mapping[str, Variant]
    files: Mapping[str, FileFacts]
    description: str = field(default="", metadata={"aliases": (_OLD_DESCRIPTION,)})
    kind: str = DUAL
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    vision_outputs: tuple[str, ...] = (POOLED,)

    @property
    def knows(self) -> str:
        """The name of ``description`` in version 0.1."""
        return self.description

    @property
    def towers(self) -> tuple[str, ...]:
        """The towers that the model has."""
        return TOWERS_OF[self.kind]

    @property
    def head(self) -> dict[str, float]:
        """The head's parameters, as keyword arguments of :func:`.compute_logits`.

        Raises:
            BundleError: the model has none, because it does not compare images with texts.
        """
        if self.logit_scale is None or self.logit_bias is None:
            raise BundleError(
                f"{self.model_name} is a model of kind {self.kind!r}: it has no logit_scale and logit_bias, so images "
                "cannot be compared with texts. Use a model with both towers."
            )
        return {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}

    @property
    def spaces(self) -> dict[str, str]:
        """The embedding space of each variant."""
        return {name: variant.embedding_space for name, variant in self.variants.items()}

    def check_tower(self, tower: str) -> None:
        """Check that the model has a tower.

        Raises:
            BundleError: it does not; the message says what is therefore impossible.
        """
        if tower not in self.towers:
            what = "a classifier" if self.kind == CLASSIFIER else f"a {self.kind} tower alone"
            missing = {VISION: "images cannot be read or embedded", TEXT: "texts cannot be tokenized or embedded"}
            raise BundleError(
                f"{self.model_name} is {what}, without a {tower} tower: {missing[tower]}. Use a model with a {tower} "
                "tower."
            )

    def all_files(self) -> dict[str, FileFacts]:
        """Return the shared files and those of every variant."""
        files = dict(self.files)
        for variant in self.variants.values():
            files |= variant.files
        return files

    def to_json(self) -> str:
        """Return the text of ``manifest.json``; it contains its own hash, computed with zeros in place of the hash."""
        version = FORMAT_VERSIONS[0 if self.kind == DUAL else 1]
        head = {"format": FORMAT, "format_version": version, MANIFEST_HASH: ""}
        return to_hashed_json(head | asdict(self))


def to_hashed_json(document: dict[str, Any]) -> str:
    """Return the text of a manifest with its own hash, computed with zeros in place of the hash."""
    text = to_json(document | {MANIFEST_HASH: _NO_HASH}, indent=2) + "\n"
    return text.replace(_NO_HASH, hashlib.sha256(text.encode()).hexdigest(), 1)


def embedding_space(variant: str, shared: Mapping[str, FileFacts], files: Mapping[str, FileFacts]) -> str:
    """Name the vectors of a variant by what determines them: graphs, weights, tokenizer and preprocessing.

    The name is a function of the paths and hashes of the shared files and of the variant's own. A joined graph and its
    weights, which repeat the towers', do not count.
    """
    joined = joined_path(variant)
    left_out = {joined, data_path(joined)} if joined in files else set()
    own = {name: facts for name, facts in files.items() if name not in left_out}
    content = "".join(f"{name} {facts.sha256}\n" for name, facts in sorted({**shared, **own}.items()))
    return f"{variant}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


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
        return f"a link to {os.path.realpath(path)}, outside the folder"
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
        raise BundleError(
            f"{manifest_path} is a link to {os.path.realpath(manifest_path)}, outside the folder. Copy it there."
        )
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
    if version not in FORMAT_VERSIONS:
        raise BundleError(
            f"{manifest_path} has format version {version!r}, but this siglip_onnx reads versions "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}. Upgrade siglip_onnx, or export the model again with "
            "this version."
        )
    if problem := manifest_problem(manifest_path):
        raise BundleError(f"{manifest_path} was changed or is damaged: {problem}. Export or download the model again.")
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
    if manifest.kind not in TOWERS_OF:
        raise ValueError(f"kind {manifest.kind!r}, expected one of {', '.join(TOWERS_OF)}")
    for name, variant in variants.items():
        if missing := {graph_path(tower, name) for tower in manifest.towers} - variant.files.keys():
            raise ValueError(f"variant {name!r} does not list {', '.join(sorted(missing))}")
        if not all(_is_number(value) for key, value in variant.accuracy.items() if key.endswith(_OF_NUMBERS)):
            raise ValueError(f"the accuracy of variant {name!r} has values that are not numbers")
    needed = {VISION: PREPROCESSOR_CONFIG, TEXT: TOKENIZER}
    if missing := {CONFIG, *(needed[tower] for tower in manifest.towers)} - manifest.files.keys():
        raise ValueError(f"it does not list {', '.join(sorted(missing))}")
    for files in (manifest.files, *(variant.files for variant in variants.values())):
        check_names(files)
    _check_kind(manifest)
    _check_spaces(manifest)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= _MAX_INT)


def _check_spaces(manifest: Manifest) -> None:
    """Raise a ValueError for an embedding space that is not that of the listed files.

    By this name caches, stored vectors and heads know whose vectors they hold: a model that could claim another's name
    would change the other's answers.
    """
    for name, variant in manifest.variants.items():
        expected = embedding_space(name, manifest.files, variant.files)
        if variant.embedding_space != expected:
            raise ValueError(
                f"variant {name!r} has embedding space {variant.embedding_space!r:.120}, expected {expected!r}, which "
                "the names and hashes of its files give"
            )


def _check_kind(manifest: Manifest) -> None:
    """Raise a ValueError for a manifest without something that its kind needs."""
    outputs = manifest.vision_outputs
    if VISION in manifest.towers and (not outputs or set(outputs) - {POOLED, FEATURES, LOGITS}):
        raise ValueError(f"vision_outputs {list(outputs)}, expected some of {POOLED}, {FEATURES} and {LOGITS}")
    if manifest.kind == DUAL:
        for name in ("logit_scale", "logit_bias"):
            if getattr(manifest, name) is None:
                raise ValueError(f"{name} is null, expected a number")
        check_head(**manifest.head)
    if manifest.kind == CLASSIFIER:
        if not manifest.labels or len(set(manifest.labels)) < len(manifest.labels):
            raise ValueError(f"{len(manifest.labels)} labels, expected some, all of them different")
        if manifest.problem_type not in PROBLEM_TYPES or LOGITS not in outputs:
            raise ValueError(
                f"problem_type {manifest.problem_type!r} and vision_outputs {list(outputs)}, expected one of "
                f"{', '.join(PROBLEM_TYPES)}, and {LOGITS}"
            )
