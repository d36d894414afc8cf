"""Three questions to put to a model, in English and in Japanese: ``python examples/experiments.py [MODEL [FOLDER]]``.

Does a richer description get a higher probability? Can it count to six? Can it read, and tell near-misses apart?
Without MODEL (the folder of an exported model) the demo model answers; the images are its samples. Into FOLDER goes one
PNG of each question and language, in which each text has a panel that shows where its evidence lies.
"""

from __future__ import annotations

import sys
from pathlib import Path

import siglip_onnx
from siglip_onnx.cli import main as siglip_onnx_command
from siglip_onnx.demo import IMAGES_PATH

RICHER = {
    "English": ["something red", "a star", "a red star", "a red star on a light background", "a blue star"],
    "Japanese": ["赤いもの", "星", "赤い星", "明るい背景に赤い星", "青い星"],
}
NUMBERS = {
    "English": ["one egg", "two eggs", "three eggs", "four eggs", "five eggs", "six eggs"],
    "Japanese": ["卵が一つ", "卵が二つ", "卵が三つ", "卵が四つ", "卵が五つ", "卵が六つ"],
}
COUNTED = ["one_egg", "two_eggs", "three_eggs", "four_eggs", "five_eggs", "six_eggs"]
PRINTED = ["cat", "car", "open", "oven"]
NEAR_WORDS = ["cat", "car", "cap", "open", "oven", "hope"]
READ_AS = {"English": 'the word "{}"', "Japanese": "「{}」という文字"}


def richer_description(model: siglip_onnx.SigLIP, texts: list[str]) -> None:
    """Print the probability of ever richer texts of one image, and of a wrong one."""
    print("red_star.png")
    for match in model.classify(IMAGES_PATH / "red_star.png", texts):
        print(f"{match.probability:10.3g}  {match.text}")


def compare_all(model: siglip_onnx.SigLIP, names: list[str], texts: list[str], columns: list[str]) -> None:
    """Print the probability of every text for every image; * marks the best text of each."""
    images = model.encode_images(IMAGES_PATH / f"{name}.png" for name in names)
    probabilities = siglip_onnx.sigmoid(model.logits(images, model.encode_texts(texts)))
    print(" " * 12 + "".join(f"{column:>10}" for column in columns))
    for name, row in zip(names, probabilities, strict=True):
        cells = (f"{value:9.2g}{'*' if value == row.max() else ' '}" for value in row)
        print(f"{name:<12}{''.join(cells)}")


def draw_where(model: str, image: str, texts: list[str], out: Path) -> None:
    """Draw where in an image the evidence of each text lies, as ``siglip-onnx explain`` does."""
    options = [word for text in texts for word in ("--text", text)]
    path = str(IMAGES_PATH / f"{image}.png")
    siglip_onnx_command(["explain", path, "--model", model, *options, "-o", str(out)], standalone_mode=False)


def main() -> None:
    """Print every table, and draw the images into the folder, if one is given."""
    name, folder = [*sys.argv[1:], *["demo", ""][len(sys.argv) - 1 :]]
    try:
        model = siglip_onnx.load(name)
    except siglip_onnx.SiglipOnnxError as error:
        sys.exit(str(error))
    for language in ("English", "Japanese"):
        print(f"\n== A richer description, {language}: probability")
        richer_description(model, RICHER[language])
        print(f"\n== Counting, {language}: probability of each number of eggs")
        compare_all(model, COUNTED, NUMBERS[language], ["1", "2", "3", "4", "5", "6"])
        print(f"\n== Reading, {language}: probability of each word")
        texts = [READ_AS[language].format(word) for word in NEAR_WORDS]
        compare_all(model, [f"word_{word}" for word in PRINTED], texts, NEAR_WORDS)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for question, image, asked in (
                ("richer", "red_star", RICHER[language]),
                ("counting", "six_eggs", NUMBERS[language]),
                ("reading", "word_open", texts),
            ):
                out = Path(folder) / f"{question}_{language.lower()}.png"
                print(f"\n== {out}: where in {image}.png the evidence lies")
                draw_where(name, image, asked, out)


if __name__ == "__main__":
    main()
