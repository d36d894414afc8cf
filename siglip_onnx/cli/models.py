"""``siglip-onnx models``: list, recommend, pull, push, check, strip and remove models, without loading any."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import demo
from ..bundle.folder import folder_problems
from ..bundle.manifest import DEFAULT_ORDER, read_manifest
from ..bundle.strip import strip_bundle
from ..errors import BundleError, DownloadError
from ..hub.cache import CachedModel, cached_models, find_cached, locked, remove
from ..hub.names import OWNER, parse_hub_name, parse_repository
from ..hub.published import OPEN_CLIP, PUBLISHED, PublishedCheckpoint
from ..hub.pull import offline_message
from ..hub.pull import pull as pull_model
from ..hub.push import push as push_model
from ..hub.recommend import Limits, is_multilingual
from ..hub.recommend import recommend as recommend_models
from ..system.cache_dir import models_folder
from .completion import ModelName
from .help import OUTPUT, Group, section
from .name_list import NameList, flatten
from .output import format_size, format_table, print_json, report, show
from .recommendations import print_recommendations, print_recommendations_json

json_option = section(OUTPUT, click.option("--json", "as_json", is_flag=True, help="Print one JSON document."))


@click.group(
    cls=Group, examples=("siglip-onnx models list --known", "siglip-onnx models pull siglip2-base-patch16-224")
)
def models() -> None:
    """Manage the cache of downloaded models."""


@models.command("list", examples=("siglip-onnx models list", "siglip-onnx models list --known --json"))
@click.option("--known", is_flag=True, help="List the checkpoints published by Google, which can be pulled, instead.")
@json_option
def list_(known: bool, as_json: bool) -> None:
    """List the models in the cache."""
    if known:
        _list_known(as_json)
        return
    rows = [_describe(model) for model in cached_models()]
    if as_json:
        print_json({"folder": str(models_folder()), "models": rows})
    elif rows:
        cells = [
            [row["model"], row["revision"], row["model_kind"], ", ".join(row["variants"]), row["size"]] for row in rows
        ]
        _print_table(("model", "revision", "kind", "variants", "size"), cells)
    else:
        report(f"There are no models in {models_folder()}. Show which can be pulled: siglip-onnx models list --known")


@models.command(
    examples=(
        "siglip-onnx models recommend --milliseconds 100",
        "siglip-onnx models recommend --language ja --memory 500 --json",
    )
)
@click.option("--language", "languages", default="en", metavar="LANGUAGES",
              help="en, multilingual, or codes such as en,ja. Default: en.")  # fmt: skip
@click.option("--memory", type=click.IntRange(1), metavar="MB", help="Memory of a process with both towers, at most.")
@click.option("--milliseconds", type=click.IntRange(1), metavar="MS", help="Time of one image, at most.")
@json_option
def recommend(languages: str, memory: int | None, milliseconds: int | None, as_json: bool) -> None:
    """List the checkpoints that fit, the most accurate first.

    Accuracy is published, time and memory were measured on the machine that is named.
    """
    limits, multilingual = Limits(memory, milliseconds), is_multilingual(languages.split(","))
    found = recommend_models(limits, multilingual=multilingual)
    (print_recommendations_json if as_json else print_recommendations)(found, limits, multilingual=multilingual)


@models.command(
    examples=(
        "siglip-onnx models pull siglip2-base-patch16-224",
        "siglip-onnx models pull owner/name@main --variant fp32,int8",
    )
)
@click.argument("name", type=ModelName(), metavar="MODEL")
@click.option("--variant", "variants", multiple=True, type=NameList(DEFAULT_ORDER), callback=flatten,
              help="Variants to download or to export, separated by commas; the option may be repeated. Default: the "
                   "first of these that exists.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Do not use the network: only print what is in the cache.")
@json_option
def pull(name: str, variants: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Download a model into the cache.

    MODEL is owner/name or owner/name@revision on the Hugging Face Hub, or the short name of a known checkpoint. A model
    exported by siglip-onnx is copied, and each file is verified. Of a checkpoint, the necessary files are downloaded
    and exported, which needs the extra [export].
    """
    hub_name = parse_hub_name(name)
    if offline:
        model = find_cached(hub_name.name, hub_name.revision)
        absent = set(variants) - set(() if model is None else read_manifest(model.folder).variants)
        if model is None or absent:
            raise DownloadError(offline_message(hub_name.name, hub_name.revision, sorted(absent)))
    else:
        model = pull_model(hub_name.name, hub_name.revision, list(variants), report)
    row = _describe(model)
    if as_json:
        print_json(row)
    else:
        click.echo(os.fsencode(row["folder"]))


