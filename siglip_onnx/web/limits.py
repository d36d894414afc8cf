"""What one request and the whole server may take."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..options import SERVER_LIMITS, ImageLimits


@dataclass(frozen=True)
class Limits:
    """Every bound of the server; a request beyond one is refused, never cut."""

    body_bytes: int = 25_000_000
    picture: ImageLimits = SERVER_LIMITS
    pictures: int = 32
    texts: int = 256
    text_characters: int = 4096
    templates: int = 16
    requests: int = 64  # being read, waiting or worked on
    pending_bytes: int = 256_000_000  # of all bodies at once
    body_seconds: float = 30.0  # for a body to arrive
    cached_pictures: int = 1024  # embeddings, not pixels

    def for_clients(self) -> dict[str, int]:
        """Return what clients should keep to."""
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        return numbers | {"picture_bytes": self.picture.max_bytes, "picture_pixels": self.picture.max_pixels}
