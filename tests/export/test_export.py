"""The exported bundle: its graphs, files and manifest, and the checkpoints that are refused."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint, make_naflex_checkpoint
from support.commands import assert_error, run
from support.manifests import write_document
from transformers import SiglipImageProcessor, SiglipModel

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.manifest import SUFFIXES
from siglip_onnx.demo import BUNDLE_PATH
from siglip_onnx.errors import AccuracyError, BundleError, CheckpointError, SiglipOnnxError
from siglip_onnx.export.checkpoint import CheckedWeights
from siglip_onnx.export.int8 import quantize_columns, quantize_rows
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.sources.tensor import release_pages
from siglip_onnx.verify.samples import sample_images


@pytest.fixture
def copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_shards_and_bfloat16_are_read(copy: Path, small_bundle: Path, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", "square", max_shard_size="100KB")
    assert not (sharded / "model.safetensors").exists()
    export_bundle(sharded, tmp_path / "from_shards", precisions=["fp32"])
    expected = siglip_onnx.load(small_bundle, variant="fp32").encode_texts(["a cat"])
    assert_array_equal(siglip_onnx.load(tmp_path / "from_shards").encode_texts(["a cat"]), expected)

    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, copy / "model.safetensors")
    export_bundle(copy, tmp_path / "from_bf16", precisions=["fp32"])
    assert_allclose(siglip_onnx.load(tmp_path / "from_bf16").encode_texts(["a cat"]), expected, atol=0.02)


def test_graphs_are_valid_and_fused(small_bundle: Path) -> None:
    """One attention operator per layer, and no operators that a fusing pass would still replace."""
    for tower, layers in (("vision", 2), ("text", 2)):
        path = small_bundle / "onnx" / f"{tower}_model.onnx"
        operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
        assert operators.count("MultiHeadAttention") == layers
        assert not {"Shape", "Slice", "Split", "Erf", "Tanh", "ReduceMean"} & set(operators)
        assert operators.count("LayerNormalization") == 2 * layers + (2 if tower == "vision" else 1)


def test_int8_weights_are_int8_and_small(small_bundle: Path) -> None:
    for tower, linear in (("vision", 2 * 6 + 3), ("text", 2 * 6 + 1)):
        model = onnx.load(small_bundle / "onnx" / f"{tower}_model_quantized.onnx", load_external_data=False)
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("DynamicQuantizeMatMul") == linear
        int8 = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
        assert len(int8) == linear + (tower == "text")
    variants = siglip_onnx.load(small_bundle).bundle.manifest.variants
    assert variants["int8"].size_bytes < 0.6 * variants["fp32"].size_bytes
    assert variants["int8"].quantization["text"]["token_tables"] == 1


def test_quantized_rows_and_columns_are_close() -> None:
    matrix = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    matrix[3] = 0
    quantized, scales = quantize_rows(matrix)
    assert quantized.dtype == np.int8
    assert np.abs(quantized).max() == 127
    assert_allclose(quantized * scales, matrix, atol=float(scales.max()) / 2 + 1e-6)
    assert scales[3] == 1
    by_column, column_scales = quantize_columns(matrix)
    assert_array_equal(by_column, quantize_rows(matrix.T)[0].T)
    assert column_scales.shape == (7,)


def test_accuracy_card_is_in_the_manifest(small_bundle: Path) -> None:
    variants = siglip_onnx.load(small_bundle).bundle.manifest.variants
    assert variants["fp32"].accuracy["vision_cosine_min"] == pytest.approx(1)
    card = variants["int8"].accuracy
    assert 0.999 < card["vision_cosine_min"] < 1
    assert card["num_images"] >= 16
    assert card["num_texts"] == 16
    assert 0 < card["logit_error_mean"] < card["logit_error_max"]


def test_fp32_is_not_shipped_unless_requested(small_checkpoint: Path, tmp_path: Path) -> None:
    (variant,) = export_bundle(small_checkpoint, tmp_path / "out", precisions=["int8"])
    assert variant.name == "int8"
    names = {path.name for path in (tmp_path / "out" / "onnx").iterdir()}
    assert names == {f"{tower}_model_quantized.onnx{end}" for tower in ("vision", "text") for end in ("", "_data")}
    files = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert files == {
        "config.json", "manifest.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert siglip_onnx.load(tmp_path / "out").bundle.verify_files() == []


def test_export_is_reproducible(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    export_bundle(small_checkpoint, tmp_path / "again")
    for path in small_bundle.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(small_bundle)).read_bytes(), path


def test_the_vocabulary_is_never_in_memory_as_a_whole(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of rows give the same files as one block, and the table is not read in any other way."""
    export_bundle(small_checkpoint, tmp_path / "whole", precisions=SUFFIXES)
    read = CheckedWeights.__getitem__

    def checked_read(weights: CheckedWeights, name: str) -> Any:
        assert "token_embedding" not in name
        return read(weights, name)

    monkeypatch.setattr(CheckedWeights, "__getitem__", checked_read)
    monkeypatch.setattr("siglip_onnx.export.checkpoint.ROWS_AT_ONCE", 37)
    export_bundle(small_checkpoint, tmp_path / "blocks", precisions=SUFFIXES)
    for path in (tmp_path / "whole" / "onnx").iterdir():
        assert path.read_bytes() == (tmp_path / "blocks" / "onnx" / path.name).read_bytes(), path.name


