"""Turn a folder of ONNX towers that others exported, named as transformers.js names them, into a bundle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from .._version import __version__
from ..bundle.integrity import FileFacts, file_facts
from ..bundle.manifest import (
    MANIFEST,
    SUFFIXES,
    Manifest,
    Variant,
    check_head,
    embedding_space,
    graph_path,
)
from ..config import (
    CONFIG,
    NAFLEX,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    SENTENCEPIECE,
    TEXT,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOWERS,
    VISION,
    SiglipConfig,
    parse_config,
    parse_preprocessor_config,
    read_document,
    read_preprocessor_document,
)
from ..errors import BundleError, CheckpointError
from ..hub.cache import PARTIAL, cache_errors, discard, locked, repository_folder
from ..hub.download import Repository, fetch, look_up
from ..hub.names import OWNER, parse_hub_name
from ..hub.published import PUBLISHED
from ..hub.remote_head import NAMES, read_remote_head
from ..system.files import open_regular
from ..system.names import find_outside
from ..verify.accuracy import REFERENCE, Accuracy
from ..verify.sizes import check_sizes
from .foreign_graph import ForeignGraph, check_weights, read_graph
from .output import check_out, new_bundle_folder
from .sources import Request, open_source
from .sources.hugging_face import plain_config
from .tokenizer import write_tokenizer
from .trial import try_graphs

Report = Callable[[str], None]
CARD = "README.md"
_INPUTS = {VISION: ("pixel_values", TensorProto.FLOAT), TEXT: ("input_ids", TensorProto.INT64)}
_CARD_BYTES = 100_000  # of a card, whose front matter comes first
_SUFFIXES = (".onnx", ".onnx_data", ".json", ".model", ".md")  # of files that are read
_SMALL_FILES = (CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, TOKENIZER_CONFIG, CARD)
_BASE = re.compile(r"^base_model:[ \t]*(?:\n\s*-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class ImportedVariant:
    """Summary of one imported variant; ``accuracy`` is None where there is no fp32 to compare with."""

    name: str
    size_bytes: int
    accuracy: Accuracy | None


@dataclass(frozen=True)
class ForeignFolder:
    """A folder of ONNX towers: on this disk, or the part of a repository that was fetched.

    Attributes:
        path: the folder.
        name: how the user named it.
        revision: the commit of a repository.
        names: all files that it has, or that can be fetched.
        fetch: makes files appear in ``path``.
    """

    path: Path
    name: str
    revision: str | None
    names: frozenset[str]
    fetch: Callable[[Sequence[str]], None]


def import_bundle(
    source: str,
    out: Path,
    *,
    checkpoint: str | None = None,
    precisions: Sequence[str] = (),
    overwrite: bool = False,
    description: str = "",
    report: Report = lambda _line: None,
) -> list[ImportedVariant]:
    """Write the bundle folder ``out``, whole or not at all, from towers that others exported.

    Args:
        source: a folder, or ``owner/name`` on the Hub.
        out: the bundle to write.
        checkpoint: the folder or the name on the Hub of the checkpoint that the towers were made from, for its
            ``logit_scale`` and ``logit_bias``; by default the one that the files of ``source`` name.
        precisions: the variants to import; by default all that are there.
        overwrite: replace ``out`` if it exists.
        description: a sentence on what the model was trained for.
        report: called with lines of progress and on how near the variants are.

    Raises:
        BundleError: a graph is hostile or not a tower of SigLIP, or a variant is missing.
        CheckpointError: configs or tokenizer are missing or not of SigLIP, or ``out`` exists.
        DownloadError: a file of the Hub cannot be fetched.
    """
    check_out(out, Path(source), overwrite)
    with _open_folder(source, report) as folder, new_bundle_folder(out, Path(source), overwrite) as target:
        config, config_files = _read_configs(folder)
        _, text = config.both()
        graphs = _find_graphs(folder, precisions, report)
        head, base = _read_head(folder, config, checkpoint, report)
        report("Copying graphs, configs and tokenizer")
        for name, content in config_files.items():
            (target / name).write_bytes(content)
        write_tokenizer(
            folder.path,
            target / TOKENIZER,
            text_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
        )
        files = {file.name: file_facts(file) for file in sorted(target.iterdir())}
        variants = {name: _copy_variant(name, towers, target, files) for name, towers in graphs.items()}
        manifest = Manifest(
            model_name=Path(folder.name).name,
            source=base
            | {"imported": folder.name, "imported_revision": folder.revision, "model_type": config.model_type},
            embedding_dim=config.embedding_dim,
            logit_scale=head["logit_scale"],
            logit_bias=head["logit_bias"],
            variants=variants,
            files=files,
            description=description,
        )
        accuracies = _compare(manifest, target, report)
        cards = {
            name: replace(variant, accuracy=accuracies[name].to_card()) if name in accuracies else variant
            for name, variant in variants.items()
        }
        (target / MANIFEST).write_text(replace(manifest, variants=cards).to_json(), encoding="utf-8")
    return [ImportedVariant(name, variants[name].size_bytes, accuracies.get(name)) for name in variants]


@contextmanager
def _open_folder(source: str, report: Report) -> Iterator[ForeignFolder]:
    """Open a folder, or the repository of that name; what is downloaded is removed at the end, not after an error."""
    path = Path(source)
    if path.is_dir():
        if (outside := find_outside(path, _SUFFIXES)) is not None:
            raise BundleError(f"{outside} is a link that leads outside the folder. Copy the file there.")
        names = frozenset(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
        yield ForeignFolder(path, path.resolve().name, None, names, lambda _names: None)
        return
    hub_name = parse_hub_name(source)
    repository = look_up(hub_name.name, hub_name.revision)
    # With the partial downloads of models, which `models list` and `doctor` know.
    partial = repository_folder(hub_name.name) / f"{repository.revision}{PARTIAL}"
    with locked(hub_name.name):

        def fetch_missing(names: Sequence[str]) -> None:
            missing = [name for name in names if not (partial / name).is_file()]
            if missing:
                report(
                    f"{repository.name} at revision {repository.revision[:12]}: fetching {len(missing)} files, "
                    f"{repository.size_bytes(missing) / 1e6:,.1f} MB"
                )
            fetch(repository, names, partial)

        fetch_missing(_small_files(repository))
        names = frozenset(repository.files)
        yield ForeignFolder(partial, hub_name.name, repository.revision, names, fetch_missing)
        with cache_errors():
            discard(partial)


def _small_files(repository: Repository) -> list[str]:
    tokenizers = [name for name in (SENTENCEPIECE, TOKENIZER) if name in repository.files][:1]
    return [name for name in _SMALL_FILES if name in repository.files] + tokenizers


def _read_configs(folder: ForeignFolder) -> tuple[SiglipConfig, dict[str, bytes]]:
    """Return the config, and the contents of the bundle's config files."""
    path = folder.path / CONFIG
    document = plain_config(read_document(path), path, lambda _line: None)
    config = parse_config(document, path)
    if config.model_type == NAFLEX:
        raise CheckpointError(
            f"{folder.name} is a NaFlex model, whose graphs other exporters do not agree on. Export its checkpoint: "
            "siglip-onnx export"
        )
    preprocessor_path, preprocessor = read_preprocessor_document(folder.path)
    parse_preprocessor_config(preprocessor, config, preprocessor_path)
    documents = {CONFIG: document, PREPROCESSOR_CONFIG: preprocessor}
    return config, {name: json.dumps(value, indent=2).encode() for name, value in documents.items()}


