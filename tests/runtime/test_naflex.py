"""NaFlex against transformers: the grid, the patches, the positions and both towers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.checkpoints import make_naflex_checkpoint
from support.images import encode
from support.manifests import write_manifest
from transformers import Siglip2ImageProcessor, Siglip2Model
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.manifest import read_manifest
from siglip_onnx.config import LevelsConfig, NaflexPreprocessorConfig
from siglip_onnx.errors import BundleError, CheckpointError, SiglipOnnxError
from siglip_onnx.explain import explain, score_with_model
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.image.preprocess import NaflexPreprocessor, choose_grid, resize_positions

pytestmark = pytest.mark.export
SIZES = [(5, 2), (2, 900), (900, 2), (64, 64), (480, 640), (639, 479), (37, 1000), (3000, 2000), (255, 257)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_naflex_checkpoint(tmp_path_factory.mktemp("checkpoint") / "naflex")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "naflex"
    export_bundle(checkpoint, out)
    return out


def image_of_size(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("max_num_patches", [64, 128, 256, 576, 1024])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_grid_equals_the_reference(max_num_patches: int, patch_size: int) -> None:
    rng = np.random.default_rng(max_num_patches)
    for height, width in [*SIZES, *rng.integers(1, 5000, (100, 2)).tolist()]:
        expected = get_image_size_for_max_num_patches(height, width, patch_size, max_num_patches)
        rows, columns = choose_grid(height, width, patch_size, max_num_patches)
        assert (rows * patch_size, columns * patch_size) == expected
        assert rows * columns <= max(max_num_patches, rows, columns)


@pytest.mark.parametrize("max_num_patches", [64, 256, 1024])
@pytest.mark.parametrize("size", SIZES)
def test_patches_and_mask_are_bit_equal(size: tuple[int, int], max_num_patches: int) -> None:
    preprocess = NaflexPreprocessor(
        NaflexPreprocessorConfig(max_num_patches=max_num_patches), np.zeros((4, 8), np.float32)
    )
    image = image_of_size(size)
    inputs = preprocess(image)
    expected = Siglip2ImageProcessor(max_num_patches=max_num_patches)([image], return_tensors="np")
    count = inputs["pixel_values"].shape[1]
    assert_array_equal(inputs["pixel_values"], expected["pixel_values"][:, :count])
    assert not expected["pixel_values"][:, count:].any()
    assert_array_equal(inputs["pixel_attention_mask"], expected["pixel_attention_mask"][:, :count])
    assert expected["pixel_attention_mask"].sum() == count


@pytest.mark.parametrize("grid", [(16, 16), (8, 8), (32, 30), (1, 256), (5, 51), (23, 11), (1, 1), (16, 2)])
def test_positions_are_resized_as_by_pytorch(grid: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=(16, 16, 6)).astype(np.float32)
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(
        torch.from_numpy(table), torch.tensor([grid]), max_length=grid[0] * grid[1]
    )[0]
    assert_allclose(resize_positions(table, *grid), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("rows", [3, 9, 40])
def test_positions_of_one_column_are_those_of_one_row(rows: int) -> None:
    """PyTorch 2.13 is right for one row and wrong for one column, where its strides are ambiguous."""
    table = np.random.default_rng(0).normal(size=(6, 6, 8)).astype(np.float32)
    sideways = torch.from_numpy(table).permute(2, 1, 0)[np.newaxis]
    expected = torch.nn.functional.interpolate(sideways, (1, rows), mode="bilinear", antialias=True)[0, :, 0].T
    assert_allclose(resize_positions(table, rows, 1), expected.numpy(), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("max_num_patches", [None, 9, 100])
def test_fp32_embeddings(checkpoint: Path, bundle: Path, max_num_patches: int | None) -> None:
    model = siglip_onnx.load(bundle, variant="fp32", max_num_patches=max_num_patches)
    reference = Siglip2Model.from_pretrained(checkpoint).eval()
    images = [image_of_size(size) for size in SIZES if size != (900, 2)]  # one column of patches, see above
    settings = {"max_num_patches": max_num_patches} if max_num_patches else {}
    inputs = Siglip2ImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt", **settings)
    expected = torch.nn.functional.normalize(reference.get_image_features(**inputs)).numpy()
    assert_allclose(model.encode_images(images), expected, atol=1e-5)

    texts = ["a photo of a cat", "赤い丸", ""]
    ids = torch.from_numpy(model.tokenize(texts))
    expected = torch.nn.functional.normalize(reference.get_text_features(ids)).numpy()
    assert_allclose(model.encode_texts(texts), expected, atol=1e-5)


def test_other_patch_counts_are_other_embedding_spaces(bundle: Path) -> None:
    spaces = {siglip_onnx.load(bundle, max_num_patches=count).embedding_space for count in (None, 40, 41)}
    assert len(spaces) == 2


def test_processes_that_decode_give_the_same_embeddings(bundle: Path) -> None:
    image = image_of_size((300, 70))
    with siglip_onnx.load(bundle, isolate_decoding=True) as model:
        expected = siglip_onnx.load(bundle).encode_images(image)
        assert_array_equal(model.encode_images(encode(image, "PNG")), expected)
        (row,) = model.stream_embeddings([encode(image, "PNG")])
        assert (row.width, row.height) == (70, 300)  # type: ignore[union-attr]


def test_masked_padding_changes_nothing(bundle: Path) -> None:
    """Other users of the graph may batch images of different grids."""
    model = siglip_onnx.load(bundle, variant="fp32")
    (inputs,) = model.preprocess(image_of_size((90, 50)))
    padded: dict[str, Any] = {
        name: np.pad(array, [(0, 0), (0, 5)] + [(0, 0)] * (array.ndim - 2), constant_values=0 if "mask" in name else 3)
        for name, array in inputs.items()
    }
    tower = model.vision.session
    assert_allclose(tower.run("pooler_output", padded), tower.run("pooler_output", inputs), atol=1e-5)


def test_int8_stays_near_fp32(bundle: Path) -> None:
    fp32, int8 = (siglip_onnx.load(bundle, variant=variant) for variant in ("fp32", "int8"))
    images = [image_of_size(size) for size in SIZES]
    assert (fp32.encode_images(images) * int8.encode_images(images)).sum(axis=1).min() > 0.999


def test_wrong_patches_and_positions_are_refused(bundle: Path, small_bundle: Path) -> None:
    with pytest.raises(SiglipOnnxError, match=r"32x32 pixels; max_num_patches is for NaFlex models only"):
        siglip_onnx.load(small_bundle, max_num_patches=64)
    with pytest.raises(SiglipOnnxError, match="max_num_patches is 0, expected 1 to 4096"):
        siglip_onnx.load(bundle, max_num_patches=0)
    positions = bundle / "position_embeddings.npy"
    content = positions.read_bytes()
    try:
        np.save(positions, np.zeros((48, 36), np.float32))
        with pytest.raises(BundleError, match=r"shape \(48, 36\), expected float32 of \(36, 48\)"):
            siglip_onnx.SigLIP(open_bundle(bundle))
    finally:
        positions.write_bytes(content)


def test_positions_of_gigabytes_are_not_read(bundle: Path) -> None:
    """A sparse file takes no room on a disk, nor in an archive."""
    opened = open_bundle(bundle)
    positions = bundle / "position_embeddings.npy"
    content = positions.read_bytes()
    try:
        with positions.open("r+b") as file:
            file.truncate(3_000_000_000)
        with pytest.raises(BundleError, match=r"cannot be read: it has more than 7,936 bytes\."):
            opened.read_positions()
    finally:
        positions.write_bytes(content)


def test_published_preprocessing_oracle(material: Path) -> None:
    """Grids, patch order, normalization and position resizing that another project recorded from the reference."""
    oracle = json.loads((material / "goldens/siglip2_naflex512_coremlit/preprocess.json").read_text())
    for row in oracle["budget_table"]:
        assert list(choose_grid(row["height"], row["width"], 16, 512)) == row["grid"]
    for case in oracle["pos_lift"]["cases"]:
        table = np.array(case["input"], np.float32).reshape(case["src_h"], case["src_w"], -1)
        resized = resize_positions(table, case["dst_h"], case["dst_w"])
        assert_allclose(resized.ravel(), case["values"], atol=oracle["pos_lift"]["tolerance"])
    patchify = oracle["patchify"]
    # The oracle numbers its pixels; their last bytes are enough to see the order.
    pixels = (np.array(patchify["pixels"]) % 256).astype(np.uint8)
    pixels = pixels.reshape(patchify["grid_h"] * 16, patchify["grid_w"] * 16, 3)
    plain = NaflexPreprocessorConfig(
        max_num_patches=4, levels=LevelsConfig(rescale_factor=1, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    )
    patches = NaflexPreprocessor(plain, np.zeros((1, 1), np.float32))(Image.fromarray(pixels))["pixel_values"]
    assert_array_equal(patches.ravel(), np.array(patchify["patches"]) % 256)


def test_smallest_image_is_one_patch_wide(bundle: Path) -> None:
    """One pixel, from which the reference cannot tell height from channels."""
    (inputs,) = siglip_onnx.load(bundle).preprocess(image_of_size((1, 1)))
    assert inputs["pixel_values"].shape == (1, 36, 192)


def test_preprocessor_of_other_patches_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    Siglip2ImageProcessor(patch_size=16).save_pretrained(copy)
    with pytest.raises(CheckpointError, match=r"makes patches of 16x16 pixels, but the vision tower takes 8x8"):
        export_bundle(copy, tmp_path / "out")


def test_unlisted_positions_are_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = read_manifest(copy)
    files = {name: facts for name, facts in manifest.files.items() if name != "position_embeddings.npy"}
    write_manifest(copy, replace(manifest, files=files))
    with pytest.raises(BundleError, match=r"does not list position_embeddings\.npy"):
        open_bundle(copy)


def test_explanation_of_an_image_of_any_aspect(bundle: Path) -> None:
    model = siglip_onnx.load(bundle)
    explanation = explain(image_of_size((60, 140)), score_with_model(model, ["a", "b"]))
    assert explanation.matches == model.classify(image_of_size((60, 140)), ["a", "b"])
    assert np.abs(explanation.effects).max() > 0
