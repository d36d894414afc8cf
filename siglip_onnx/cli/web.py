"""``siglip-onnx web``: the page and its HTTP API."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import click

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from ..model import SigLIP
    from ..web.settings import Settings

MAX_MODELS = 4


@click.command()
@click.option(
    "--model",
    "names",
    multiple=True,
    envvar="SIGLIP_ONNX_MODEL",
    type=click.Path(),
    metavar="NAME",
    help="Model to serve, the demo model if none; repeat to compare.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="int8, fp32, ...; int8 where present; repeat to compare.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=5678, show_default=True, help="0 takes a free one.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name that browsers may call this server by, besides localhost; repeat for more.",
)
@click.option(
    "--allow-url-fetch",
    is_flag=True,
    help="Let requests name URLs of pictures even if --host is not this machine alone.",
)
@click.option(
    "--url-allow-domain",
    "url_domains",
    multiple=True,
    metavar="DOMAIN",
    help="Fetch URLs of this domain and its subdomains only; repeat for more.",
)
@click.option("--no-url-fetch", is_flag=True, help="Fetch no URLs at all.")
@click.option(
    "--api-key",
    envvar="SIGLIP_ONNX_API_KEY",
    show_envvar=True,
    help="Answer only requests that carry this key; others see a command's options, so prefer the variable.",
)
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads; all this process may use.")
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="onnxruntime execution provider.")
@click.option(
    "--max-requests",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Requests in the server at once; more are told to come back.",
)
def web(
    names: tuple[str, ...],
    variants: tuple[str, ...],
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    allow_url_fetch: bool,
    url_domains: tuple[str, ...],
    no_url_fetch: bool,
    api_key: str | None,
    threads: int | None,
    providers: tuple[str, ...],
    max_requests: int,
) -> None:
    """Serve a page to try texts on pictures, and the HTTP API behind it.

    The page is at http://127.0.0.1:5678/ until Ctrl-C. Pictures stay in memory; nothing is written to disk.
    """  # fmt: skip
    if allow_url_fetch and no_url_fetch:
        raise click.UsageError("--allow-url-fetch and --no-url-fetch contradict each other.")
    if api_key == "":
        raise click.UsageError("The API key is empty; give one, or leave the option and the variable out.")
    try:
        from ..web.limits import Limits  # noqa: PLC0415 - an optional extra
        from ..web.server import serve  # noqa: PLC0415
        from ..web.settings import Settings, is_loopback  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f'web needs a package that is not installed ({error.name}). Run: pip install "siglip-onnx[web]"'
        ) from error
    from ..system.threads import available_threads  # noqa: PLC0415 - keeps --help fast

    settings = Settings(
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        api_key=api_key,
        url_fetch=not no_url_fetch and (allow_url_fetch or is_loopback(host)),
        url_domains=url_domains,
        workers=threads or available_threads(),
        limits=Limits(requests=max_requests),
    )
    _warn(settings, is_local=is_loopback(host))
    models = open_models(names, variants, providers, threads)
    serve(models, settings, listening=lambda url: click.echo(f"The page is at {url} (Ctrl-C stops it)", err=True))


def open_models(
    names: tuple[str, ...], variants: tuple[str, ...], providers: tuple[str, ...], threads: int | None = None
) -> list[SigLIP]:
    """Open every variant of every model; the demo model says what it knows."""
    from ..demo import NAME as DEMO  # noqa: PLC0415 - keeps --help fast
    from ..hub.loading import load  # noqa: PLC0415 - keeps --help fast

    chosen = list(itertools.product(names or (DEMO,), variants or (None,)))
    if len(chosen) > MAX_MODELS:
        raise click.UsageError(f"{len(chosen)} models and variants to compare; at most {MAX_MODELS} fit on the page.")
    models = [load(name, variant=variant, providers=providers or None, threads=threads) for name, variant in chosen]
    if not names:
        click.echo(f"Using the demo model, which knows only {models[0].bundle.manifest.knows}.", err=True)
    return models


def _warn(settings: Settings, *, is_local: bool) -> None:
    if not is_local and settings.api_key is None:
        click.echo("Everybody who can reach this address can use the server; --api-key asks for a key.", err=True)
