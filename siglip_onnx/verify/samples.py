"""Built-in sample images and texts, on which variants are compared and calibrated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..demo import IMAGES_PATH
from ..image import ImageSource

SAMPLE_TEXTS = (
    "a photo of a cat",
    "two dogs playing on the beach",
    "a red circle",
    "six brown eggs in a white bowl",
    "This is a photo of a street at night.",
    "the word open on a green sign",
    "a bowl of ramen with an egg on top",
    "ein alter Mann liest Zeitung",
    "une voiture rouge garée dans la rue",
    "un gato negro duerme en el sofá",
    "猫が二匹、ソファの上で寝ている",
    "暗い背景に赤い丸",
    "桜の木の下を歩く人々",
    "一只熊猫在吃竹子",
    "собака бежит по снегу",
    "",
)
# In scripts and lengths that the sample texts do not have.
CALIBRATION_TEXTS = (
    *SAMPLE_TEXTS,
    "صورة لقطة تنام على الأريكة",
    "एक बच्चा नदी के किनारे खेल रहा है",
    "고양이 두 마리가 소파에서 자고 있다",
    "แมวสองตัวนอนบนโซฟา",
    "תמונה של כלב רץ בשלג",
    "μια γάτα κοιμάται στον καναπέ",
    "iki köpek sahilde oynuyor",
    "một bát phở với trứng",
    "dwa psy bawią się na plaży",
    "um carro vermelho estacionado na rua",
    "чорний кіт спить на дивані",
    "seekor panda makan bambu",
    "گربه سیاه روی مبل خوابیده است",
    "একটি লাল গাড়ি",
    "ஒரு சிவப்பு கார்",
    "paka mweusi amelala",
    "kaksi koiraa leikkii rannalla",
    "ein Hund",
    "cat",
    "SALE 50% OFF!!! 1999-2024, $3.50",
    "😀 🐈 🌊",
    "an aerial photograph of a crowded harbor at dawn, with fishing boats, cranes, containers in red, blue and green, "
    "and long shadows of the lighthouse on the water, taken from a small airplane by an unknown photographer in the "
    "1970s, scanned from a faded print with scratches and a white border",
)
NUM_SCENES = 12
_HEIGHT, _WIDTH = 288, 384
_NUM_LEAVES, _SMALLEST, _LARGEST = 160, 6, 140  # radii in pixels

Floats = NDArray[np.float32]


def sample_images() -> list[ImageSource]:
    """Return the built-in sample images: drawings of the demo model, and scenes with the statistics of photographs.

    Drawings are flat. The scenes have what photographs have: objects of all sizes that hide each other, textures,
    shading, blur, noise and text.
    """
    return [*sorted(IMAGES_PATH.glob("*.png")), *map(draw_scene, range(NUM_SCENES))]


@cache
def draw_scene(seed: int) -> NDArray[np.uint8]:
    """Return one scene, u8 ``(288, 384, 3)``: dead leaves, and in every fourth scene text.

    Leaves whose sizes follow a power law, each hiding those behind it, have the statistics of photographs.
    Source: Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001.
    """
    rng = np.random.default_rng(seed)
    hue, textures = rng.uniform(0, 1, 3), [_texture(rng) for _ in range(3)]
    canvas = Image.fromarray(_paint(rng, hue, textures[0]))
    areas = rng.uniform((_SMALLEST / _LARGEST) ** 2, 1, _NUM_LEAVES)
    focus = int(rng.integers(_NUM_LEAVES))
    for number, radius in enumerate((_SMALLEST / np.sqrt(areas)).tolist()):
        mask = _leaf(rng, radius)
        left, top = (int(rng.integers(size)) - mask.width // 2 for size in (_WIDTH, _HEIGHT))
        row, column = int(rng.integers(_HEIGHT - mask.height)), int(rng.integers(_WIDTH - mask.width))
        texture = textures[number % 3][row : row + mask.height, column : column + mask.width]
        canvas.paste(Image.fromarray(_paint(rng, hue, texture)), (left, top), mask)
        if number % 20 == 19:
            canvas = canvas.filter(ImageFilter.GaussianBlur(3 * abs(number - focus) / _NUM_LEAVES))
    if seed % 4 == 3:
        _write_words(rng, canvas)
    light = 0.6 + 0.7 * _ramp(rng, _HEIGHT, _WIDTH)[..., np.newaxis]
    noise = rng.normal(0, rng.uniform(1, 8), (_HEIGHT, _WIDTH, 3))
    scene: NDArray[np.uint8] = np.clip(np.asarray(canvas, np.float32) * light + noise, 0, 255).astype(np.uint8)
    scene.flags.writeable = False  # it is cached
    return scene


def _texture(rng: np.random.Generator) -> Floats:
    """Return noise whose amplitude falls with its frequency, as in photographs; f32 ``(H, W)`` around 0."""
    rows, columns = np.fft.fftfreq(_HEIGHT)[:, np.newaxis], np.fft.rfftfreq(_WIDTH)
    stretch = np.exp2(rng.uniform(-2, 2))  # grain, as of wood or cloth
    frequency = np.sqrt((rows * stretch) ** 2 + (columns / stretch) ** 2)
    frequency[0, 0] = np.inf
    spectrum = np.exp(2j * np.pi * rng.uniform(size=frequency.shape)) / frequency ** rng.uniform(0.6, 1.6)
    noise = np.fft.irfft2(spectrum, s=(_HEIGHT, _WIDTH))
    texture: Floats = (noise / noise.std()).astype(np.float32)
    return texture


def _ramp(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Return a gradient in a random direction, f32 ``(H, W)`` from 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-1, 1, height)[:, np.newaxis], np.linspace(-1, 1, width)
    slope = rows * np.sin(angle) + columns * np.cos(angle)
    ramp: Floats = ((slope - slope.min()) / np.ptp(slope)).astype(np.float32)
    return ramp


def _paint(rng: np.random.Generator, hue: NDArray[np.float64], texture: Floats) -> NDArray[np.uint8]:
    """Return a shaded and textured surface, u8 ``(H, W, 3)``; the colors of a scene resemble its ``hue``."""
    color = rng.uniform(0, 255) * (1 - rng.uniform() * (1 - np.clip(hue + rng.normal(0, 0.3, 3), 0, 1)))
    shade = rng.uniform(-90, 90) * (_ramp(rng, *texture.shape) - 0.5)
    relief = rng.uniform(0, 1) ** 2 * 45 * texture
    return np.clip(color + (shade + relief)[..., np.newaxis], 0, 255).astype(np.uint8)


def _leaf(rng: np.random.Generator, radius: float) -> Image.Image:
    """Return the mask of an ellipse or of a polygon of this radius."""
    is_round = rng.uniform() < 0.5
    angles = np.linspace(0, 2 * np.pi, 24) if is_round else np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    stretch, turn = rng.uniform(0.3, 1), rng.uniform(0, np.pi)
    corners = radius * np.exp(1j * turn) * (np.cos(angles) + stretch * 1j * np.sin(angles)) + radius * (1 + 1j)
    size = 2 * int(radius) + 1
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).polygon([(float(corner.real), float(corner.imag)) for corner in corners], fill=255)
    return mask


def _write_words(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Write lines of text, as on signs and pages."""
    draw = ImageDraw.Draw(canvas)
    texts = [text for text in SAMPLE_TEXTS if text and text.isascii()]
    for number, top in enumerate(range(10, _HEIGHT - 40, 60)):
        size, left, is_dark = int(rng.integers(10, 44)), int(rng.integers(80)), rng.uniform() < 0.5
        text = texts[number % len(texts)]
        draw.rectangle(
            (left - 6, top - 3, left + size * len(text) // 2, top + size + 6), "white" if is_dark else "#123"
        )
        draw.text((left, top), text, "black" if is_dark else "#fe8", ImageFont.load_default(size))


@contextmanager
def quiet_samples(texts: Sequence[str]) -> Iterator[None]:
    """Do not log that sample texts are truncated, which says nothing about the user's texts."""
    log = logging.getLogger("siglip_onnx.text.tokenizer")
    log.disabled = texts is SAMPLE_TEXTS or texts is CALIBRATION_TEXTS
    try:
        yield
    finally:
        log.disabled = False
