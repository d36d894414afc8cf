"""Write one int8 tower of any shape with random weights, as the exporter writes it; no checkpoint is made for it.

Nothing is fitted to sample inputs. That changes values, not shapes: with random weights no channel is large and no
layer stays in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from checkpoint import grow_vocabulary
from numpy.typing import NDArray

from siglip_onnx.config import SENTENCEPIECE, TOKENIZER, SiglipConfig
from siglip_onnx.export.checkpoint import ROWS_AT_ONCE, expected_shapes
from siglip_onnx.export.graph import save_graph
from siglip_onnx.export.int8 import Int8Choices, quantize_int8
from siglip_onnx.export.tokenizer import write_tokenizer
from siglip_onnx.export.towers import build_towers
from siglip_onnx.hub.published import MULTILINGUAL

GRAPH = "tower.onnx"
_NUMBERS = 1_000_003  # a prime, so that no two rows of a weight are equal
_DEVIATION = 0.02


class RandomWeights:
    """Random weights of a config's shapes, which repeat one list of normal numbers; LayerNorms are near 1."""

    def __init__(self, config: SiglipConfig) -> None:
        self._shapes = expected_shapes(config)
        numbers = np.random.default_rng(0).standard_normal(_NUMBERS, np.float32)
        self._numbers = numbers * np.float32(_DEVIATION)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a checkpoint of this config has."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        shape = self._shapes[name]
        values = np.resize(self._numbers, math.prod(shape)).reshape(shape)
        return values + np.float32(1) if len(shape) == 1 and name.endswith(".weight") else values

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a matrix in blocks of rows."""
        rows, columns = self._shapes[name]
        for start in range(0, rows, ROWS_AT_ONCE):
            numbers = np.roll(self._numbers, -(start * columns % _NUMBERS))
            count = min(ROWS_AT_ONCE, rows - start)
            yield np.resize(numbers, count * columns).reshape(count, columns)


def write_tower(config: SiglipConfig, folder: Path, vocabulary: Path | None) -> int:
    """Write the only tower of ``config``, and a text tower's tokenizer, into ``folder``; return the tower's bytes.

    Args:
        config: of one tower.
        folder: an empty folder.
        vocabulary: a ``spiece.model`` or ``tokenizer.json``; None for a vision tower. For the multilingual vocabulary
            of SigLIP it is grown to its size.
    """
    (model,) = build_towers(RandomWeights(config), config).values()
    quantize_int8(model, Int8Choices())
    save_graph(model, folder / GRAPH)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if config.text is not None and vocabulary is not None:
        if config.text.vocab_size == MULTILINGUAL:
            grow_vocabulary(vocabulary, folder / SENTENCEPIECE)
            vocabulary = folder / SENTENCEPIECE
        length, rows = config.text.max_position_embeddings, config.text.vocab_size
        write_tokenizer(vocabulary, folder / TOKENIZER, text_length=length, vocab_size=rows)
    return size
