"""``siglip-onnx web``: a page to try models, and its HTTP API."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import click

from .. import demo
from ..hub.loading import load
from ..model import SigLIP
from ..system.extras import extra
from ..system.threads import available_threads
from ..web.settings import Limits, Settings, is_loopback
from .options import provider_option, threads_option
from .output import report, report_demo_model

MAX_MODELS = 4


@click.command()
@click.option(
    "--model",
    "names",
    multiple=True,
    envvar="SIGLIP_ONNX_MODEL",
    type=click.Path(),
    metavar="NAME",
    help="Model to serve; repeat to compare. Default: SIGLIP_ONNX_MODEL, or else the demo model.",
)
@click.option("--variant", "variants", multiple=True, metavar="NAME",
              help="Variant: int8, fp32, ...; repeat to compare. Default: int8 if present.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=5678, show_default=True,
              help="Port to listen on; 0 for any free port.")  # fmt: skip
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Host name by which browsers may reach this server, besides localhost; repeat for more.",
)
@click.option(
    "--allow-url-fetch",
    is_flag=True,
    help="Allow requests with URLs of images although --host can be reached from other machines.",
)
@click.option("--url-allow-domain", "url_domains", multiple=True, metavar="DOMAIN",
              help="Fetch only URLs of this domain and its subdomains; repeat for more.")  # fmt: skip
@click.option("--no-url-fetch", is_flag=True, help="Never fetch URLs.")
@click.option(
    "--api-key",
    envvar="SIGLIP_ONNX_API_KEY",
    show_envvar=True,
    help="Require this key in requests. Other users can see the options of a command, so prefer the variable.",
)
@threads_option
@provider_option
@click.option(
    "--max-requests",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Number of requests in the server at the same time; further ones get 429 with Retry-After.",
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
    """Serve a page to try a model, and its HTTP API.

    The page is at http://127.0.0.1:5678/ until Ctrl-C. Images stay in memory; nothing is written to disk. Needs the
    extra [web].
    """
    if allow_url_fetch and no_url_fetch:
        raise click.UsageError("--allow-url-fetch and --no-url-fetch contradict each other.")
    if api_key == "":
        raise click.UsageError("The API key is empty; give a key, or remove the option and the variable.")
    if api_key is not None and api_key != api_key.strip():
        raise click.UsageError("The API key begins or ends with a space, which HTTP headers cannot hold; remove it.")
    with extra("web", "web"):
        from ..web.server import serve  # noqa: PLC0415 - an optional extra
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
    if not is_loopback(host) and api_key is None:
        report("Anyone who can reach this address can use the server; require a key with --api-key.")
    models = open_models(names, variants, providers, threads)
    serve(models, settings, listening=lambda url: report(f"The page is at {url} (Ctrl-C stops it)"))


def open_models(
    names: Sequence[str], variants: Sequence[str], providers: Sequence[str], threads: int | None = None
) -> list[SigLIP]:
    """Open every variant of every model; the demo model if none is named, which is reported."""
    pairs = list(itertools.product(names or (demo.NAME,), variants or (None,)))
    if len(pairs) > MAX_MODELS:
        raise click.UsageError(f"{len(pairs)} models and variants to compare; the page compares at most {MAX_MODELS}.")
    models = [load(name, variant=variant, providers=providers or None, threads=threads) for name, variant in pairs]
    if not names:
        report_demo_model()
    return models