def _find_graphs(
    folder: ForeignFolder, precisions: Sequence[str], report: Report
) -> dict[str, dict[str, ForeignGraph]]:
    """Return the checked towers of each variant.

    Raises:
        BundleError: a variant that the user named is missing or unusable, there is none, or a graph is hostile.
    """
    present = [name for name in SUFFIXES if {graph_path(tower, name) for tower in TOWERS} <= folder.names]
    expected = " and ".join(graph_path(tower, REFERENCE) for tower in TOWERS)
    missing = [name for name in precisions if name not in present]
    if missing or not present:
        raise BundleError(
            f"{folder.name} has no towers of {missing[0] if missing else 'any variant'}; it has "
            f"{', '.join(present) or 'neither'}, expected files such as {expected}. A folder with model.onnx alone has "
            "joined towers, which cannot be imported."
        )
    graphs: dict[str, dict[str, ForeignGraph]] = {}
    for name in precisions or present:
        towers = {tower: _open_graph(folder, graph_path(tower, name)) for tower in TOWERS}
        problems = [
            f"{graph.path.name}: {problem}"
            for tower, graph in towers.items()
            if (problem := graph.check(*_INPUTS[tower]))
        ]
        if not problems:
            graphs[name] = towers
        elif precisions:
            raise BundleError(f"{name} of {folder.name} cannot be imported: {problems[0]}. Choose another variant.")
        else:
            report(f"{name} is left out: {problems[0]}")
    if not graphs:
        raise BundleError(f"{folder.name} has no variant that can be imported.")
    others = sorted(name for name in folder.names if re.fullmatch(r"onnx/(vision|text)_model_\w+\.onnx", name))
    left_out = [name for name in others if name not in {graph_path(tower, key) for tower in TOWERS for key in SUFFIXES}]
    if left_out:
        report(f"Left out, of types that this package does not name: {', '.join(left_out)}")
    return graphs


