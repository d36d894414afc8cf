"""The SigLIP checkpoints that Google published: their shapes, sizes on disk and published accuracy.

Sources: the configs on the Hugging Face Hub and ``convert_siglip_to_hf.py`` of transformers 4.57; accuracy from Table
1 of the SigLIP 2 paper (arXiv 2502.14786), or from open_clip's result tables where the paper has none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..config import NAFLEX, SIGLIP, NaflexVisionConfig, SiglipConfig, TextConfig, VisionConfig
from ..system.json_files import read_json_object

ENGLISH, MULTILINGUAL, GEMMA = 32_000, 250_000, 256_000  # pieces of the three vocabularies
PAPER, OPEN_CLIP = "SigLIP 2 paper", "open_clip"
SIZES = Path(__file__).with_name("published_sizes.json")  # written by scripts/describe_checkpoints.py


class Width(NamedTuple):
    """Shape of one tower's encoder."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int


BASE = Width(768, 3072, 12, 12)
LARGE = Width(1024, 4096, 24, 16)
SO400M = Width(1152, 4304, 27, 16)
GIANT = Width(1536, 6144, 40, 16)


class Accuracy(NamedTuple):
    """Published accuracy in percent: zero-shot top-1 on ImageNet, recall@1 on XM3600 in 36 languages.

    Numbers of different protocols must not be compared: open_clip's XM3600 takes one caption per language.
    """

    imagenet: float
    xm3600_text_to_image: float | None = None
    xm3600_image_to_text: float | None = None
    protocol: str = PAPER


class PublishedCheckpoint(NamedTuple):
    """One published checkpoint; ``image_size`` is None for NaFlex, which takes images of any size.

    ``advice`` says when to take it, where there is a particular reason.
    """

    name: str
    width: Width
    image_size: int | None
    patch_size: int
    vocab_size: int
    text_length: int = 64
    accuracy: Accuracy | None = None
    advice: str = ""

    @property
    def languages(self) -> str:
        """``English``, or ``more than 100``."""
        return "English" if self.vocab_size == ENGLISH else "more than 100"

    @property
    def sizes_mb(self) -> dict[str, dict[str, float]]:
        """The megabytes of each tower's weights, per variant."""
        sizes: dict[str, dict[str, float]] = read_sizes()[self.name]
        return sizes

    @property
    def family(self) -> str:
        """Generation, in its authors' words."""
        if self.name.startswith("medsiglip"):
            return "MedSigLIP"
        if self.image_size is None:
            return "SigLIP 2 NaFlex"
        return "SigLIP 2" if self.vocab_size == GEMMA else "SigLIP"

    @property
    def config(self) -> SiglipConfig:
        """Its config; the published ``config.json`` relies on defaults."""
        text_width = SO400M if self.width == GIANT else self.width
        text = TextConfig(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.text_length,
            projection_size=self.width.hidden_size,
            **text_width._asdict(),
        )
        if self.image_size is None:
            naflex = NaflexVisionConfig(patch_size=self.patch_size, **self.width._asdict())
            return SiglipConfig(NAFLEX, naflex, text)
        vision = VisionConfig(image_size=self.image_size, patch_size=self.patch_size, **self.width._asdict())
        return SiglipConfig(SIGLIP, vision, text)


@cache
def read_sizes() -> dict[str, Any]:
    """Return the sizes of all checkpoints by name."""
    return read_json_object(SIZES)


def _siglip(name: str, width: Width, image_size: int, patch_size: int = 16, **options: Any) -> PublishedCheckpoint:
    return PublishedCheckpoint(f"siglip-{name}", width, image_size, patch_size, **{"vocab_size": ENGLISH} | options)


def _siglip2(
    name: str, width: Width, image_size: int | None, patch_size: int = 16, **options: Any
) -> PublishedCheckpoint:
    return PublishedCheckpoint(f"siglip2-{name}", width, image_size, patch_size, GEMMA, **options)