@models.command(examples=("siglip-onnx models check", "siglip-onnx models check demo"))
@click.argument("names", type=ModelName(), nargs=-1, metavar="[MODEL...]")
@json_option
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of models against their hashes.

    Reads every file of the models or folders named MODEL, or of all models in the cache.
    """
    folders = {name: _find_folder(name) for name in names}
    if not names:
        folders = {f"{model.name}@{model.revision[:12]}": model.folder for model in cached_models()}
    problems: dict[str, list[str]] = {}
    for name, folder in folders.items():
        problems[name] = folder_problems(folder)
        if not as_json:
            show(f"{name}: {'; '.join(problems[name]) or 'all files match the manifest'}")
    if as_json:
        print_json({"models": problems})
    damaged = [name for name, lines in problems.items() if lines]
    if damaged:
        raise BundleError(
            f"Damaged: {', '.join(damaged)}. Download again: siglip-onnx models pull MODEL; or, if only "
            "variants were deleted: siglip-onnx models strip MODEL --keep VARIANT"
        )


verify = copy.copy(check)  # the name of version 0.1
verify.hidden = True
models.add_command(verify, "verify")


@models.command(
    examples=("siglip-onnx models rm owner/name", "siglip-onnx models rm google/siglip2-base-patch16-224@main")
)
@click.argument("name", type=ModelName(), metavar="MODEL")
def rm(name: str) -> None:
    """Delete a model from the cache.

    MODEL is owner/name for all revisions, or owner/name@revision.
    """
    hub_name = parse_hub_name(name)
    freed = remove(hub_name.name, hub_name.revision)
    report(f"{name}: {format_size(freed)} freed")


@models.command(
    examples=("siglip-onnx models push MODEL owner/name", "siglip-onnx models push MODEL owner/name --private --json")
)
@click.argument("bundle", type=ModelName(), metavar="MODEL")
@click.argument("name", metavar="NAME")
@click.option("--private", is_flag=True, help="Make the repository private if it is created.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names in a repository that has no model.")
@json_option
def push(bundle: str, name: str, private: bool, overwrite: bool, as_json: bool) -> None:
    """Upload a model to the Hugging Face Hub, with a model card.

    MODEL is the folder of an exported model or the name of a model in the cache, NAME is owner/name on the Hub. The
    token comes from HF_TOKEN or from the login of the Hub's own tools. A README.md that you wrote there is kept.
    """
    repository = parse_repository(name)
    commit = push_model(_find_folder(bundle), repository, private=private, report=report, overwrite=overwrite)
    if as_json:
        print_json({"model": repository, "revision": commit})
    else:
        click.echo(f"{repository}@{commit}")


@models.command(
    examples=(
        "siglip-onnx models strip MODEL --keep int8",
        "siglip-onnx models strip siglip2-base-patch16-224 --keep fp32,int8",
    )
)
@click.argument("bundle", type=ModelName(), metavar="MODEL")
@click.option("--keep", "keep", multiple=True, required=True, type=NameList(DEFAULT_ORDER), callback=flatten,
              help="Variants to keep, separated by commas; the option may be repeated.")  # fmt: skip
def strip(bundle: str, keep: tuple[str, ...]) -> None:
    """Remove all variants of a model but those to keep.

    MODEL is the folder of an exported model, or the name of a model in the cache. Its manifest then lists only the
    variants that are left.
    """
    folder = _find_folder(bundle)
    if folder.resolve() == demo.BUNDLE_PATH.resolve():
        raise BundleError("The demo model is part of the package, and keeps its variants. Export or copy a model.")
    is_folder = os.path.isdir(bundle)  # noqa: PTH112 - is_dir() raises for long names
    with contextlib.nullcontext() if is_folder else locked(parse_hub_name(bundle).name):
        freed = strip_bundle(folder, keep)
    report(f"{bundle}: {format_size(freed)} freed")


def _find_folder(name: str) -> Path:
    from ..hub.loading import find_model  # noqa: PLC0415 - loads onnxruntime, which the other commands do not need

    return find_model(name)


def _describe(model: CachedModel) -> dict[str, Any]:
    try:
        manifest = read_manifest(model.folder)
        variants, model_kind = list(manifest.variants), manifest.kind
    except BundleError:
        variants, model_kind = ["damaged"], ""
    return {
        "model": model.name,
        "revision": model.revision,
        "variants": variants,
        "size_bytes": model.size_bytes,
        "size": format_size(model.size_bytes),
        "kind": model.kind,
        "model_kind": model_kind,
        "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.pulled)),
        "folder": str(model.folder),
    }


def _list_known(as_json: bool) -> None:
    rows = [
        {
            "model": checkpoint.name,
            "family": checkpoint.family,
            "picture": "any aspect" if checkpoint.image_size is None else f"{checkpoint.image_size} pixels",
            "repository": f"{OWNER}/{checkpoint.name}",
            "image_size": checkpoint.image_size,
            "patch_size": checkpoint.patch_size,
            "text_length": checkpoint.text_length,
            "embedding_dim": checkpoint.config.embedding_dim,
            "languages": checkpoint.languages,
            "sizes_mb": checkpoint.sizes_mb,
            "accuracy": checkpoint.accuracy and checkpoint.accuracy._asdict(),
            "advice": checkpoint.advice,
        }
        for checkpoint in PUBLISHED
    ]
    if as_json:
        print_json({"known": rows})
        return
    header = ("model", "pixels", "languages", "int8 MB", "INet", "XM3600")
    click.echo(format_table(header, list(map(_known_cells, PUBLISHED))))
    advice = [(checkpoint.name, checkpoint.advice) for checkpoint in PUBLISHED if checkpoint.advice]
    click.echo("\n" + format_table(("take", "for"), advice, left=2))
    report(
        "\nINet: ImageNet top-1. XM3600: recall@1 of text to image, 36 languages.\n"
        "In percent, from the SigLIP 2 paper; * from open_clip, whose XM3600 must not be\n"
        "compared with the others. More: --json, docs/checkpoints.md"
    )


def _known_cells(checkpoint: PublishedCheckpoint) -> tuple[str, ...]:
    """Return one row of the table of known checkpoints."""
    accuracy = checkpoint.accuracy
    imagenet = recall = ""
    if accuracy is not None:
        mark = "*" if accuracy.protocol == OPEN_CLIP else ""
        imagenet = f"{accuracy.imagenet}{mark}"
        if accuracy.xm3600_text_to_image is not None:
            recall = f"{accuracy.xm3600_text_to_image}{mark}"
    return (
        checkpoint.name,
        "any" if checkpoint.image_size is None else str(checkpoint.image_size),
        "English" if checkpoint.languages == "English" else "100+",
        f"{sum(checkpoint.sizes_mb['int8'].values()):,.0f}",
        imagenet,
        recall,
    )


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    click.echo(format_table(header, rows, left=len(header)))
