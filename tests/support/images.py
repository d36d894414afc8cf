"""Images made for the tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def make_image(rng: np.random.Generator, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Return an RGB image of that width and height: blobs of color and some noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse) + rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def save_all(images: list[Image.Image], folder: Path) -> list[Path]:
    """Save images as ``0.png``, ``1.png`` and so on in a folder, which is created; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()
