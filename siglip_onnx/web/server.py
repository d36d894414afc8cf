"""Run the application: listening socket, graceful shutdown, and failure to load the models."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from ..errors import SiglipOnnxError
from .app import create_app
from .connection import BACKLOG, Connection
from .hosts import parse_networks
from .inference import Served
from .log_limit import LogLimit
from .settings import Settings
from .work import WORKERS

STOP_SECONDS = 9.0
DRAIN_SECONDS = 8  # of these, for running requests
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep connections (60 s), so that none sends on a connection that closes
_SWITCH_SECONDS = 0.001
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Loggers whose warnings quote texts, which must not be logged, or are as many as a client likes.
_ABOUT_REQUESTS = tuple(f"siglip_onnx.{name}" for name in ("text", "model", "image.decode", "image.orientation"))
_log = logging.getLogger(__name__)
_log_limit = LogLimit(_log)


class Server(uvicorn.Server):
    """uvicorn's server with the settings of this package; it ends within ten seconds of a signal."""

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[str] = ()) -> None:
        trusted = parse_networks(trusted_proxies, "--trusted-proxy")
        connection = cast("type[Connection]", partial(Connection, trusted=trusted))
        super().__init__(
            uvicorn.Config(
                app, loop="asyncio", http=connection, ws="none", proxy_headers=False, server_header=False,
                access_log=False, log_config=None, log_level=logging.ERROR, backlog=BACKLOG,
                timeout_graceful_shutdown=DRAIN_SECONDS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )  # fmt: skip
        self._deadline: threading.Timer | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, and wait for the worker threads."""
        try:
            super().run(sockets)
        finally:
            if self._deadline is not None:
                for thread in threading.enumerate():
                    if thread.name.startswith(WORKERS):
                        thread.join()
                self._deadline.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        asyncio.get_running_loop().set_exception_handler(_report_loop_error)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after running requests; end the process if a worker thread runs on, because Python would wait for it.

        A second Ctrl-C ends the process at once.
        """
        if self._deadline is not None:
            if sig == signal.SIGINT:
                _end_process(sig)
            return
        self._deadline = threading.Timer(STOP_SECONDS, self._end_late, [sig])
        self._deadline.daemon = True
        self._deadline.start()
        super().handle_exit(sig, frame)

    def _end_late(self, number: int) -> None:
        _log.warning("A request did not end within %.0f seconds; the server ends without it.", STOP_SECONDS)
        _end_process(number)


def _end_process(number: int) -> None:
    sys.stderr.flush()
    os._exit(0 if number == signal.SIGTERM else 128 + number)


def _report_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop; asyncio itself pauses for a second if a connection cannot be accepted."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        _log_limit.warning(f"Connections cannot be accepted: {error.strerror}. Raise the limit of open files.")
    else:
        loop.default_exception_handler(context)


def serve(models: Sequence[Served], settings: Settings, *, listening: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; the process ends within ten seconds, after running requests.

    Args:
        models: the models to serve.
        settings: settings of the server.
        listening: called with the page's URL as soon as it is reachable.

    Raises:
        SiglipOnnxError: the address cannot be listened on, or the models cannot be loaded or served side by side.
    """
    failures: list[SiglipOnnxError] = []

    def fail(error: SiglipOnnxError) -> None:
        failures.append(error)
        server.should_exit = True

    server = Server(create_app(models, settings, on_failure=fail), settings.trusted_proxies)
    bound = bind(settings.host, settings.port)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # quotes bodies
    # By default Python switches threads every 5 ms, which would delay the event loop behind computing threads.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Until uvicorn installs the same handler, when its loop runs. It raises the signal again after the drain, which
    # then does nothing: a requested stop is not a failure.
    signal.signal(signal.SIGTERM, server.handle_exit)
    with bound, _warnings_off(_ABOUT_REQUESTS):
        listening(page_address(bound))
        server.run(sockets=[bound])
    if failures:
        raise failures[0]


@contextmanager
def _warnings_off(names: Sequence[str]) -> Iterator[None]:
    """Let loggers report errors only within the block."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
            bound.listen(BACKLOG)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: not the name of a host
        problem = getattr(error, "strerror", None) or error
        raise SiglipOnnxError(
            f"{host} port {port} cannot be listened on: {problem}. Choose another: --host, --port."
        ) from error
    return bound


def page_address(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound to
        host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
