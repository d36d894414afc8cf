"""``siglip-onnx models``: the models in the cache: list, pull, verify, rm."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ..errors import BundleError, SiglipOnnxError
from .options import human_size, to_json

if TYPE_CHECKING:
    from ..hub.cache import CachedModel

VARIANTS = ("int8", "fp32", "fp16", "q4")


@click.group()
def models() -> None:
    """Keep models of the Hugging Face Hub in the cache."""


@models.command("list")
@click.option("--known", is_flag=True, help="List Google's published checkpoints instead, which can be pulled.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(known: bool, as_json: bool) -> None:
    """List the models in the cache."""
    from ..hub.cache import cached_models  # noqa: PLC0415
    from ..system.cache_dir import models_folder  # noqa: PLC0415 - keeps --help fast

    if known:
        _list_known(as_json)
        return
    rows = [_describe(model) for model in cached_models()]
    if as_json:
        click.echo(to_json({"folder": str(models_folder()), "models": rows}, indent=2))
    elif rows:
        _print_table(("model", "revision", "variants", "size"), rows)
    else:
        click.echo(f"No models in {models_folder()}. See what can be pulled: siglip-onnx models list --known", err=True)


@models.command()
@click.argument("name")
@click.option("--variant", "variants", multiple=True, type=click.Choice(VARIANTS),
              help="Variant to fetch or export; the best one if not given. Repeat for more.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Open no socket: only say what is in the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pull(name: str, variants: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Fetch NAME into the cache: owner/name or owner/name@revision on the Hub, or a known checkpoint's short name.

    A model that siglip-onnx exported is copied, file by file verified; a checkpoint's needed files are fetched and
    exported (needs the extra: pip install "siglip-onnx[export]").
    """  # fmt: skip
    from ..errors import DownloadError  # noqa: PLC0415 - keeps --help fast
    from ..hub.cache import find_cached  # noqa: PLC0415
    from ..hub.names import parse_hub_name  # noqa: PLC0415
    from ..hub.pull import offline_message  # noqa: PLC0415
    from ..hub.pull import pull as pull_model  # noqa: PLC0415

    hub_name = parse_hub_name(name)
    if offline:
        found = find_cached(hub_name.name, hub_name.revision)
        if found is None:
            raise DownloadError(offline_message(hub_name.name, hub_name.revision))
    else:
        found = pull_model(
            hub_name.name, hub_name.revision, list(variants), lambda line: click.echo(line, err=True)
        )  # fmt: skip
    row = _describe(found)
    click.echo(to_json(row, indent=2) if as_json else row["folder"])


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Read every file of the NAMEd models, or folders, or of all in the cache, and compare it with its hash."""
    from ..bundle.folder import verify_folder  # noqa: PLC0415 - keeps --help fast
    from ..hub.cache import cached_models  # noqa: PLC0415
    from ..hub.loading import find_model  # noqa: PLC0415

    folders = {name: find_model(name) for name in names}
    if not names:
        folders = {f"{model.name}@{model.revision[:12]}": model.folder for model in cached_models()}
    problems: dict[str, list[str]] = {}
    for name, folder in folders.items():
        try:
            problems[name] = verify_folder(folder)
        except SiglipOnnxError as error:
            problems[name] = [str(error)]
        if not as_json:
            click.echo(f"{name}: {'; '.join(problems[name]) or 'all files are as the manifest says'}")
    if as_json:
        click.echo(to_json({"models": problems}, indent=2))
    broken = [name for name, found in problems.items() if found]
    if broken:
        raise BundleError(f"{', '.join(broken)}: damaged. Fetch it again: siglip-onnx models pull NAME")


@models.command()
@click.argument("name")
def rm(name: str) -> None:
    """Delete NAME from the cache, or one revision of it: owner/name@revision."""
    from ..hub.cache import remove  # noqa: PLC0415
    from ..hub.names import parse_hub_name  # noqa: PLC0415 - keeps --help fast

    hub_name = parse_hub_name(name)
    freed = remove(hub_name.name, hub_name.revision)
    click.echo(f"{name}: {human_size(freed)} freed", err=True)


def _describe(model: CachedModel) -> dict[str, Any]:
    from ..bundle.manifest import read_manifest  # noqa: PLC0415 - keeps --help fast

    try:
        variants = list(read_manifest(model.folder).variants)
    except BundleError:
        variants = ["damaged"]
    return {
        "model": model.name,
        "revision": model.revision,
        "variants": variants,
        "size_bytes": model.size_bytes,
        "size": human_size(model.size_bytes),
        "kind": model.kind,
        "pulled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.pulled)),
        "folder": str(model.folder),
    }


def _list_known(as_json: bool) -> None:
    from ..hub.published import PUBLISHED  # noqa: PLC0415 - keeps --help fast

    rows = [
        {
            "model": checkpoint.name,
            "family": checkpoint.family,
            "picture": "any aspect" if checkpoint.image_size is None else f"{checkpoint.image_size} pixels",
        }
        for checkpoint in PUBLISHED
    ]
    if as_json:
        click.echo(to_json({"known": rows}, indent=2))
    else:
        _print_table(("model", "family", "picture"), rows)


def _print_table(header: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from .table import format_table  # noqa: PLC0415 - keeps --help fast

    cells = [[_cell(row[column]) for column in header] for row in rows]
    click.echo(format_table(header, cells, left=len(header)))


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
