"""Measure what decoding in a process of its own costs: the same images with and without, in turns.

    python benchmarks/decoder_pool.py [IMAGE...]

Without arguments, photographs of several sizes are imitated. Prints milliseconds from the bytes of a file to RGB at a
model's size (224x224): the minimum of each, their difference, and the median of the paired differences, which includes
what other processes of a busy machine take. The pixels are compared.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from siglip_onnx.image.decode import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.image.preprocess import SquashFit

SIZES = ((64, 64), (640, 480), (1920, 1080), (4000, 3000), (6000, 4000))
FIT = SquashFit(224, 224, Image.Resampling.BICUBIC)
SECONDS, FEWEST = 6.0, 15  # of pairs of an image


def imitate(width: int, height: int) -> bytes:
    """Return a JPEG with as many bytes per pixel as a photograph, about a quarter."""
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def timed(reader: ImageReader | DecoderPool, data: bytes) -> tuple[float, bytes]:
    """Return milliseconds and pixels."""
    started = time.perf_counter()
    rgb = reader.read(data, FIT).rgb
    return (time.perf_counter() - started) * 1000, rgb.tobytes()


def print_row(*cells: str) -> None:
    """Print the cells of a line, the first aligned to the left."""
    sys.stdout.write(f"{cells[0]:16}" + "".join(f"{cell:>12}" for cell in cells[1:]) + "\n")


def main() -> None:
    """Print a line per image."""
    files = {path: Path(path).read_bytes() for path in sys.argv[1:]}
    files = files or {f"{width}x{height}": imitate(width, height) for width, height in SIZES}
    reader = ImageReader()
    pool = DecoderPool(reader)
    print_row("image", "kB", "in process", "isolated", "overhead", "median", "pairs")
    for name, data in files.items():
        if timed(reader, data)[1] != timed(pool, data)[1]:
            raise SystemExit(f"{name}: the pixels differ")
        pairs: list[tuple[float, float]] = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(pairs) < FEWEST:
            first = timed(reader, data)[0] if len(pairs) % 2 else None
            isolated = timed(pool, data)[0]
            pairs.append((timed(reader, data)[0] if first is None else first, isolated))
        fastest = [min(times) for times in zip(*pairs, strict=True)]
        median = statistics.median(isolated - direct for direct, isolated in pairs)
        numbers = (*fastest, fastest[1] - fastest[0], median)
        print_row(name[-16:], f"{len(data) / 1000:.0f}", *(f"{number:.2f}" for number in numbers), str(len(pairs)))
    pool.close()


if __name__ == "__main__":
    main()
