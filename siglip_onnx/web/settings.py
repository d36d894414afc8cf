"""Settings of a server, as the command line sets them, and the limits of its requests."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field

from ..options import SERVER_LIMITS, ImageLimits


@dataclass(frozen=True)
class Limits:
    """Every limit of the server; a request beyond one is refused, never truncated."""

    body_bytes: int = 25_000_000
    image: ImageLimits = SERVER_LIMITS
    images: int = 32
    texts: int = 256
    text_characters: int = 4096
    templates: int = 16
    requests: int = 64  # admitted: being received, queued or processed
    pending_bytes: int = 256_000_000  # of all admitted bodies
    body_seconds: float = 30.0  # to receive a body
    cached_images: int = 1024  # embeddings, not pixels

    @property
    def json_marks(self) -> int:
        """Commas and opening brackets in a JSON body: those of its values, and those in its texts."""
        return (self.texts + self.templates) * self.text_characters + 100_000

    @property
    def form_fields(self) -> int:
        """Text fields of a form: texts, templates, ids, URLs and models."""
        return self.images + self.texts + self.templates + 64

    def for_clients(self) -> dict[str, int]:
        """Return the limits that a client must observe; those of images also under their names of version 0.1."""
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        numbers |= {"image_bytes": self.image.max_bytes, "image_pixels": self.image.max_pixels}
        return numbers | {name.replace("image", "picture"): value for name, value in numbers.items()}


@dataclass(frozen=True)
class Settings:
    """Everything that stays fixed while a server runs.

    ``host`` is the address to listen on. ``allowed_hosts`` are further names accepted in the Host header.
    ``url_fetch`` lets the server fetch images whose URLs a request names, only from ``url_domains`` if any are given.
    """

    host: str = "127.0.0.1"
    port: int = 5678
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = None
    url_fetch: bool = True
    url_domains: tuple[str, ...] = ()
    workers: int = 1
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on ``host`` can be reached only from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
