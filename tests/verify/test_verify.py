"""The ``verify`` command: what it measures, and when it fails."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from support.checkpoints import make_naflex_checkpoint
from support.commands import assert_error, run, run_without
from support.images import save_all
from support.layouts import write_transformers5

from siglip_onnx.bundle import open_bundle
from siglip_onnx.config import SiglipConfig, TextConfig, VisionConfig
from siglip_onnx.demo import BUNDLE_PATH
from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.verify.accuracy import _order_agreement
from siglip_onnx.verify.samples import SAMPLE_TEXTS, sample_images
from siglip_onnx.verify.sizes import check_sizes


def test_every_variant_against_fp32(small_bundle: Path) -> None:
    result = run("verify", small_bundle, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["failures"] == []
    fp32, int8 = document["variants"]["fp32"], document["variants"]["int8"]
    assert fp32["vision_cosine_min"] == pytest.approx(1, abs=1e-6)
    assert fp32["logit_error_max"] == 0
    assert fp32["order_agreement"] == 1
    assert 0.999 < int8["text_cosine_min"] < 1
    assert int8["num_images"] == len(sample_images())
    assert int8["num_texts"] == len(SAMPLE_TEXTS)


def test_the_card_is_written_into_the_manifest(small_bundle: Path, copy: Path, tmp_path: Path) -> None:
    bundle = copy
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n赤い丸\n", encoding="utf-8")
    before = json.loads((bundle / "manifest.json").read_text())
    assert run("verify", bundle, "--texts", texts).exit_code == 0
    assert json.loads((bundle / "manifest.json").read_text()) == before
    assert run("verify", bundle, "--texts", texts, "--write-card").exit_code == 0
    after = json.loads((bundle / "manifest.json").read_text())
    card = after["variants"]["int8"].pop("accuracy")
    assert (card["inputs"], card["num_texts"]) == ("the user's images and texts", 2)
    before["variants"]["int8"].pop("accuracy")
    assert after["variants"]["int8"] == before["variants"]["int8"]
    assert sorted(path.name for path in bundle.iterdir()) == sorted(path.name for path in small_bundle.iterdir())


def test_no_card_is_written_through_a_link(copy: Path, tmp_path: Path) -> None:
    """In the cache of the Hugging Face Hub, files are links to blobs that are named by the hash of their content."""
    snapshot, blob = tmp_path / "models--a--b/snapshots/1", tmp_path / "models--a--b/blobs/1"
    shutil.copytree(copy, snapshot)
    blob.parent.mkdir()
    (snapshot / "manifest.json").rename(blob)
    (snapshot / "manifest.json").symlink_to("../../blobs/1")
    content = blob.read_bytes()
    assert_error(run("verify", snapshot, "--write-card"), 4, "is a link, as in the cache of another program")
    assert blob.read_bytes() == content


def test_a_variant_below_the_limit_fails(small_bundle: Path) -> None:
    result = run("verify", small_bundle, "--min-cosine", "0.9999999")
    assert_error(result, 1, "int8: cosine to fp32 is 0.999")
    assert "against fp32" in result.stdout


def test_own_images_and_texts(small_bundle: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    folder = tmp_path / "images"
    save_all(images, folder)
    (folder / "notes.txt").write_text("not an image")
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n赤い丸\n", encoding="utf-8")
    result = run("verify", small_bundle, "--images", folder, "--texts", texts, "--json")
    document = json.loads(result.stdout)
    assert (document["variants"]["int8"]["num_images"], document["variants"]["int8"]["num_texts"]) == (4, 2)
    assert "skipped" in result.stderr
    assert "notes.txt" in result.stderr


def test_every_stage_against_pytorch(checkpoint: Path, bundle: Path) -> None:
    result = run("verify", bundle, "--reference", checkpoint, "--json")
    assert result.exit_code == 0, result.stderr
    stages = {stage["stage"]: stage for stage in json.loads(result.stdout)["pytorch"]["fp32"]}
    assert stages["pixels"]["max_abs"] == 0
    assert stages["ids"]["max_abs"] == 0
    assert stages["vision embedding"]["max_abs"] <= 1e-5
    assert stages["text embedding"]["max_abs"] <= 1e-5
    assert stages["logits"]["max_abs"] <= 1e-4


def test_naflex_against_pytorch(tmp_path: Path) -> None:
    checkpoint = make_naflex_checkpoint(tmp_path / "naflex")
    export_bundle(checkpoint, tmp_path / "bundle")
    result = run("verify", tmp_path / "bundle", "--reference", checkpoint)
    assert result.exit_code == 0, result.stderr
    assert "fp32 against PyTorch" in result.stdout
    assert "int8 against PyTorch" in result.stdout


def test_checkpoint_of_transformers_5_against_pytorch(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path
) -> None:
    """Its configs and its scalars are read by transformers 4.57; other weights are one message."""
    newer = write_transformers5(small_checkpoint, tmp_path / "v5")
    result = run("verify", small_bundle, "--reference", newer, "--json")
    assert result.exit_code == 0, result.stderr
    for stages in json.loads(result.stdout)["pytorch"].values():
        assert [stage["max_abs"] for stage in stages if stage["stage"] in ("pixels", "ids")] == [0, 0]
    weights = load_file(newer / "model.safetensors")
    save_file(weights | {"logit_bias": weights["logit_bias"].repeat(2)}, newer / "model.safetensors", {"format": "pt"})
    assert_error(run("verify", small_bundle, "--reference", newer), 4, "weight 'logit_bias' has another shape")
    del weights["logit_bias"]
    save_file(weights, newer / "model.safetensors", {"format": "pt"})
    assert_error(run("verify", small_bundle, "--reference", newer), 4, "it lacks the weight 'logit_bias'")


def test_comparison_with_another_checkpoint_fails(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    """The comparison finds one changed weight and one changed filter."""
    other = Path(shutil.copytree(small_checkpoint, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["vision_model.encoder.layers.0.mlp.fc1.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    preprocessor = other / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text().replace('"resample": 2', '"resample": 3'))
    result = run("verify", small_bundle, "--reference", other)
    assert_error(result, 1, "fp32: difference of the pixels to PyTorch is")
    assert "fp32: difference of the vision embedding to PyTorch is" in result.stderr
    assert "difference of the text embedding" not in result.stderr


def test_a_checkpoint_of_other_sizes_is_named(checkpoint: Path) -> None:
    result = run("verify", BUNDLE_PATH, "--reference", checkpoint)
    assert_error(result, 4, "but the model has")
    assert "Give the checkpoint that it was exported from" in result.stderr


@pytest.mark.export
def test_a_checkpoint_of_the_other_family_is_named(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    """The sizes of a NaFlex checkpoint may be those of one of fixed resolution."""
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    vision = {key: value for key, value in config["vision_config"].items() if key != "image_size"}
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "siglip2", "vision_config": vision}))
    result = run("verify", small_bundle, "--reference", copy)
    assert_error(result, 4, "is of model_type 'siglip2', but the model is of 'siglip'")


def test_sizes_that_are_not_stated_are_the_default_ones(small_bundle: Path) -> None:
    config, other = open_bundle(small_bundle).config, SiglipConfig("siglip", VisionConfig(), TextConfig())
    check_sizes({"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}}, other, "x")
    check_sizes({}, config, "x")
    with pytest.raises(CheckpointError, match="has hidden_size 768 in its vision tower, but the model has 64"):
        check_sizes({"model_type": "siglip"}, config, "x")


def test_verify_names_what_is_missing(tmp_path: Path, small_checkpoint: Path, small_bundle: Path) -> None:
    export_bundle(small_checkpoint, tmp_path / "int8", precisions=["int8"])
    assert "has no fp32 variant to compare with; it has int8" in run("verify", tmp_path / "int8").stderr
    assert run("verify", tmp_path / "int8").exit_code == 4
    assert run("verify", tmp_path / "int8", "--reference", small_checkpoint).exit_code == 0
    assert "config.json does not exist" in run("verify", small_bundle, "--reference", tmp_path).stderr
    assert "is not a folder" in run("verify", small_bundle, "--images", tmp_path / "nowhere").stderr


def test_without_torch_the_reference_names_what_to_install(small_bundle: Path, small_checkpoint: Path) -> None:
    result = run_without("torch", "verify", small_bundle, "--reference", small_checkpoint)
    assert_error(result, 1, "--reference needs torch, which is not installed")


@pytest.mark.parametrize("module", ["verify.accuracy", "verify.published", "bench.run", "cli.verify"])
def test_verify_and_bench_need_no_export_extra(module: str) -> None:
    extra = ("onnx", "onnx_ir", "safetensors", "ml_dtypes", "sentencepiece")
    code = f"import sys; sys.modules |= dict.fromkeys({extra!r}); import siglip_onnx.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_order_agreement_counts_pairs() -> None:
    expected = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert _order_agreement(expected, expected) == 1
    assert _order_agreement(np.array([[2.0, 3.0, 1.0]], np.float32), expected) == pytest.approx(2 / 3)
    assert _order_agreement(expected[:, :1], expected[:, :1]) == 1


def test_order_agreement_of_many_pairs_is_estimated() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(300, 1000)).astype(np.float32)
    logits = expected + rng.normal(size=expected.shape).astype(np.float32)
    exact = np.mean([_order_agreement(logits[row : row + 1], expected[row : row + 1]) for row in range(30)])
    tracemalloc.start()
    assert _order_agreement(logits, expected) == pytest.approx(exact, abs=0.003)
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()
    assert _order_agreement(expected, expected) == 1


@pytest.mark.export
def test_a_reference_is_loaded_without_code_and_sizes_that_its_config_names(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path
) -> None:
    """transformers would download and import a kernel of that name, and make weights of any size."""
    from siglip_onnx.verify.pytorch import load_reference

    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())

    def write(**changes: object) -> None:
        parts = {name: config[name] | changes for name in ("vision_config", "text_config")}
        (checkpoint / "config.json").write_text(json.dumps(config | changes | parts))

    kernel = "someone/kernel"
    write(attn_implementation=kernel, _attn_implementation=kernel, auto_map={"AutoModel": f"{kernel}--code.Model"})
    reference = load_reference(checkpoint).config
    for each in (reference, reference.vision_config, reference.text_config):
        assert each._attn_implementation == "sdpa"
    write(quantization_config={"quant_method": "gptq", "bits": 4})
    assert not hasattr(load_reference(checkpoint).config, "quantization_config")
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    assert_error(run("verify", small_bundle, "--reference", checkpoint), 4, "has adapter_config.json; a reference is")
    (checkpoint / "adapter_config.json").unlink()
    write(vocab_size=2_000_000_000)
    assert_error(
        run("verify", small_bundle, "--reference", checkpoint), 4, "has vocab_size 2000000000 in its text tower, but"
    )
    write(num_labels=2_000_000_000)
    assert run("verify", small_bundle, "--reference", checkpoint).exit_code == 0
