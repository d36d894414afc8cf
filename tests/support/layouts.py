"""Write a small checkpoint in the layouts of other libraries, by the inverse of what the exporter does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoModel

import siglip_onnx

Arrays = dict[str, NDArray[Any]]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document."""
    path.write_text(json.dumps(document), encoding="utf-8")


def weights_of(checkpoint: Path) -> Arrays:
    """Return the weights of a checkpoint by transformers' names."""
    weights: Arrays = load_file(checkpoint / "model.safetensors")
    return weights


def write_transformers5(checkpoint: Path, out: Path) -> Path:
    """Write ``checkpoint``, which transformers 4 saved, as transformers 5.24 does: other configs, the same weights."""
    out.mkdir()
    weights = weights_of(checkpoint)
    weights |= {name: weights[name].reshape(()) for name in ("logit_scale", "logit_bias")}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config = read_json(checkpoint / "config.json")
    config.pop("torch_dtype", None)
    size = config["vision_config"]["image_size"]
    config |= {"dtype": "float32", "transformers_version": "5.24.0", "use_cache": True, "projection_dim": 512}
    config["vision_config"] |= {"image_size": [size, size], "vision_use_head": True, "dtype": "float32"}
    write_json(out / "config.json", config)
    image_processor = read_json(checkpoint / "preprocessor_config.json") | {"do_convert_rgb": True, "size": size}
    image_processor.pop("processor_class", None)
    write_json(
        out / "processor_config.json", {"image_processor": image_processor, "processor_class": "SiglipProcessor"}
    )
    shutil.copy(checkpoint / "spiece.model", out)
    return out


@torch.no_grad()
def assert_embeddings_of(checkpoint: Path, bundle: Path, image: Image.Image) -> None:
    """Compare the fp32 embeddings of ``bundle`` with those of the PyTorch model of ``checkpoint``."""
    model = siglip_onnx.load(bundle, variant="fp32")
    reference = AutoModel.from_pretrained(checkpoint).eval()
    (inputs,) = model.preprocess([image])
    pixels = reference.get_image_features(torch.from_numpy(inputs["pixel_values"]))
    texts = reference.get_text_features(torch.from_numpy(model.tokenize(["a photo of a cat", "赤い丸"])))
    for features, embeddings in (
        (pixels, model.encode_images(image)),
        (texts, model.encode_texts(["a photo of a cat", "赤い丸"])),
    ):
        expected = torch.nn.functional.normalize(features).numpy()
        assert_allclose(embeddings, expected, atol=1e-5, rtol=0)
        assert np.abs(expected).max() > 0.05
