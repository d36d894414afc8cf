"""``siglip-onnx models``: list, pull, check and remove the models in the cache, without loading any."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import click

from ..bundle.folder import folder_problems
from ..bundle.manifest import DEFAULT_ORDER, read_manifest
from ..errors import BundleError, DownloadError
from ..hub.cache import CachedModel, cached_models, find_cached, remove
from ..hub.names import parse_hub_name
from ..hub.published import PUBLISHED
from ..hub.pull import offline_message
from ..hub.pull import pull as pull_model
from ..system.cache_dir import models_folder
from .output import format_size, format_table, print_json, report


@click.group()
def models() -> None:
    """Manage the cache of downloaded models."""


@models.command("list")
@click.option("--known", is_flag=True, help="List the checkpoints published by Google, which can be pulled, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(known: bool, as_json: bool) -> None:
    """List the models in the cache."""
    if known:
        _list_known(as_json)
        return
    rows = [_describe(model) for model in cached_models()]
    if as_json:
        print_json({"folder": str(models_folder()), "models": rows})
    elif rows:
        cells = [[row["model"], row["revision"], ", ".join(row["variants"]), row["size"]] for row in rows]
        _print_table(("model", "revision", "variants", "size"), cells)
    else:
        report(f"There are no models in {models_folder()}. Show which can be pulled: siglip-onnx models list --known")


@models.command()
@click.argument("name")
@click.option("--variant", "variants", multiple=True, type=click.Choice(DEFAULT_ORDER),
              help="Variant to download or to export; repeat for more. Default: the first of these that "
                   "exists.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Do not use the network: only print what is in the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pull(name: str, variants: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Download a model into the cache.

    NAME is owner/name or owner/name@revision on the Hugging Face Hub, or the short name of a known checkpoint. A model
    exported by siglip-onnx is copied, and each file is verified. Of a checkpoint, the necessary files are downloaded
    and exported, which needs the extra [export].
    """
    hub_name = parse_hub_name(name)
    if offline:
        model = find_cached(hub_name.name, hub_name.revision)
        if model is None:
            raise DownloadError(offline_message(hub_name.name, hub_name.revision))
    else:
        model = pull_model(hub_name.name, hub_name.revision, list(variants), report)
    row = _describe(model)
    if as_json:
        print_json(row)
    else:
        click.echo(row["folder"])


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of models against their hashes.

    Reads every file of the models or folders named NAME, or of all models in the cache.
    """
    from ..hub.loading import find_model  # noqa: PLC0415 - loads onnxruntime, which the other commands do not need

    folders = {name: find_model(name) for name in names}
    if not names:
        folders = {f"{model.name}@{model.revision[:12]}": model.folder for model in cached_models()}
    problems: dict[str, list[str]] = {}
    for name, folder in folders.items():
        problems[name] = folder_problems(folder)
        if not as_json:
            click.echo(f"{name}: {'; '.join(problems[name]) or 'all files match the manifest'}")
    if as_json:
        print_json({"models": problems})
    damaged = [name for name, lines in problems.items() if lines]
    if damaged:
        raise BundleError(f"Damaged: {', '.join(damaged)}. Download again: siglip-onnx models pull NAME")


verify = copy.copy(check)  # the name of version 0.1
verify.hidden = True
models.add_command(verify, "verify")


@models.command()
@click.argument("name")
def rm(name: str) -> None:
    """Delete a model from the cache.

    NAME is owner/name for all revisions, or owner/name@revision.
    """
    hub_name = parse_hub_name(name)
    freed = remove(hub_name.name, hub_name.revision)
    report(f"{name}: {format_size(freed)} freed")


def _describe(model: CachedModel) -> dict[str, Any]:
    try:
        variants = list(read_manifest(model.folder).variants)
    except BundleError:
        variants = ["damaged"]
    return {
        "model": model.name,
        "revision": model.revision,
        "variants": variants,
        "size_bytes": model.size_bytes,
        "size": format_size(model.size_bytes),
        "kind": model.kind,
        "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.pulled)),
        "folder": str(model.folder),
    }


def _list_known(as_json: bool) -> None:
    rows = [
        {
            "model": checkpoint.name,
            "family": checkpoint.family,
            "picture": "any aspect" if checkpoint.image_size is None else f"{checkpoint.image_size} pixels",
        }
        for checkpoint in PUBLISHED
    ]
    if as_json:
        print_json({"known": rows})
    else:
        _print_table(("model", "family", "image"), [list(row.values()) for row in rows])


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    click.echo(format_table(header, rows, left=len(header)))
