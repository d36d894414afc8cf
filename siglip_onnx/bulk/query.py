"""Combine weighted texts and images into one query vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import SiglipOnnxError
from ..head import Floats, l2_normalize
from ..image.decode import ImageSource
from ..model import SigLIP


class Term(NamedTuple):
    """A text or an image with its weight; a negative weight searches for its opposite."""

    weight: float
    text: str | None = None
    image: ImageSource | None = None


def encode_query(model: SigLIP, terms: Sequence[Term], *, template: str | Sequence[str] = "{}") -> Floats:
    """Return the unit vector f32 ``(D,)`` of the weighted sum of the terms' embeddings.

    Raises:
        SiglipOnnxError: there are no terms, or they cancel out.
        ImageError: an image cannot be read.
        TextError: a text cannot be tokenized.
    """
    texts = [term.text for term in terms if term.text is not None]
    text_embeddings = iter(model.encode_labels(texts, template=template))
    image_embeddings = iter(model.encode_images([term.image for term in terms if term.image is not None]))
    total = np.zeros(model.embedding_dim, np.float32)
    for term in terms:
        total += np.float32(term.weight) * next(image_embeddings if term.text is None else text_embeddings)
    if not np.isfinite(total).all() or np.linalg.norm(total) < 1e-6:
        raise SiglipOnnxError("The query is zero: it has no terms, or they cancel out; change its terms or weights.")
    if len(terms) == 1 and terms[0].weight > 0:
        total /= np.float32(terms[0].weight)
        return total
    unit: Floats = l2_normalize(total[np.newaxis])[0]
    return unit