def test_damage_in_any_block_of_the_vocabulary_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "text_model.embeddings.token_embedding.weight"
    weights = load_file(copy / "model.safetensors")
    weights[name][-1, -1] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("siglip_onnx.export.checkpoint.ROWS_AT_ONCE", 37)
    with pytest.raises(CheckpointError, match=f"{name}' holds NaN or infinity"):
        export_bundle(copy, copy / "out", precisions=["int8"])


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="Unix")
def test_pages_of_a_mapped_file_are_released(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 64 * 2**20, np.uint8)
    content.tofile(tmp_path / "data")
    mapped = np.memmap(tmp_path / "data", np.uint8, mode="r")
    rows = mapped[4096:].view(np.float32).reshape(-1, 1024)
    assert_array_equal(mapped, content)
    before = resident_bytes()
    release_pages(rows)
    assert before - resident_bytes() > 50 * 2**20
    assert_array_equal(mapped, content)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_progress_moves_within_the_steps(small_checkpoint: Path, tmp_path: Path) -> None:
    """Every calibration input, every compared input and every large weight is reported."""
    steps: dict[str, list[tuple[int, int]]] = {}

    def progress(step: str, done: int, total: int) -> None:
        steps.setdefault(step, []).append((done, total))

    export_bundle(small_checkpoint, tmp_path / "out", precisions=["int8"], progress=progress)
    num_images = len(sample_images())
    for step in ("vision tower, calibrating", "vision tower, checking", "int8 vision tower, comparing"):
        assert steps[step] == [(number, num_images) for number in range(1, num_images + 1)]
    assert steps["text tower, writing weights"]


def test_precisions_are_separated_by_commas_or_repeated(small_checkpoint: Path, tmp_path: Path) -> None:
    for number, options in enumerate((["int8,fp16"], ["fp16, int8", "int8"])):
        out = tmp_path / str(number)
        arguments = [word for option in options for word in ("--precision", option)]
        assert run("export", small_checkpoint, out, *arguments).exit_code == 0
        assert set(siglip_onnx.load(out).bundle.manifest.variants) == {"int8", "fp16"}
    result = run("export", small_checkpoint, tmp_path / "out", "--precision", "int8,fp8")
    assert_error(result, 2, "'fp8' is not one of")


