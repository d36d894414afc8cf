import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BundleError
from siglip_onnx.text.tokenizer import Tokenizer

Document = dict[str, Any]


def edit(bundle: Path, change: Callable[[Document], object]) -> None:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    change(document)
    manifest.write_text(json.dumps(document))


def test_manifest_round_trip(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    assert json.loads(bundle.manifest.to_json()) == json.loads((small_bundle / "manifest.json").read_text())
    assert bundle.verify_files() == []
    assert bundle.manifest.logit_scale == 4.5
    assert bundle.manifest.logit_bias == -9.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not of format"),
        (lambda d: d.update(format_version=2), "format version 2, but this siglip_onnx reads version 1. Upgrade"),
        (lambda d: d.pop("logit_bias"), r"incomplete or damaged \(logit_bias is missing\)"),
        (lambda d: d.update(logit_scale="4"), r'logit_scale is "4", expected a number'),
        (lambda d: d.update(logit_scale=100), "between -10 and 10"),
        (lambda d: d.update(embedding_dim=True), "embedding_dim is true, expected a whole number"),
        (lambda d: d.update(variants={}), "incomplete or damaged"),
        (lambda d: d["variants"].update(int3=d["variants"]["int8"]), "int3"),
        (lambda d: d["files"].update({"../x": {"size_bytes": 1, "sha256": "0" * 64}}), "outside the bundle"),
        (lambda d: d.update(variants=3), "incomplete or damaged"),
    ],
)
def test_bad_manifests(copy: Path, change: Callable[[Document], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


def test_manifest_of_version_0_1_opens_with_its_old_keys(copy: Path) -> None:
    def make_old(document: Document) -> None:
        document["knows"] = "shapes"
        del document["description"]
        for variant in document["variants"].values():
            variant["accuracy"]["num_images"] = variant["accuracy"].pop("num_images")

    num_images = open_bundle(copy).manifest.variants["int8"].accuracy["num_images"]
    edit(copy, make_old)
    manifest = open_bundle(copy).manifest
    assert (manifest.description, manifest.knows) == ("shapes", "shapes")
    assert manifest.variants["int8"].accuracy["num_images"] == num_images
    rewritten = json.loads(manifest.to_json())
    assert rewritten["description"] == "shapes"
    assert "knows" not in rewritten


def test_manifest_with_keys_of_a_newer_version_opens(copy: Path) -> None:
    edit(copy, lambda document: document.update(kind="dual"))
    assert open_bundle(copy).manifest.model_name


def test_manifest_that_is_not_json(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        open_bundle(copy)


def test_folder_that_is_not_a_bundle(tmp_path: Path, small_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="looks like a checkpoint; export it first"):
        open_bundle(small_checkpoint)


def test_missing_or_short_weights(copy: Path) -> None:
    data = copy / "onnx" / "text_model.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"has {len(content) - 1} bytes, expected {len(content)} bytes"):
        open_bundle(copy)
    data.unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(copy)


def test_tokenizer_that_does_not_pad_to_the_tower(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="pads to 16 and truncates to 16 tokens, but the text tower takes exactly 64"):
        Tokenizer(small_bundle / "tokenizer.json", 64)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json", 64)
