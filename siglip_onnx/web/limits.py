"""Limits of one request and of the whole server."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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

    def for_clients(self) -> dict[str, int]:
        """Return the limits that a client must observe; those of images also under their names of version 0.1."""
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        numbers |= {"image_bytes": self.image.max_bytes, "image_pixels": self.image.max_pixels}
        return numbers | {name.replace("image", "picture"): value for name, value in numbers.items()}
