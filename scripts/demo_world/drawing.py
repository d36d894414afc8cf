"""Draw a scene of the demo world as an image."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .lexicon import COLORS, SHAPES, WORDS
from .scene import ANY, Relation, Scene

Point = tuple[float, float]


def draw(scene: Scene, rng: np.random.Generator, canvas: int = 192) -> Image.Image:
    """Draw ``scene`` on a square RGB canvas of ``canvas`` pixels; place, size, tilt and tone vary with ``rng``."""
    background = _background(scene.dark, rng, canvas)
    pen = ImageDraw.Draw(background)
    if scene.word != ANY:
        _print_word(background, scene, rng)
    elif scene.relation != ANY:
        pair, radius = _place_pair(Relation(scene.relation), rng)
        objects = ((scene.color, scene.shape), (scene.color2, scene.shape2))
        for (color, shape), center in zip(objects, pair, strict=True):
            _draw_shape(pen, shape, _tint(color, rng), center, radius, rng, canvas)
    else:
        centers, radius = _place_apart(scene.count, rng)
        fill = _tint(scene.color, rng)
        for center in centers:
            _draw_shape(pen, scene.shape, fill, center, radius * rng.uniform(0.85, 1.0), rng, canvas)
    return background


def _background(dark: int, rng: np.random.Generator, canvas: int) -> Image.Image:
    low, high = (5, 50) if dark == 1 else (205, 255)
    corners = rng.uniform(low, high, (2, 2, 1)) + rng.uniform(-8, 8, (2, 2, 3))
    small = Image.fromarray(corners.clip(0, 255).astype(np.uint8))
    return small.resize((canvas, canvas), Image.Resampling.BILINEAR)


def _tint(color: int, rng: np.random.Generator) -> tuple[int, int, int]:
    rgb = np.array(COLORS[color].rgb) * rng.uniform(0.92, 1.06) + rng.uniform(-8, 8, 3)
    red, green, blue = (int(v) for v in rgb.clip(0, 255))
    return red, green, blue


def _place_apart(count: int, rng: np.random.Generator) -> tuple[list[Point], float]:
    """Choose ``count`` centers in the unit square and one radius, so that no two shapes touch."""
    largest = {1: 0.38, 2: 0.23, 3: 0.19, 4: 0.17, 5: 0.15, 6: 0.14}[count]
    radius = rng.uniform(0.55, 1.0) * largest if count == 1 else rng.uniform(0.75, 1.0) * largest
    while True:
        centers: list[Point] = []
        for _ in range(200):
            x, y = rng.uniform(radius + 0.02, 1 - radius - 0.02, 2)
            if all(math.hypot(x - a, y - b) > 2.1 * radius for a, b in centers):
                centers.append((float(x), float(y)))
                if len(centers) == count:
                    return centers, radius
        radius *= 0.95


def _place_pair(relation: Relation, rng: np.random.Generator) -> tuple[tuple[Point, Point], float]:
    radius = rng.uniform(0.14, 0.21)
    near = rng.uniform(radius + 0.02, 0.48 - radius)
    far = rng.uniform(0.52 + radius, 0.98 - radius)
    across = rng.uniform(0.3, 0.7, 2)
    first, second = (near, across[0]), (far, across[1])
    if relation == Relation.ABOVE:
        first, second = first[::-1], second[::-1]
    return (first, second), radius


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: int,
    fill: tuple[int, int, int],
    center: Point,
    radius: float,
    rng: np.random.Generator,
    canvas: int,
) -> None:
    """Draw one shape within ``radius`` of ``center`` (shares of the canvas), tilted by up to 15 degrees."""
    x, y, r = center[0] * canvas, center[1] * canvas, radius * canvas
    tilt = math.radians(rng.uniform(-15, 15))
    name = SHAPES[shape].en
    if name == "circle":
        pen.ellipse((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif name == "ring":
        width = max(2, round(0.28 * r))
        pen.ellipse((x - 0.95 * r, y - 0.95 * r, x + 0.95 * r, y + 0.95 * r), outline=fill, width=width)
    else:
        outline = [
            (
                x + r * (a * math.cos(tilt) - b * math.sin(tilt)),
                y + r * (a * math.sin(tilt) + b * math.cos(tilt)),
            )
            for a, b in _OUTLINES[name]
        ]
        pen.polygon(outline, fill=fill)


def _print_word(image: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    word = WORDS[scene.word]
    text = (word, word.upper(), word.capitalize())[rng.integers(3)]
    canvas = image.width
    size = int(canvas * rng.uniform(0.3, 0.42))
    while True:
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        if right - left <= 0.94 * canvas:
            break
        size -= 2
    x = rng.uniform(0.03 * canvas, 0.97 * canvas - (right - left))
    y = rng.uniform(0.08 * canvas, 0.92 * canvas - (bottom - top))
    ImageDraw.Draw(image).text(
        (x - left, y - top), text, font=font, fill=_tint(scene.color, rng), stroke_width=int(rng.integers(2))
    )


def _curve(x: list[float], y: list[float]) -> list[Point]:
    return list(zip(x, y, strict=True))


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    x = [0.95 * math.sin(t) ** 3 for t in turns]
    y = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17 - 0.1 for t in turns]
    return _curve(x, y)


def _moon() -> list[Point]:
    """A crescent: the left arc of the unit circle, back along a flatter arc."""
    outer = [math.radians(a) for a in range(50, 311, 10)]
    inner = [math.radians(a) for a in range(300, 59, -10)]
    x = [math.cos(a) for a in outer] + [0.78 * math.cos(a) + 0.38 for a in inner]
    y = [math.sin(a) for a in outer] + [0.85 * math.sin(a) for a in inner]
    return _curve([v + 0.2 for v in x], y)


def _egg() -> list[Point]:
    turns = [2 * math.pi * i / 36 for i in range(36)]
    return [(0.62 * math.cos(t) * (1 + 0.14 * math.sin(t)), 0.95 * math.sin(t)) for t in turns]


def _star() -> list[Point]:
    radii = [1.0, 0.42] * 5
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


_OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    "triangle": [(0.0, -0.95), (0.88, 0.7), (-0.88, 0.7)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (-0.26, -0.92), (0.26, -0.92), (0.26, -0.26), (0.92, -0.26), (0.92, 0.26), (0.26, 0.26),
        (0.26, 0.92), (-0.26, 0.92), (-0.26, 0.26), (-0.92, 0.26), (-0.92, -0.26), (-0.26, -0.26),
    ],
    "moon": _moon(),
    "diamond": [(0.0, -1.0), (0.58, 0.0), (0.0, 1.0), (-0.58, 0.0)],
    "egg": _egg(),
}  # fmt: skip