def test_existing_folder_is_kept_unless_overwritten(small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match=r"exists already; .* --overwrite"):
        export_bundle(small_checkpoint, out)
    assert (out / "mine.txt").read_text() == "keep"
    with pytest.raises(CheckpointError, match="is not a siglip_onnx bundle; refusing to overwrite it"):
        export_bundle(small_checkpoint, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    for precision in ("fp32", "int8"):
        export_bundle(small_checkpoint, out, precisions=[precision], overwrite=True)
        assert list(siglip_onnx.load(out).bundle.manifest.variants) == [precision]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_checkpoint_itself_is_never_replaced(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a siglip_onnx bundle"):
        export_bundle(copy, copy, overwrite=True)
    assert (copy / "model.safetensors").exists()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="is not a siglip_onnx bundle"):
        export_bundle(copy, file, overwrite=True)
    with pytest.raises(SiglipOnnxError, match="cannot be written"):
        export_bundle(copy, file / "out")
    bundle = tmp_path / "bundle"
    export_bundle(copy, bundle)
    (bundle / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="also holds thesis"):
        export_bundle(copy, bundle, overwrite=True)
    assert (bundle / "thesis.txt").exists()


def test_a_bundle_that_appears_meanwhile_is_not_replaced(small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(line: str) -> None:
        if line.startswith("Writing fp32"):
            shutil.copytree(BUNDLE_PATH, out, dirs_exist_ok=True)

    with pytest.raises(CheckpointError, match=r"exists already; .* --overwrite"):
        export_bundle(small_checkpoint, out, precisions=["fp32"], report=appear)
    assert open_bundle(out).manifest.model_name == "demo"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    export_bundle(small_checkpoint, out, precisions=["fp32"], report=appear, overwrite=True)
    assert open_bundle(out).manifest.model_name != "demo"


CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CONFIG, lambda d: d.update(model_type="clip"), "model_type 'clip', expected 'siglip'"),
        (
            CONFIG,
            lambda d: d.update(model_type="siglip2"),
            "has image_size, .* may change the embeddings",
        ),
        (CONFIG, lambda d: d["vision_config"].update(vision_use_head=False), "without its pooling head"),
        (CONFIG, lambda d: d["vision_config"].update(hidden_act="relu"), "hidden_act 'relu'"),
        (CONFIG, lambda d: d["vision_config"].update(num_attention_heads=7), "7 attention heads"),
        (CONFIG, lambda d: d["text_config"].update(projection_size=32), "64 dimensions and texts in 32"),
        (CONFIG, lambda d: d["text_config"].update(num_hidden_layers=3), r"lacks 16 of \d+ weights"),
        (CONFIG, lambda d: d["text_config"].update(vocab_size=301), r"shape \(300, 64\), .* implies \(301, 64\)"),
        (
            PREPROCESSOR,
            lambda d: d.update(size={"height": 64, "width": 64}),
            "makes images of 64x64 pixels, but the vision tower takes 32x32",
        ),
        (PREPROCESSOR, lambda d: d.update(size={"shortest_edge": 64}), "shortest_edge"),
        (PREPROCESSOR, lambda d: d.update(do_normalize=False), "do_normalize: false"),
        (PREPROCESSOR, lambda d: d.update(do_center_crop=True), "do_center_crop: true, .* never cropped"),
        (PREPROCESSOR, lambda d: d.update(do_pad=True), "do_pad: true"),
        (PREPROCESSOR, lambda d: d["size"].update(height=None), "height None, expected a whole number"),
        (PREPROCESSOR, lambda d: d.update(resample=[3]), r"resample \[3\]"),
        (PREPROCESSOR, lambda d: d.update(rescale_factor="x"), "rescale_factor 'x', expected 1 finite number"),
        (PREPROCESSOR, lambda d: d.update(image_mean=[0.5] * 4), "image_mean .* expected 3 finite number"),
        (PREPROCESSOR, lambda d: d.update(image_std=[0.5, 0, 0.5]), "image_std must be non-zero"),
        (CONFIG, lambda d: d.update(vision_config=[1]), "is a list, expected an object"),
        (CONFIG, lambda d: d["text_config"].update(hidden_size="64"), "hidden_size '64', expected a whole number"),
        (CONFIG, lambda d: d["text_config"].update(num_hidden_layers=0), "num_hidden_layers 0"),
        (CONFIG, lambda d: d["vision_config"].update(num_channels=4), "num_channels 4; images are RGB"),
        (CONFIG, lambda d: d["vision_config"].update(layer_norm_eps="tiny"), "layer_norm_eps 'tiny'"),
        (CONFIG, lambda d: d["text_config"].update(use_qk_norm=True), "has use_qk_norm, .* may change the embeddings"),
        (CONFIG, lambda d: d["vision_config"].update(num_registers=4), "has num_registers"),
        (CONFIG, lambda d: d["text_config"].update(pruned_heads={"0": [1]}), "has pruned_heads"),
        (PREPROCESSOR, lambda d: d.update(resample=9), "resample 9"),
        (CONFIG, lambda d: d["vision_config"].update(image_size=10**30), "image_size of 100 bits, expected at most"),
        (
            CONFIG,
            lambda d: d["text_config"].update(num_hidden_layers=10**9),
            "layers 1000000000, expected at most 1,000",
        ),
    ],
)
def test_checkpoints_that_are_refused(
    copy: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_json(copy / file, change)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("file", "missing", "damaged"),
    [
        (CONFIG, "config.json does not exist", "config.json"),
        (PREPROCESSOR, "preprocessor_config.json does not exist", "preprocessor_config.json"),
        ("model.safetensors", "neither model.safetensors nor", "model.safetensors cannot be read as safetensors"),
        ("spiece.model", "neither spiece.model nor tokenizer.json", "spiece.model is not a SentencePiece model"),
    ],
)
def test_missing_and_damaged_files_are_named_and_nothing_is_written(
    copy: Path, tmp_path: Path, file: str, missing: str, damaged: str
) -> None:
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=missing):
        export_bundle(copy, tmp_path / "out")
    (copy / file).write_bytes(b"\x93damaged")
    with pytest.raises(CheckpointError, match=damaged):
        export_bundle(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_naflex_checkpoint_of_too_many_patches_is_refused(tmp_path: Path) -> None:
    checkpoint = make_naflex_checkpoint(tmp_path / "naflex", max_num_patches=5000)
    with pytest.raises(CheckpointError, match="max_num_patches 5000, expected at most 4096"):
        export_bundle(checkpoint, tmp_path / "out")


def test_shard_index_with_a_missing_shard(tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", "square", max_shard_size="100KB")
    next(iter(sorted(sharded.glob("model-*.safetensors")))).unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00001-of-\d+\.safetensors"):
        export_bundle(sharded, tmp_path / "out")


def test_gelu_without_tanh(small_checkpoint: Path, tmp_path: Path, image: Image.Image) -> None:
    """Fine-tuned checkpoints may use the exact GELU; the graph must then use it too."""
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "gelu"))
    edit_json(copy / CONFIG, lambda d: d["vision_config"].update(hidden_act="gelu"))
    export_bundle(copy, tmp_path / "out", precisions=["fp32"])
    pixels = SiglipImageProcessor.from_pretrained(copy)([image], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = torch.nn.functional.normalize(SiglipModel.from_pretrained(copy).get_image_features(pixels))
    assert_allclose(siglip_onnx.load(tmp_path / "out").encode_images(image), expected.numpy(), atol=1e-5)


def make_blocks_uneven(checkpoint: Path, layer: str, factor: float = 100.0) -> None:
    """Give one input in each block of 32 of the MLP's second layer large weights: the others get few levels."""
    weights = load_file(checkpoint / "model.safetensors")
    weights[f"{layer}.mlp.fc2.weight"][:, ::32] *= factor
    for part in ("weight", "bias"):
        weights[f"{layer}.mlp.fc1.{part}"][::32] /= factor
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_a_variant_below_the_limit_is_refused(copy: Path, tmp_path: Path) -> None:
    make_blocks_uneven(copy, "vision_model.encoder.layers.1")
    with pytest.raises(
        AccuracyError, match=r"q4 reaches only a cosine of .* \(vision .*, text .*\), expected at least 0\.95"
    ):
        export_bundle(copy, tmp_path / "out", precisions=["q4"])
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    (accepted,) = export_bundle(copy, tmp_path / "out", precisions=["q4"], min_cosine=0)
    assert accepted.accuracy.vision_cosine_min < 0.95
    card = siglip_onnx.load(tmp_path / "out").bundle.manifest.variants["q4"].accuracy
    assert card["vision_cosine_min"] < 0.95


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_model.encoder.layers.0.mlp.fc1.weight", float("nan"), "holds NaN or infinity"),
        ("text_model.embeddings.token_embedding.weight", float("inf"), "holds NaN or infinity"),
        ("logit_scale", 100.0, "before exp"),
        ("text_model.head.weight", torch.int8, "is of type I8, expected one of F32"),
    ],
)
def test_weights_that_are_refused(
    copy: Path, tmp_path: Path, name: str, value: float | torch.dtype, message: str
) -> None:
    weights = load_file(copy / "model.safetensors")
    if isinstance(value, torch.dtype):
        weights[name] = weights[name].to(value)
    else:
        weights[name].view(-1)[0] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SiglipOnnxError, match=message):
        export_bundle(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_other_preprocessing_is_another_embedding_space(copy: Path, small_bundle: Path, tmp_path: Path) -> None:
    edit_json(copy / PREPROCESSOR, lambda d: d.update(resample=3))
    export_bundle(copy, tmp_path / "out")
    spaces = {siglip_onnx.load(path).embedding_space for path in (small_bundle, tmp_path / "out")}
    assert len(spaces) == 2


def test_a_kill_leaves_nothing_behind(small_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "siglip_onnx", "export", str(small_checkpoint), str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "Comparing" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        process.wait(timeout=60)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_contradictory_files_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy"))
    write_document(copy, json.loads((copy / "manifest.json").read_text()) | {"embedding_dim": 7})
    with pytest.raises(BundleError, match=r"7 dimensions, config\.json says 64"):
        siglip_onnx.load(copy)
    write_document(copy, json.loads((copy / "manifest.json").read_text()) | {"embedding_dim": 64, "logit_scale": 1000})
    with pytest.raises(BundleError, match="logit_scale is 1000"):
        siglip_onnx.load(copy)
    write_document(copy, json.loads((copy / "manifest.json").read_text()) | {"logit_scale": 4})
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        siglip_onnx.load(copy)
