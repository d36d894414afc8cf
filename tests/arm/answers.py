"""Answer with every model of a folder, on the CPU that runs this: ``python answers.py FOLDER OUT.npz``.

Runs on the host and, for the same files, on the emulated machine.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import siglip_onnx
from siglip_onnx.classifier import Classifier
from siglip_onnx.session import int8_kernels, runtime_version
from siglip_onnx.system.cpu import read_cpu

TEXTS = ["a red star", "six eggs", "卵が六つ"]


def main(folder: Path, out: Path) -> None:
    """Write embeddings by model, variant and tower, probabilities of classifiers, and the facts of this machine."""
    start = time.monotonic()
    images = sorted((folder / "images").iterdir())
    answers = {}
    for name in ("demo", "small", "naflex"):
        for variant in ("fp32", "int8"):
            model = siglip_onnx.load(name if name == "demo" else folder / name, variant=variant, threads=1)
            answers[f"{name} {variant} vision"] = np.concatenate([model.encode_images(image) for image in images])
            answers[f"{name} {variant} text"] = np.concatenate([model.encode_texts([text]) for text in TEXTS])
    for path in sorted(folder.glob("*.onnx")):
        classifier = Classifier(path)
        answers[f"classifier {path.stem}"] = np.array(
            [[match.probability for match in classifier.classify(image)] for image in images], np.float32
        )
    cpu = read_cpu()
    facts = {"cpu": cpu.name, "architecture": cpu.architecture, "instructions": list(cpu.flags),
             "int8_kernels": int8_kernels(), "onnxruntime": runtime_version(), "numpy": np.__version__,
             "seconds": round(time.monotonic() - start)}  # fmt: skip
    np.savez(out, facts=json.dumps(facts), **answers)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
