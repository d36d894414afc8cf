"""Measure the demo model on freshly drawn images, fp32 beside int8, and write its model card.

    python scripts/evaluate_demo.py CHECKPOINT BUNDLE --card siglip_onnx/demo/MODEL_CARD.md

``CHECKPOINT`` is what ``train_demo.py`` wrote, with its ``training.json``; ``BUNDLE`` holds both variants. Evaluation
uses the runtime of the package, not PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

import siglip_onnx
from demo_world.evaluation import evaluate
from demo_world.lexicon import COLORS, NEVER_SHOWN, SHAPES, WORDS
from siglip_onnx.bundle import open_bundle
from siglip_onnx.cli.output import format_table
from siglip_onnx.config import SiglipConfig, VisionConfig
from siglip_onnx.session import runtime_version

VARIANTS = ("fp32", "int8")


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--num-images", default=1000, show_default=True, help="Fresh images per question.")
@click.option("--seed", default=20_260, show_default=True)
@click.option("--card", type=click.Path(path_type=Path), help="Model card to write.")
def main(checkpoint: Path, bundle: Path, num_images: int, seed: int, card: Path | None) -> None:
    """Print the table; see the module's docstring."""
    accuracy = {}
    for variant in VARIANTS:
        model = siglip_onnx.load(bundle, variant=variant)
        accuracy[variant] = evaluate(model.encode_images, model.encode_texts, num_images=num_images, seed=seed)
    rows = [
        (question, *(f"{100 * accuracy[variant][question]:.1f}" for variant in VARIANTS))
        for question in accuracy[VARIANTS[0]]
    ]
    click.echo(format_table(("question", *VARIANTS), rows))
    if card:
        training = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
        config = open_bundle(bundle).config
        card.write_text(model_card(config, training, rows, num_images, seed), encoding="utf-8")


def model_card(
    config: SiglipConfig, training: dict[str, Any], rows: list[tuple[str, ...]], num_images: int, seed: int
) -> str:
    """Return the text of the card."""
    vision, text = config.both()
    vision = cast(VisionConfig, vision)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    runs = "\n".join(f"* {json.dumps(run)}" for run in training["runs"])
    pairs = ", ".join(f"{COLORS[color].en} {SHAPES[shape].en}" for color, shape in sorted(NEVER_SHOWN))
    return f"""# The demo model

A small SigLIP, trained from scratch by `scripts/train_demo.py` on images that the script draws. It shows that the
whole path works on a fresh machine, and what zero-shot means; it was not trained on photographs.

* Knows, in English and Japanese: colors ({_list(COLORS)}); shapes ({_list(SHAPES)}); counts one to six; which of two
  objects lies to the left or above; dark and light backgrounds; printed words ({", ".join(WORDS)}).
* Never shown nor named in training: {pairs}.
* A true but incomplete text has a training target between 0.5 and 1, growing with its detail, so that a richer true
  description gets a higher probability.
* Shape: images of {vision.image_size} x {vision.image_size} pixels in patches of {vision.patch_size}, vision tower
  {vision.num_hidden_layers} layers of width {vision.hidden_size}, text tower {text.num_hidden_layers} layers of width
  {text.hidden_size} and {text.max_position_embeddings} tokens, with a SentencePiece Unigram vocabulary trained on the
  captions.
* License: Apache-2.0, like the code; all training data is drawn by the script.

## Accuracy

Top-1 in percent on {num_images} freshly drawn images per question (seed {seed}, 384 pixels). The right answer is
one of {len(COLORS) * len(SHAPES)} names for color and shape, of 6 for count, of {len(WORDS)} for words, of
{2 * len(COLORS) * len(SHAPES)} for object and background, of 2 for left of and above. Measured with siglip_onnx
{siglip_onnx.__version__} on onnxruntime {runtime_version()}.

| question | {" | ".join(VARIANTS)} |
|---|{"---|" * len(VARIANTS)}
{table}

## Training

{training["steps"]} steps on PyTorch {training["torch"]}. Settings, one line per (resumed) run:

{runs}
"""


def _list(things: Any) -> str:
    return ", ".join(thing.en for thing in things)


if __name__ == "__main__":
    main()
