"""Colours, shapes, counts and printed words of the demo world, in English and Japanese."""

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour with its RGB value (0-255) and its names; ``ja`` stands before a noun."""

    en: str
    ja: str
    rgb: tuple[int, int, int]


class Shape(NamedTuple):
    """A shape with its English singular and plural and its Japanese name."""

    en: str
    en_plural: str
    ja: str


COLOURS = (
    Colour("red", "赤い", (215, 35, 35)),
    Colour("orange", "オレンジ色の", (245, 130, 20)),
    Colour("yellow", "黄色い", (240, 215, 30)),
    Colour("green", "緑の", (40, 150, 55)),
    Colour("cyan", "水色の", (70, 205, 225)),
    Colour("blue", "青い", (35, 70, 210)),
    Colour("purple", "紫の", (135, 45, 175)),
    Colour("pink", "ピンクの", (250, 140, 185)),
    Colour("brown", "茶色い", (125, 75, 35)),
    Colour("gray", "灰色の", (135, 135, 135)),
)

SHAPES = (
    Shape("circle", "circles", "丸"),
    Shape("square", "squares", "四角"),
    Shape("triangle", "triangles", "三角"),
    Shape("star", "stars", "星"),
    Shape("heart", "hearts", "ハート"),
    Shape("cross", "crosses", "十字"),
    Shape("ring", "rings", "輪"),
    Shape("moon", "moons", "月"),
    Shape("diamond", "diamonds", "ひし形"),
    Shape("egg", "eggs", "卵"),
)

# Many differ by one letter, so that reading needs every letter.
WORDS = (
    "open", "oven", "cat", "car", "cap", "sun", "run", "tea", "sea", "book",
    "look", "milk", "silk", "exit", "stop", "shop", "ship", "sale", "home", "hope",
)  # fmt: skip

MAX_COUNT = 6
COUNTS_EN = ("", "one", "two", "three", "four", "five", "six")
COUNTS_JA = ("", "一つ", "二つ", "三つ", "四つ", "五つ", "六つ")

# Two of ten shapes for each colour, and two of ten colours for each shape, are never drawn or named in training.
NEVER_SHOWN = frozenset((colour, (3 * colour + offset) % 10) for colour in range(10) for offset in (0, 5))
TRAINED_PAIRS = tuple(
    (colour, shape)
    for colour in range(len(COLOURS))
    for shape in range(len(SHAPES))
    if (colour, shape) not in NEVER_SHOWN
)
