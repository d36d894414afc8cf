"""The SigLIP checkpoints that Google published, with their shapes.

Source: the configs on the Hugging Face Hub and ``convert_siglip_to_hf.py`` of transformers 4.57.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import NAFLEX, SIGLIP, NaflexVisionConfig, SiglipConfig, TextConfig, VisionConfig

ENGLISH, MULTILINGUAL, GEMMA = 32_000, 250_000, 256_000  # pieces of the three vocabularies


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


class PublishedCheckpoint(NamedTuple):
    """One published checkpoint; ``image_size`` is None for NaFlex, which takes images of any size."""

    name: str
    width: Width
    image_size: int | None
    patch_size: int
    vocab_size: int
    text_length: int = 64

    @property
    def family(self) -> str:
        """Generation, in its authors' words."""
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


def _siglip(name: str, width: Width, image_size: int, patch_size: int = 16, **options: int) -> PublishedCheckpoint:
    return PublishedCheckpoint(f"siglip-{name}", width, image_size, patch_size, **{"vocab_size": ENGLISH} | options)


def _siglip2(name: str, width: Width, image_size: int | None, patch_size: int = 16) -> PublishedCheckpoint:
    return PublishedCheckpoint(f"siglip2-{name}", width, image_size, patch_size, GEMMA)


PUBLISHED = (
    _siglip("base-patch16-224", BASE, 224),
    _siglip("base-patch16-256", BASE, 256),
    _siglip("base-patch16-384", BASE, 384),
    _siglip("base-patch16-512", BASE, 512),
    _siglip("base-patch16-256-multilingual", BASE, 256, vocab_size=MULTILINGUAL),
    _siglip("large-patch16-256", LARGE, 256),
    _siglip("large-patch16-384", LARGE, 384),
    _siglip("so400m-patch14-224", SO400M, 224, 14, text_length=16),
    _siglip("so400m-patch14-384", SO400M, 384, 14),
    _siglip("so400m-patch16-256-i18n", SO400M, 256, vocab_size=MULTILINGUAL),
    _siglip2("base-patch32-256", BASE, 256, 32),
    _siglip2("base-patch16-224", BASE, 224),
    _siglip2("base-patch16-256", BASE, 256),
    _siglip2("base-patch16-384", BASE, 384),
    _siglip2("base-patch16-512", BASE, 512),
    _siglip2("large-patch16-256", LARGE, 256),
    _siglip2("large-patch16-384", LARGE, 384),
    _siglip2("large-patch16-512", LARGE, 512),
    _siglip2("so400m-patch14-224", SO400M, 224, 14),
    _siglip2("so400m-patch14-384", SO400M, 384, 14),
    _siglip2("so400m-patch16-256", SO400M, 256),
    _siglip2("so400m-patch16-384", SO400M, 384),
    _siglip2("so400m-patch16-512", SO400M, 512),
    _siglip2("giant-opt-patch16-256", GIANT, 256),
    _siglip2("giant-opt-patch16-384", GIANT, 384),
    _siglip2("base-patch16-naflex", BASE, None),
    _siglip2("so400m-patch16-naflex", SO400M, None),
)
