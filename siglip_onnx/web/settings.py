"""Settings of a server, as the command line sets them, and the limits of its requests."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field, replace

from ..hub.download import is_offline
from ..options import REDUCED_SCALE, SERVER_LIMITS, ImageLimits
from .hosts import HostNames, parse_contact, parse_networks, parse_origin, parse_root_path


@dataclass(frozen=True)
class Limits:
    """Every limit of the server; a request beyond one is refused, never truncated."""

    body_bytes: int = 25_000_000
    image: ImageLimits = SERVER_LIMITS
    images: int = 32
    texts: int = 256
    text_characters: int = 4096
    templates: int = 16
    prompts: int = 512  # texts in templates, each of which is a run of the text tower
    prompt_characters: int = 1 << 20  # of all prompts together
    requests: int = 64  # admitted: being received, queued or processed
    pending_bytes: int = 256_000_000  # of all admitted bodies
    body_seconds: float = 30.0  # to receive a body
    decode_seconds: float = 60.0  # of all images of a request; none begins after them
    cached_images: int = 1024  # embeddings, not pixels

    def for_photos(self, max_pixels: int, *, fast_decode: bool) -> Limits:
        """Return the limits for images of up to so many decoded pixels, and for files of the size that these have."""
        file_pixels = max_pixels * (REDUCED_SCALE if fast_decode else 1)
        added_bytes = max(0, file_pixels - self.image.max_pixels) // 3  # a detailed JPEG has about 3 bits per pixel
        image = replace(
            self.image,
            max_pixels=max_pixels,
            max_side=max(self.image.max_side, ImageLimits().max_side),
            max_bytes=self.image.max_bytes + added_bytes,
        )
        body_bytes = self.body_bytes + added_bytes
        return replace(self, image=image, body_bytes=body_bytes, pending_bytes=max(self.pending_bytes, 2 * body_bytes))

    @property
    def json_marks(self) -> int:
        """Commas and opening brackets in a JSON body: those of its values, and those in its texts."""
        return (self.texts + self.templates) * self.text_characters + 100_000

    @property
    def json_keys(self) -> int:
        """Colons in a JSON body: those after its keys, and those in its texts."""
        return self.json_marks // 5

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

    ``host`` is the address to listen on. ``allowed_hosts`` are further names accepted in the Host and Origin headers.
    ``trusted_proxies`` are addresses and networks whose header X-Forwarded-Host replaces Host. ``root_path`` is the
    path under which a proxy serves the page. Pages of ``allowed_origins`` may use the API, and those of
    ``frame_origins`` show the page in a frame; ``*`` stands for all.
    ``url_fetch`` lets the server fetch images whose URLs a request names, only from ``url_domains`` if any are given;
    their addresses must be public or belong to ``url_networks``. Sites can reach who runs it at ``url_contact``.
    ``isolate_decoding`` decodes images in processes of their own, one per worker, under limits of memory and time.
    """

    host: str = "127.0.0.1"
    port: int = 5678
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    root_path: str = ""
    allowed_origins: tuple[str, ...] = ()
    frame_origins: tuple[str, ...] = ()
    api_key: str | None = None
    url_fetch: bool = True
    url_domains: tuple[str, ...] = ()
    url_networks: tuple[str, ...] = ()
    url_contact: str | None = None
    workers: int = 1
    isolate_decoding: bool = True
    limits: Limits = field(default_factory=Limits)

    @property
    def fetches_urls(self) -> bool:
        """Whether the server fetches URLs: ``url_fetch``, unless the environment forbids the network."""
        return self.url_fetch and not is_offline()

    def __post_init__(self) -> None:
        """Check the names, origins, networks and the path.

        Raises:
            OptionError: one is malformed, or would never match a request.
        """
        HostNames(self.allowed_hosts)
        HostNames(self.url_domains, flag="--url-allow-domain")
        parse_networks(self.trusted_proxies, "--trusted-proxy")
        parse_networks(self.url_networks, "--url-allow-network")
        for flag, origins in (("--allow-origin", self.allowed_origins), ("--allow-frame", self.frame_origins)):
            for origin in origins:
                parse_origin(origin, flag)
        parse_root_path(self.root_path)
        if self.url_contact:
            parse_contact(self.url_contact, "--url-contact")


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on ``host`` can be reached only from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
