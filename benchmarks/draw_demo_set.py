"""Draw a data set of the demo world: one folder per class, an object of one color and one shape on each image.

    python benchmarks/draw_demo_set.py OUT

A hundred classes, ten colors by ten shapes, a fifth of them never shown to the demo model in training. The images are
drawn from --seed; the training images had other seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from demo_world.captions import name_en
from demo_world.drawing import draw
from demo_world.evaluation import ALL_PAIRS
from demo_world.scene import Scene

CANVAS = 384  # pixels


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--per-class", type=click.IntRange(1), default=10, show_default=True)
@click.option("--seed", type=int, default=20_261, show_default=True)
def main(out: Path, per_class: int, seed: int) -> None:
    """Write the images."""
    rng = np.random.default_rng(seed)
    for color, shape in ALL_PAIRS:
        folder = out / name_en(color, shape)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            scene = Scene(color, shape, count=1, dark=number % 2)
            draw(scene, rng, canvas=CANVAS).save(folder / f"{number:03}.png")
    click.echo(f"{out}: {per_class * len(ALL_PAIRS)} images of {len(ALL_PAIRS)} classes", err=True)


if __name__ == "__main__":
    main()