def _open_graph(folder: ForeignFolder, name: str) -> ForeignGraph:
    folder.fetch([name])
    graph = read_graph(folder.path / name)
    weights = [(Path(name).parent / location).as_posix() for location in graph.weight_names]
    folder.fetch([weight for weight in weights if weight in folder.names])
    check_weights(graph, folder.path)
    return graph


def _read_head(
    folder: ForeignFolder, config: SiglipConfig, checkpoint: str | None, report: Report
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return ``logit_scale`` and ``logit_bias``, and what the manifest says of the checkpoint that they are from."""
    exporter = {"exporter": f"another one, imported by siglip_onnx {__version__}"}
    if checkpoint is not None and Path(checkpoint).exists():
        with ExitStack() as opened:
            source = open_source(Request(Path(checkpoint), opened))
            check_sizes(source.config, config, checkpoint)
            head = {name: float(np.asarray(source.tensors[name].read(), np.float32).reshape(-1)[0]) for name in NAMES}
        check_head(**head)
        return head, {"checkpoint": Path(checkpoint).resolve().name, "revision": None} | exporter
    base = checkpoint or _base_name(folder)
    if base is None:
        raise CheckpointError(
            f"{folder.name} does not say which checkpoint it was made from; its logit_scale and logit_bias are needed, "
            "which the towers do not hold. Name it: --checkpoint FOLDER_OR_NAME"
        )
    if checkpoint is None and folder.revision is None:
        raise CheckpointError(
            f"{folder.name} says that it was made from {base!r:.200}, whose logit_scale and logit_bias are needed, and "
            "are not read from the Hub, because only the folder names it. If you trust the name, give it: "
            "--checkpoint NAME"
        )
    hub_name = parse_hub_name(base)
    report(f"Reading logit_scale and logit_bias of {hub_name.name}")
    remote = read_remote_head(hub_name.name, hub_name.revision)
    check_sizes(remote.config, config, hub_name.name)
    head = {"logit_scale": remote.logit_scale, "logit_bias": remote.logit_bias}
    check_head(**head)
    return head, {"checkpoint": hub_name.name, "revision": remote.revision} | exporter


def _base_name(folder: ForeignFolder) -> str | None:
    """Return the name on the Hub of the checkpoint that the config, the card or the folder's own name tells."""
    stated = str(read_document(folder.path / CONFIG).get("_name_or_path", ""))
    card = folder.path / CARD
    if card.is_file():
        with open_regular(card) as file:
            in_card = _BASE.search(file.read(_CARD_BYTES).decode(errors="replace"))
        if in_card is not None:
            return in_card[1]
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", stated, re.ASCII):
        return stated
    own = Path(folder.name).name.removesuffix("-ONNX")
    return f"{OWNER}/{own}" if own in {published.name for published in PUBLISHED} else None


def _copy_variant(
    name: str, towers: Mapping[str, ForeignGraph], target: Path, shared: Mapping[str, FileFacts]
) -> Variant:
    files = {}
    for tower, graph in towers.items():
        own = graph_path(tower, name)
        for file in (own, *((Path(own).parent / location).as_posix() for location in graph.weight_names)):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(graph.path.parent / Path(file).relative_to(Path(own).parent), target / file)
            files[file] = file_facts(target / file)
    return Variant(
        embedding_space=embedding_space(name, shared, files),
        files=files,
        quantization={}
        if name == REFERENCE
        else {tower: {"method": "unknown: of another exporter"} for tower in TOWERS},
    )


def _compare(manifest: Manifest, target: Path, report: Report) -> dict[str, Accuracy]:
    """Run every variant on the sample images and texts, and compare it with fp32 if that is there.

    Raises:
        BundleError: a graph cannot be run, or gives embeddings of another width than the config says.
    """
    (target / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    report("Running the graphs on the sample images and texts")
    accuracies = try_graphs(target)
    report(
        "These graphs were made elsewhere and are kept as they are; an export of the checkpoint may be nearer to it."
    )
    if REFERENCE not in manifest.variants:
        report(f"There is no {REFERENCE} variant among them, so that how near they are to the checkpoint is not known.")
        return {}
    for name, accuracy in accuracies.items():
        if name != REFERENCE:
            report(
                f"{name}: cosine to its {REFERENCE} at least {accuracy.vision_cosine_min:.5f} (vision) and "
                f"{accuracy.text_cosine_min:.5f} (text) on the samples, logits differ by up to "
                f"{accuracy.logit_error_max:.3f}"
            )
    report(f"How near {REFERENCE} itself is to the checkpoint: siglip-onnx verify OUT --reference CHECKPOINT")
    return accuracies
