"""Colors, shapes, counts and printed words of the demo world, in English and Japanese."""

from typing import NamedTuple


class Color(NamedTuple):
    """A color with its RGB value (0-255) and its names; ``ja`` stands before a noun."""

    en: str
    ja: str
    rgb: tuple[int, int, int]


class Shape(NamedTuple):
    """A shape with its English singular and plural and its Japanese name."""

    en: str
    en_plural: str
    ja: str


COLORS = (
    Color("red", "赤い", (215, 35, 35)),
    Color("orange", "オレンジ色の", (245, 130, 20)),
    Color("yellow", "黄色い", (240, 215, 30)),
    Color("green", "緑の", (40, 150, 55)),
    Color("cyan", "水色の", (70, 205, 225)),
    Color("blue", "青い", (35, 70, 210)),
    Color("purple", "紫の", (135, 45, 175)),
    Color("pink", "ピンクの", (250, 140, 185)),
    Color("brown", "茶色い", (125, 75, 35)),
    Color("gray", "灰色の", (135, 135, 135)),
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

# Two of ten shapes for each color, and two of ten colors for each shape, are never drawn or named in training.
NEVER_SHOWN = frozenset((color, (3 * color + offset) % 10) for color in range(10) for offset in (0, 5))
TRAINED_PAIRS = tuple(
    (color, shape) for color in range(len(COLORS)) for shape in range(len(SHAPES)) if (color, shape) not in NEVER_SHOWN
)
