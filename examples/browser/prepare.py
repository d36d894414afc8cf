"""Make a folder of static files that runs a compiled classifier in the browser, without a server behind it.

npm install onnxruntime-web
siglip-onnx compile MODEL --uint8 --texts-file labels.txt -o classifier.onnx
python prepare.py classifier.onnx IMAGE node_modules/onnxruntime-web SITE
python -m http.server --directory SITE

IMAGE, a PNG, JPEG or WebP file, becomes the self-check: the page classifies it when it loads, and works only if it gets
the stored answer. Browsers give the camera only to pages at localhost or with https.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from siglip_onnx.classifier import Classifier
from siglip_onnx.image import open_image

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def main(model: Path, image: Path, onnxruntime_web: Path, site: Path) -> None:
    """Write the folder ``site``."""
    classifier = Classifier(model)
    facts = classifier.facts
    if facts.input != "uint8":
        sys.exit(f"{model} takes normalized pixels; compile it with --uint8.")
    pixels = open_image(image).rgb.resize((facts.width, facts.height), facts.resample)
    check = {
        "width": facts.width,
        "height": facts.height,
        "resample": facts.resample,
        "labels": facts.labels,
        "pixels": np.asarray(pixels).ravel().tolist(),
        "probabilities": [match.probability for match in classifier.classify(image)],
    }
    site.mkdir(parents=True, exist_ok=True)
    (site / "check.json").write_text(json.dumps(check), encoding="utf-8")
    shutil.copyfile(image, site / "check.image")
    shutil.copyfile(model, site / "classifier.onnx")
    shutil.copyfile(Path(__file__).with_name("index.html"), site / "index.html")
    for name in RUNTIME:
        shutil.copyfile(onnxruntime_web / "dist" / name, site / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
