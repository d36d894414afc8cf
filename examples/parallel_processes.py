"""Embed images in a pool of processes, each of which receives the model once, when it starts.

python parallel_processes.py IMAGE...
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

import siglip_onnx

model: siglip_onnx.SigLIP


def start(opened: siglip_onnx.SigLIP) -> None:
    """Keep the model of this process."""
    global model  # noqa: PLW0603 - one per process
    model = opened


def embed(path: str) -> NDArray[np.float32]:
    """Return the embedding f32 ``(1, D)`` of an image."""
    return model.encode_images(path)


if __name__ == "__main__":
    opened = siglip_onnx.load("demo", threads=1)
    with ProcessPoolExecutor(2, get_context("spawn"), start, (opened,)) as pool:
        print(np.concatenate(list(pool.map(embed, sys.argv[1:], chunksize=8))).shape)
