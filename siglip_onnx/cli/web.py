"""``siglip-onnx web``: a page to try models, and its HTTP API."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import demo
from ..classifier import Classifier, FineTunedClassifier
from ..errors import OptionError
from ..hub.download import OFFLINE_VARIABLE
from ..hub.loading import load
from ..model import SigLIP
from ..options import MOST_PIXELS, SERVER_LIMITS, RuntimeOptions
from ..system.extras import extra
from ..system.threads import available_workers
from ..web.settings import Limits, Settings, is_loopback
from .completion import ModelName
from .help import Command
from .options import FiniteRange, calibration_option, fast_decode_option, provider_option, threads_option
from .output import report, report_demo_model

MAX_MODELS = 4
_KEY_VARIABLE = "SIGLIP_ONNX_API_KEY"


@click.command(
    cls=Command,
    examples=("siglip-onnx web", "siglip-onnx web --model siglip2-base-patch16-224 --variant int8 --variant fp32"),
)
@click.option(
    "--model",
    "names",
    multiple=True,
    envvar="SIGLIP_ONNX_MODEL",
    type=ModelName(),
    metavar="MODEL",
    help="Model to serve, or the file of a compiled classifier; repeat to compare. Default: "
    "SIGLIP_ONNX_MODEL, or else the demo model.",
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
    help="Host name or address by which browsers may reach this server or the proxy before it, besides localhost; "
    "*.NAME for its subdomains. Any port. Repeat for more.",
)
@click.option("--trusted-proxy", "trusted_proxies", multiple=True, metavar="ADDRESS",
              help="Address or network of a proxy whose header X-Forwarded-Host replaces Host, and which may open any "
                   "number of connections; repeat for more.")  # fmt: skip
@click.option("--root-path", default="", metavar="PATH",
              help="Path under which a proxy serves the page, such as /siglip.")  # fmt: skip
@click.option("--allow-origin", "allowed_origins", multiple=True, metavar="ORIGIN",
              help="Let pages of another site, such as https://app.example, use the API (CORS); * for all sites. "
                   "Repeat for more.")  # fmt: skip
@click.option("--allow-frame", "frame_origins", multiple=True, metavar="ORIGIN",
              help="Let pages of another site show this page in a frame; * for all sites. "
                   "Repeat for more.")  # fmt: skip
@click.option(
    "--allow-url-fetch",
    is_flag=True,
    help="Allow requests with URLs of images although --host can be reached from other machines.",
)
@click.option("--url-allow-domain", "url_domains", multiple=True, metavar="DOMAIN",
              help="Fetch only URLs of this domain and its subdomains; repeat for more.")  # fmt: skip
@click.option("--url-allow-network", "url_networks", multiple=True, metavar="NETWORK",
              help="Fetch URLs of this private network or address too, such as 192.168.1.0/24 for cameras at home, and "
                   "there of any port; repeat for more.")  # fmt: skip
@click.option("--url-contact", envvar="SIGLIP_ONNX_URL_CONTACT", show_envvar=True, metavar="CONTACT",
              help="E-mail address or URL by which sites can reach you, for the User-Agent; some sites refuse requests "
                   "without one.")  # fmt: skip
@click.option("--no-url-fetch", is_flag=True, help="Never fetch URLs.")
@click.option(
    "--api-key",
    envvar=_KEY_VARIABLE,
    show_envvar=True,
    help="Require this key in requests. Other users can see the options of a command, so prefer the variable.",
)
@calibration_option
@threads_option
@provider_option
@fast_decode_option
@click.option("--max-megapixels", type=FiniteRange(1, MOST_PIXELS / 1e6),
              help="Refuse larger images, before decoding them. Larger values also allow larger files. Default: "
                   f"{SERVER_LIMITS.max_pixels / 1e6:g}.")  # fmt: skip
@click.option(
    "--max-requests",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Number of requests in the server at the same time; further ones get 429 with Retry-After.",
)
@click.option("--no-isolate-decoding", is_flag=True,
              help="Decode images in the server itself: not in processes of their own, under limits.")  # fmt: skip
def web(
    names: tuple[str, ...],
    variants: tuple[str, ...],
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    trusted_proxies: tuple[str, ...],
    root_path: str,
    allowed_origins: tuple[str, ...],
    frame_origins: tuple[str, ...],
    allow_url_fetch: bool,
    url_domains: tuple[str, ...],
    url_networks: tuple[str, ...],
    url_contact: str | None,
    no_url_fetch: bool,
    api_key: str | None,
    calibration: Path | None,
    threads: int | None,
    providers: tuple[str, ...],
    fast_decode: bool,
    max_megapixels: float | None,
    max_requests: int,
    no_isolate_decoding: bool,
) -> None:
    """Serve a page to try a model, and its HTTP API.

    The page is at http://127.0.0.1:5678/ until Ctrl-C. Images stay in memory; nothing is written to disk. Needs the
    extra [web].
    """
    if allow_url_fetch and no_url_fetch:
        raise click.UsageError("--allow-url-fetch and --no-url-fetch contradict each other.")
    if api_key == "" or (api_key is None and os.environ.get(_KEY_VARIABLE) == ""):  # click ignores an empty variable
        raise click.UsageError("The API key is empty; give a key, or remove the option and the variable.")
    if api_key is not None and api_key != api_key.strip():
        raise click.UsageError("The API key begins or ends with a space, which HTTP headers cannot hold; remove it.")
    with extra("web", "web"):
        from ..web.server import serve  # noqa: PLC0415 - an optional extra
    limits = Limits(requests=max_requests)
    if fast_decode or max_megapixels is not None:
        max_pixels = limits.image.max_pixels if max_megapixels is None else round(max_megapixels * 1e6)
        limits = limits.for_photos(max_pixels, fast_decode=fast_decode)
    try:
        settings = Settings(
            host=host,
            port=port,
            allowed_hosts=allowed_hosts,
            trusted_proxies=trusted_proxies,
            root_path=root_path,
            allowed_origins=allowed_origins,
            frame_origins=frame_origins,
            api_key=api_key,
            url_fetch=not no_url_fetch and (allow_url_fetch or is_loopback(host)),
            url_domains=url_domains,
            url_networks=url_networks,
            url_contact=url_contact,
            workers=threads or available_workers(),
            isolate_decoding=not no_isolate_decoding,
            limits=limits,
        )
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    source = click.get_current_context().get_parameter_source("url_contact")
    has_contact = source is ParameterSource.COMMANDLINE  # the variable may be meant for other servers
    if allow_url_fetch and not settings.fetches_urls:
        report(f"--allow-url-fetch has no effect, because of {OFFLINE_VARIABLE}: no URL is fetched.")
    elif (url_domains or url_networks or has_contact) and not settings.url_fetch:
        report(
            "--url-allow-domain, --url-allow-network and --url-contact have no effect without --allow-url-fetch: no "
            "URL is fetched."
        )
    if not is_loopback(host) and api_key is None:
        report("Anyone who can reach this address can use the server; require a key with --api-key.")
    models = open_models(
        names, variants, providers, threads,
        fast_decode=fast_decode, image_limits=limits.image, calibration=calibration,
    )  # fmt: skip
    serve(models, settings, listening=lambda url: report(f"The page is at {url} (Ctrl-C stops it)"))


def open_models(
    names: Sequence[str],
    variants: Sequence[str],
    providers: Sequence[str],
    threads: int | None = None,
    **options: Any,
) -> list[SigLIP | Classifier]:
    """Open every variant of every model, and compiled classifiers; the demo model if none is named, which is reported.

    ``options`` are further ones of :func:`siglip_onnx.load`.
    """
    files = [name for name in names if Path(name).is_file()]
    if files and (variants or options.get("calibration") or options.get("fast_decode")):
        raise click.UsageError(
            f"{files[0]} is a compiled classifier, made of one variant; leave out --variant, --calibration and "
            "--fast-decode."
        )
    pairs = list(itertools.product(names or (demo.NAME,), variants or (None,)))
    if len(pairs) > MAX_MODELS:
        raise click.UsageError(f"{len(pairs)} models and variants to compare; the page compares at most {MAX_MODELS}.")
    compiled = RuntimeOptions(providers=providers or None, threads=threads)
    models = [
        Classifier(Path(name), compiled)
        if name in files
        else load(name, variant=variant, providers=providers or None, threads=threads, **options)
        for name, variant in pairs
    ]
    labeled = [model.bundle.path for model in models if isinstance(model, FineTunedClassifier)]
    if labeled and options.get("calibration"):
        raise click.UsageError(f"{labeled[0]} is a classifier, which has biases of its own; leave out --calibration.")
    if not names:
        report_demo_model()
    return models
