"""Add embeddings to a Hugging Face dataset with map, whose result is cached: the second run embeds nothing.

python datasets_map.py FOLDER_OF_IMAGES
"""

import sys
from typing import Any

import datasets

import siglip_onnx

model = siglip_onnx.load("demo")


def embed(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the new column of a batch of images, which are {"bytes": ..., "path": ...}."""
    print(f"embedding {len(batch['image'])} images")
    return {"embedding": model.encode_images(batch["image"])}


images = datasets.load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
images = images.cast_column("image", datasets.Image(decode=False))
embedded = images.map(embed, batched=True, batch_size=32)
print(len(embedded), len(embedded[0]["embedding"]))