PUBLISHED = (
    _siglip("base-patch16-224", BASE, 224, accuracy=Accuracy(76.2, 22.4, 29.3),
            advice="the smallest; English only"),
    _siglip("base-patch16-256", BASE, 256, accuracy=Accuracy(76.7, 22.5, 29.9)),
    _siglip("base-patch16-384", BASE, 384, accuracy=Accuracy(78.6, 23.3, 30.3)),
    _siglip("base-patch16-512", BASE, 512, accuracy=Accuracy(79.2, 23.5, 30.5)),
    _siglip("base-patch16-256-multilingual", BASE, 256, vocab_size=MULTILINGUAL,
            accuracy=Accuracy(75.1, 44.1, 48.9, protocol=OPEN_CLIP),
            advice="Japanese and others on a small machine"),
    _siglip("large-patch16-256", LARGE, 256, accuracy=Accuracy(80.5, 30.9, 40.1)),
    _siglip("large-patch16-384", LARGE, 384, accuracy=Accuracy(82.1, 31.4, 39.7)),
    _siglip("so400m-patch14-224", SO400M, 224, 14, text_length=16, accuracy=Accuracy(82.2, 16.0, 22.8)),
    _siglip("so400m-patch14-384", SO400M, 384, 14, accuracy=Accuracy(83.2, 17.8, 26.6)),
    _siglip("so400m-patch16-256-i18n", SO400M, 256, vocab_size=MULTILINGUAL, accuracy=Accuracy(80.8, 50.0, 62.8),
            advice="the best retrieval in many languages"),
    _siglip2("base-patch32-256", BASE, 256, 32, accuracy=Accuracy(74.0, 38.3, 49.0),
             advice="the fastest: a quarter of the patches"),
    _siglip2("base-patch16-224", BASE, 224, accuracy=Accuracy(78.2, 40.3, 50.7)),
    _siglip2("base-patch16-256", BASE, 256, accuracy=Accuracy(79.1, 40.7, 51.0),
             advice="start here: many languages, on any CPU"),
    _siglip2("base-patch16-384", BASE, 384, accuracy=Accuracy(80.6, 41.2, 51.6)),
    _siglip2("base-patch16-512", BASE, 512, accuracy=Accuracy(81.2, 41.4, 52.0),
             advice="small objects, and text in images"),
    _siglip2("large-patch16-256", LARGE, 256, accuracy=Accuracy(82.5, 46.5, 56.5)),
    _siglip2("large-patch16-384", LARGE, 384, accuracy=Accuracy(83.1, 47.1, 56.3)),
    _siglip2("large-patch16-512", LARGE, 512, accuracy=Accuracy(83.5, 47.4, 56.7)),
    _siglip2("so400m-patch14-224", SO400M, 224, 14, accuracy=Accuracy(83.2, 47.9, 57.5)),
    _siglip2("so400m-patch14-384", SO400M, 384, 14, accuracy=Accuracy(84.1, 48.4, 57.5),
             advice="high accuracy, on a GPU or a fast CPU"),
    _siglip2("so400m-patch16-256", SO400M, 256, accuracy=Accuracy(83.4, 48.1, 57.5)),
    _siglip2("so400m-patch16-384", SO400M, 384, accuracy=Accuracy(84.1, 48.3, 57.5)),
    _siglip2("so400m-patch16-512", SO400M, 512, accuracy=Accuracy(84.3, 48.3, 57.6)),
    _siglip2("giant-opt-patch16-256", GIANT, 256, accuracy=Accuracy(84.5, 48.2, 58.2)),
    _siglip2("giant-opt-patch16-384", GIANT, 384, accuracy=Accuracy(85.0, 48.6, 57.9),
             advice="the highest accuracy, and the largest"),
    _siglip2("base-patch16-naflex", BASE, None, accuracy=Accuracy(78.5),
             advice="documents and panoramas: not squashed"),
    _siglip2("so400m-patch16-naflex", SO400M, None, accuracy=Accuracy(83.5)),
    PublishedCheckpoint("medsiglip-448", SO400M, 448, 14, ENGLISH, advice="medical images; accept its terms first"),
)  # fmt: skip
