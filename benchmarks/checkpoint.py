"""Make a random checkpoint with the shapes and vocabulary size of google/siglip-base-patch16-256-multilingual.

Random weights prove parity, speed and memory, not accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE, IMAGE_SIZE = 250_000, 256


def make_checkpoint(path: Path, spiece: Path) -> None:
    """Write the checkpoint as transformers does; 1.5 GB."""
    import torch  # noqa: PLC0415 - only this step needs these
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel  # noqa: PLC0415

    torch.manual_seed(0)
    config = SiglipConfig(text_config={"vocab_size": VOCAB_SIZE}, vision_config={"image_size": IMAGE_SIZE})
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.0)
    model.save_pretrained(path)
    SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(path)
    grow_vocabulary(spiece, path / "spiece.model")


def grow_vocabulary(spiece: Path, out: Path) -> None:
    """Add random pieces to a SentencePiece model until it is as large, and as costly, as the real one."""
    from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only this step needs it

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    model.ParseFromString(spiece.read_bytes())
    known = {piece.piece for piece in model.pieces}
    letters = sorted({letter for piece in known for letter in piece if letter.isalpha()})
    rng = np.random.default_rng(0)
    while len(known) < VOCAB_SIZE:
        piece = "▁" * int(rng.integers(2)) + "".join(rng.choice(letters, rng.integers(2, 9)))
        if piece not in known:
            known.add(piece)
            model.pieces.add(piece=piece, score=float(rng.uniform(-14, -8)))
    out.write_bytes(model.SerializeToString())
