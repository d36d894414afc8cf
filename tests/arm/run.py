"""Compare the runtime on emulated ARM64 CPUs with this machine: ``python tests/arm/run.py FOLDER`` after machine.sh.

Models: the demo model, a small random one and a NaFlex one, fp32 and int8; compiled classifiers. Writes
benchmarks/results/arm.json; exit code 1 if a CPU answers differently.
"""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from support.checkpoints import make_checkpoint, make_naflex_checkpoint

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.export.compile import compile_classifier
from siglip_onnx.export.pipeline import export_bundle

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "arm.json"
CPUS = {"cortex-a72": "no dot product", "neoverse-n1": "dot product", "max": "dot product, i8mm, SVE, SME"}
IMAGES = ("red_star.png", "six_eggs.png", "word_open.png")
MIN_COSINE = {"fp32": 0.99999, "int8": 0.999}  # to fp32 on this machine
MAX_DIFFERENCE = 0.02  # of a classifier's probability


def make_material(folder: Path) -> None:
    """Write models, classifiers and images."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for name in IMAGES:
        shutil.copy(IMAGES_PATH / name, folder / "images")
    export_bundle(make_checkpoint(folder / "checkpoints" / "small", "square"), folder / "small")
    export_bundle(make_naflex_checkpoint(folder / "checkpoints" / "naflex"), folder / "naflex")
    for variant, uint8 in (("fp32", False), ("int8", True)):
        model = siglip_onnx.load("demo", variant=variant)
        compile_classifier(model, ["a red star", "six eggs", "卵が六つ"], folder / f"{variant}.onnx", uint8=uint8)


def answer(machine: Path, material: Path, cpu: str | None = None) -> dict[str, Any]:
    """Return the answers of this machine, or of an emulated CPU."""
    out = material / f"{cpu or 'host'}.npz"
    command, environment = [sys.executable], {"PYTHONPATH": str(ROOT)}
    if cpu:
        command = [str(machine / "qemu/usr/bin/qemu-aarch64"), "-cpu", cpu, str(machine / "root/usr/bin/python3.13")]
        environment = {"PYTHONPATH": f"{machine / 'site'}{os.pathsep}{ROOT}", "QEMU_LD_PREFIX": str(machine / "root")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    script = Path(__file__).with_name("answers.py")
    subprocess.run([*command, str(script), str(material), str(out)], check=True, env=os.environ | environment)
    with np.load(out) as answers:
        return dict(answers)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return the smallest cosine to this machine's fp32, and for classifiers the largest difference."""
    rows = {}
    for name, answers in found.items():
        if name.startswith("classifier"):
            rows[name] = float(np.abs(answers - expected[name]).max())
        elif name != "facts":
            reference = expected[name.replace("int8", "fp32")]
            rows[name] = float((answers.astype(np.float64) * reference).sum(axis=1).min())
    return rows


def is_right(name: str, value: float) -> bool:
    """Say whether a row of :func:`compare` is within its limit."""
    model, variant, *_ = name.split()
    return value <= MAX_DIFFERENCE if model == "classifier" else value >= MIN_COSINE[variant]


def main(machine: Path) -> int:
    """Run all CPUs, write the result, print one line per row."""
    material = machine / "material"
    make_material(material)
    expected = answer(machine, material)
    document: dict[str, Any] = {
        "format": "siglip_onnx.arm/1",
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "emulator": subprocess.check_output([machine / "qemu/usr/bin/qemu-aarch64", "--version"], text=True).split(
            "\n"
        )[0],
        "limits": {"min_cosine": MIN_COSINE, "max_difference": MAX_DIFFERENCE},
        "host": json.loads(str(expected["facts"])) | {"rows": compare(expected, expected)},
        "cpus": {},
    }
    for cpu, instructions in CPUS.items():
        found = answer(machine, material, cpu)
        rows = compare(found, expected)
        document["cpus"][cpu] = {"has": instructions} | json.loads(str(found["facts"])) | {"rows": rows}
        for name, value in rows.items():
            print(f"{cpu:12} {name:22} {value:.6f}{'' if is_right(name, value) else '  WRONG'}", flush=True)  # noqa: T201
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(not is_right(*row) for cpu in document["cpus"].values() for row in cpu["rows"].items()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
