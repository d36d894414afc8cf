"""Drawn images of the demo world with their labels, in the layouts of data sets."""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from demo_world.captions import name_en, name_ja
from demo_world.drawing import draw
from demo_world.scene import Scene

PAIRS = ((0, 0), (0, 3), (5, 0), (5, 3), (3, 1), (2, 7), (6, 4), (8, 9))  # color and shape
NAMES_EN = [name_en(*pair) for pair in PAIRS]
NAMES_JA = [name_ja(*pair) for pair in PAIRS]


def draw_folders(out: Path, per_class: int, *, seed: int = 0, noise: float = 120) -> list[Path]:
    """Draw a folder per class, named in English; noise makes some of the images hard. Return the images."""
    rng = np.random.default_rng(seed)
    paths = []
    for pair in PAIRS:
        folder = out / name_en(*pair)
        folder.mkdir(parents=True)
        for number in range(per_class):
            paths.append(folder / f"{number}.png")
            save_noisy(draw(Scene(*pair, count=1, dark=number % 2), rng, canvas=96), rng, paths[-1], noise)
    return paths


def save_noisy(image: Image.Image, rng: np.random.Generator, path: Path, noise: float) -> None:
    levels = np.asarray(image) + rng.normal(0, rng.uniform(0, noise), (*image.size, 3))
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    lines = io.StringIO()
    csv.writer(lines, delimiter=delimiter).writerows([header, *rows])
    path.write_text(lines.getvalue(), encoding="utf-8")
    return path


def write_json_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
