"""Draw the sample images that the package carries: ``python scripts/draw_samples.py siglip_onnx/demo/images``.

The demo model has not seen them: they are larger than its training images and drawn from another seed. Those whose
name says ``never_shown`` show a pair of color and shape that was left out of training.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from demo_world.drawing import draw
from demo_world.lexicon import COLORS, COUNTS_EN, SHAPES, WORDS
from demo_world.scene import Relation, Scene

CANVAS = 256
_COLOR = {color.en: number for number, color in enumerate(COLORS)}
_SHAPE = {shape.en: number for number, shape in enumerate(SHAPES)}


def scenes() -> dict[str, Scene]:
    """Return name and content of every sample image."""
    found = {
        "red_star": Scene(_COLOR["red"], _SHAPE["star"], 1, dark=0),
        "blue_star_on_dark": Scene(_COLOR["blue"], _SHAPE["star"], 1, dark=1),
        "green_square_left_of_pink_heart": Scene(
            _COLOR["green"], _SHAPE["square"], 1, Relation.LEFT_OF, _COLOR["pink"], _SHAPE["heart"], dark=0
        ),
        "yellow_moon_above_cyan_ring": Scene(
            _COLOR["yellow"], _SHAPE["moon"], 1, Relation.ABOVE, _COLOR["cyan"], _SHAPE["ring"], dark=1
        ),
    }
    for count in range(1, 7):
        noun = "egg" if count == 1 else "eggs"
        found[f"{COUNTS_EN[count]}_{noun}"] = Scene(_COLOR["orange"], _SHAPE["egg"], count, dark=0)
    for word, color in (("open", "green"), ("oven", "blue"), ("cat", "red"), ("car", "purple")):
        found[f"word_{word}"] = Scene(_COLOR[color], word=WORDS.index(word), dark=0)
    for color, shape in (("red", "circle"), ("green", "heart")):
        found[f"never_shown_{color}_{shape}"] = Scene(_COLOR[color], _SHAPE[shape], 1, dark=0)
    return found


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write every sample image as PNG."""
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, scene) in enumerate(scenes().items()):
        image = draw(scene, np.random.default_rng((2026, number)), CANVAS)
        # 64 colors are enough for flat shapes and keep the package small.
        image.quantize(64).save(out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
