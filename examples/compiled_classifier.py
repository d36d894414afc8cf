"""Run a compiled classifier with onnxruntime, numpy and pillow alone.

python compiled_classifier.py FILE IMAGE
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reports to its vendor as soon as it is imported
import onnxruntime

classifier, path = sys.argv[1:]
options = onnxruntime.SessionOptions()
cpu = Path("/proc/cpuinfo")
if not (cpu.exists() and "vnni" in cpu.read_text(encoding="utf-8")):  # without VNNI the fast int8 instructions saturate
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(classifier, options, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["siglip_onnx"])
image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
pixels = np.asarray(image.resize((facts["width"], facts["height"]), facts["resample"]))[np.newaxis]
if facts["input"] == "float32":
    scaled = (pixels * np.float64(facts["rescale_factor"])).astype(np.float32)
    normalized = (scaled - np.float32(facts["image_mean"])) / np.float32(facts["image_std"])
    pixels = normalized.transpose(0, 3, 1, 2)
(probabilities,) = session.run(["probabilities"], {"pixel_values": pixels})[0]
for label, probability in zip(facts["labels"], probabilities, strict=True):
    print(f"{label}: {probability:.3g}")
