"""Field names of the HTTP API: ``image``, and ``picture`` as in version 0.1; an answer uses the request's spelling."""

from __future__ import annotations

from enum import StrEnum


class Spelling(StrEnum):
    """The word for an image in the field names and error codes of a request and its answer."""

    IMAGE = "image"
    PICTURE = "picture"  # of version 0.1, deprecated

    @property
    def images(self) -> str:
        """The field that lists images."""
        return f"{self}s"

    @property
    def image_ids(self) -> str:
        """The form field that lists ids of images."""
        return f"{self}_ids"

    @property
    def unknown_image(self) -> str:
        """The code of the error that an id is not in the cache."""
        return f"unknown_{self}"
