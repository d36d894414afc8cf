"""Run the application: listening socket, graceful shutdown, and failure to load the models."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import uvicorn

from ..errors import SiglipOnnxError
from ..model import SigLIP
from .app import create_app
from .settings import Settings

DRAIN_SECONDS = 10
_BACKLOG = 2048
_SWITCH_SECONDS = 0.001


def serve(models: Sequence[SigLIP], settings: Settings, *, listening: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; running requests are finished, for at most ten seconds.

    Args:
        models: the models to serve.
        settings: settings of the server.
        listening: called with the page's URL as soon as it is reachable.

    Raises:
        SiglipOnnxError: the address cannot be listened on, or the models cannot be loaded.
    """
    failures: list[SiglipOnnxError] = []

    def fail(error: SiglipOnnxError) -> None:
        failures.append(error)
        server.should_exit = True

    # The tokenizer's warnings quote texts, which must not be logged.
    logging.getLogger("siglip_onnx.text").setLevel(logging.ERROR)
    bound = bind(settings.host, settings.port)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(models, settings, on_failure=fail),
            loop="asyncio", http="h11", ws="none", proxy_headers=False, server_header=False, access_log=False,
            log_config=None, log_level=logging.WARNING, timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )  # fmt: skip
    # By default Python switches threads every 5 ms, which would delay the event loop behind computing threads.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # uvicorn raises the signal again after the drain; a requested stop is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with bound:
        listening(page_address(bound))
        server.run(sockets=[bound])
    if failures:
        raise failures[0]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        SiglipOnnxError: the address does not belong to this machine, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # asyncio turns off Nagle's algorithm (delays of 40 ms) only if the protocol is given.
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise SiglipOnnxError(
            f"{host} port {port} cannot be listened on: {error.strerror or error}. Choose another: --host, --port."
        ) from error
    return bound


def page_address(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound to
        host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
