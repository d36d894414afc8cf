"""Classes that the demo model's texts cannot name: shapes of the demo world in styles that it was never shown."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .drawing import draw
from .lexicon import COLORS, SHAPES
from .scene import Scene

STYLES = ("filled", "outlined", "striped", "spotted")
STYLED_SHAPES = (0, 1, 3, 4, 8)  # circle, square, star, heart, diamond
CANVAS = 128


def class_names() -> list[str]:
    """Return the names of the classes."""
    return [f"a {style} {SHAPES[shape].en}" for style in STYLES for shape in STYLED_SHAPES]


def draw_styled(style: str, shape: int, rng: np.random.Generator) -> Image.Image:
    """Draw a shape of a random color in a style; what the style leaves out shows the background."""
    dark = int(rng.integers(2))
    color = int(rng.integers(len(COLORS)))
    state = rng.bit_generator.state
    image = draw(Scene(color, shape, count=1, dark=dark), rng, canvas=CANVAS)
    rng.bit_generator.state = state
    other = draw(Scene((color + 5) % len(COLORS), shape, count=1, dark=dark), rng, canvas=CANVAS)
    pixels = np.asarray(image, np.int16)
    mask = np.abs(pixels - np.asarray(other, np.int16)).sum(axis=2) > 12  # where the colors differ
    down, across = np.mgrid[:CANVAS, :CANVAS] + rng.integers(0, 20, (2, 1, 1))
    if style == "outlined":
        shrunk = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(9))
        hidden = np.asarray(shrunk) > 0
    elif style == "striped":
        hidden = mask & ((down + across) % 12 < 5)
    elif style == "spotted":
        hidden = mask & ((down % 14 - 7) ** 2 + (across % 14 - 7) ** 2 < 16)
    else:
        hidden = np.zeros_like(mask)
    background = pixels[~mask].reshape(-1, 3).mean(axis=0)
    return Image.fromarray(np.where(hidden[..., np.newaxis], background, pixels).astype(np.uint8))


def draw_style_folders(out: Path, per_class: int, seed: int) -> Path:
    """Draw a folder per class."""
    rng = np.random.default_rng(seed)
    for style in STYLES:
        for shape in STYLED_SHAPES:
            folder = out / f"a {style} {SHAPES[shape].en}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                draw_styled(style, shape, rng).save(folder / f"{number}.png")
    return out
