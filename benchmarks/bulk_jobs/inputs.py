"""Make the images that bulk jobs are measured on, and files with planted faults."""

from __future__ import annotations

import functools
import io
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 0


def make_images(folder: Path, count: int, *, size: int = 32, linked: bool = False) -> Path:
    """Write small JPEGs; with ``linked``, 100 files under many names."""
    empty_path(folder).mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        if linked and number >= 100:
            os.link(folder / f"{number % 100:06}.jpg", path)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def empty_path(path: Path) -> Path:
    """Remove a folder and return its path."""
    shutil.rmtree(path, ignore_errors=True)
    return path


@functools.cache
def encode_bomb() -> bytes:
    """Return 144 megapixels in a PNG of some kilobytes."""
    content = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(content, "PNG")
    return content.getvalue()


def plant_truncated(path: Path) -> None:
    """Write the first half of a JPEG."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])


def plant_sparse(path: Path) -> None:
    """Write a file of 2 GB that takes no space."""
    with path.open("wb") as file:
        file.truncate(2_000_000_000)


def plant_socket(path: Path) -> None:
    """Leave a Unix socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# Each kind with the status that it must get. Root can read every file except those of some devices.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "decode_error"),
    "truncated": (plant_truncated, "truncated"),
    "wrong extension": (lambda path: path.write_text("not an image"), "unsupported"),
    "bomb": (lambda path: path.write_bytes(encode_bomb()), "too_large"),
    "directory": (Path.mkdir, "io_error"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "io_error"),
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), "io_error"),
    "2 GB sparse": (plant_sparse, "too_large"),
    "pipe": (os.mkfifo, "io_error"),
    "socket": (plant_socket, "io_error"),
}
