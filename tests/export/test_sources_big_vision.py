"""The .npz files of big_vision: both layouts, config from shapes, and hostile archives."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.checkpoints import make_checkpoint, make_naflex_checkpoint
from support.layouts import Arrays, assert_embeddings_of, big_vision_arrays, weights_of

from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.sources.archive import Archive


@pytest.fixture(scope="module")
def arrays(small_checkpoint: Path) -> Arrays:
    return big_vision_arrays(small_checkpoint, scan=False)


@pytest.mark.parametrize("scan", [False, True])
def test_big_vision(small_checkpoint: Path, tmp_path: Path, image: Image.Image, scan: bool) -> None:
    file = tmp_path / "siglip2_b16_32.npz"
    np.savez(file, **big_vision_arrays(small_checkpoint, scan=scan))
    export_bundle(file, tmp_path / "out", precisions=["fp32"], tokenizer=small_checkpoint / "spiece.model")
    assert_embeddings_of(small_checkpoint, tmp_path / "out", image)
    with open_checkpoint(file, tokenizer=small_checkpoint) as opened, open_checkpoint(small_checkpoint) as expected:
        assert opened.config == expected.config
        assert opened.preprocessor == expected.preprocessor
        for name, array in weights_of(small_checkpoint).items():
            assert_array_equal(opened.weights[name], array)


@pytest.mark.parametrize("shape", ["narrow_text_is_projected", "naflex"])
def test_shapes(tmp_path: Path, shape: str) -> None:
    path = tmp_path / shape
    checkpoint = make_naflex_checkpoint(path) if shape == "naflex" else make_checkpoint(path, shape)
    arrays = {name.removeprefix("params/"): array for name, array in big_vision_arrays(checkpoint, scan=True).items()}
    np.savez_compressed(tmp_path / "model.npz", **arrays)
    with open_checkpoint(tmp_path / "model.npz", tokenizer=checkpoint) as opened:
        assert opened.config.model_type == ("siglip2" if shape == "naflex" else "siglip")
        for name, array in weights_of(checkpoint).items():
            assert_array_equal(opened.weights[name], array)


def test_bfloat16_two_tables_of_positions_and_no_projection(small_checkpoint: Path, arrays: Arrays,
                                                            tmp_path: Path) -> None:  # fmt: skip
    changed = {name: array.astype(ml_dtypes.bfloat16).view("V2") for name, array in arrays.items()}
    del changed["params/txt/head/kernel"], changed["params/txt/head/bias"]
    more = np.full((1, 16, 64), 0.25, np.float32)
    np.savez(tmp_path / "model.npz", **changed, **{"params/txt/Encoder_0/pos_embedding": more})
    weights = weights_of(small_checkpoint)
    weights["text_model.embeddings.position_embedding.weight"] += 0.25
    weights |= {"text_model.head.weight": np.eye(64), "text_model.head.bias": np.zeros(64)}
    with open_checkpoint(tmp_path, tokenizer=small_checkpoint) as opened:
        for name, array in weights.items():
            assert_allclose(opened.weights[name], array, rtol=0.01, atol=1e-3, err_msg=name)


def test_a_tokenizer_is_required(arrays: Arrays, small_checkpoint: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(CheckpointError, match="has no tokenizer; give the one of its 300 pieces with --tokenizer FILE"):
        export_bundle(tmp_path / "model.npz", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"missing\.model is not a file; SigLIP needs its tokenizer"):
        export_bundle(tmp_path / "model.npz", tmp_path / "out", tokenizer=tmp_path / "missing.model")
    with pytest.raises(CheckpointError, match="has its own tokenizer"):
        export_bundle(small_checkpoint, tmp_path / "out", tokenizer=small_checkpoint / "spiece.model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def header(shape: str, dtype: str = "<f4") -> bytes:
    """Return the start of an .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(content: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("params/img/embedding/kernel.npy", content)
    return buffer.getvalue()


def saved(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is not an archive of weights"),
        (lambda: b"PK\x03\x04 nonsense", "is not an archive of weights"),
        (lambda: archive(saved(np.array([print], object))), r"kernel\.npy is of type \|O, expected one of <f4"),
        (lambda: archive(saved(np.zeros(3, np.int32))), "is of type <i4"),
        (lambda: archive(saved(np.zeros(3, ">f4"))), "is of type >f4"),
        (lambda: archive(header("(10**30,)")), "the header of .* cannot be read"),
        (lambda: archive(header(f"({10**30},)")), "which is not what its shape says"),
        (lambda: archive(header("(1000000, 1000000)") + bytes(64)), "has 192 bytes, which is not what its shape says"),
        (lambda: archive(header("(-4, -4)") + bytes(64)), "not what its shape says"),
        (lambda: archive(header(f"(0x{'f' * 9000},)")), "not what its shape says"),
        (lambda: archive(header("(1,) * 2")), "the header of .* cannot be read"),
        (lambda: archive(header(f"({'1,' * 65})") + bytes(4)), "not what its shape says"),
        (lambda: archive(header("(" * 500)), "the header of .* cannot be read"),
        (lambda: archive(header("(0, 0, 3, 0)")), "not what its shape says"),
        (lambda: archive(bytes(200)), "the header of .* cannot be read"),
        (
            lambda: archive(header("(5000000,)") + bytes(20_000_000), compression=zipfile.ZIP_DEFLATED),
            "it would unpack from .* to 20,000,128 bytes",
        ),
        (lambda: archive(saved(np.zeros(9)), compression=zipfile.ZIP_LZMA), "compressed in an unknown way"),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, content: Callable[[], bytes], message: str) -> None:
    file = tmp_path / "model.npz"
    file.write_bytes(content())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            export_bundle(file, tmp_path / "out", tokenizer=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("img/Transformer/encoderblock_1/LayerNorm_0/scale", None, "lacks the weight 'img/Transformer/encoderblock_1/"),
        (
            "img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
            (64, 64),
            "expected 3 dimensions",
        ),
        ("img/Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel", (64, 127), "but config.json implies"),
        ("img/pos_embedding", (1, 15, 64), "but config.json implies"),
        ("img/embedding/kernel", (8, 8, 3), "expected 2 or 4 dimensions"),
        ("txt/pos_embedding", (16,), "expected 2 or 3 dimensions"),
        ("txt/Embed_0/embedding", (), "expected 2 dimensions"),
        ("t", (2,), "which cannot become"),
    ],
)
def test_arrays_that_are_refused(
    arrays: Arrays, small_checkpoint: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    changed = dict(arrays)
    del changed[f"params/{name}"]
    if shape is not None:
        changed[f"params/{name}"] = np.zeros(shape, np.float32)
    np.savez(tmp_path / "model.npz", **changed)
    with pytest.raises(CheckpointError, match=message):
        export_bundle(tmp_path / "model.npz", tmp_path / "out", tokenizer=small_checkpoint)
    assert not (tmp_path / "out").exists()


def test_other_arrays_of_a_tower_are_refused(arrays: Arrays, small_checkpoint: Path, tmp_path: Path) -> None:
    """For example the projection of images that other models of big_vision have."""
    np.savez(tmp_path / "model.npz", **arrays, **{"params/img/head/kernel": np.eye(64, dtype=np.float32)})
    with pytest.raises(
        CheckpointError, match="has 1 weights that a SigLIP does not have, the first is 'img/head/kernel'"
    ):
        open_checkpoint(tmp_path / "model.npz", tokenizer=small_checkpoint)


def test_other_parameters_are_reported(arrays: Arrays, small_checkpoint: Path, tmp_path: Path) -> None:
    more = {"params/proj/kernel": np.eye(64, dtype=np.float32), "opt/params/proj/kernel": np.zeros(3)}
    np.savez(tmp_path / "model.npz", **arrays, **more)
    lines: list[str] = []
    open_checkpoint(tmp_path / "model.npz", tokenizer=small_checkpoint, report=lines.append).opened.close()
    assert [line for line in lines if "Ignoring 1 arrays" in line and "'proj/kernel'" in line]
    np.savez(tmp_path / "model.npz", **arrays, t=np.zeros(1, np.float32))
    with pytest.raises(CheckpointError, match="it has 't' twice"):
        open_checkpoint(tmp_path / "model.npz", tokenizer=small_checkpoint)


def test_a_given_tokenizer_of_another_vocabulary_is_refused(
    arrays: Arrays, small_checkpoint: Path, tmp_path: Path
) -> None:
    """As SigLIP's for a SigLIP 2."""
    tokens = {"params/txt/Embed_0/embedding": np.zeros((2000, 64), np.float32)}
    np.savez(tmp_path / "model.npz", **(arrays | tokens))
    with pytest.raises(CheckpointError, match=r"has \d+ pieces, but the text tower 2,000 rows"):
        export_bundle(tmp_path / "model.npz", tmp_path / "out", tokenizer=small_checkpoint / "spiece.model")
    assert not (tmp_path / "out").exists()


def test_layers_without_number_are_refused(tmp_path: Path) -> None:
    """Each array may stand for as many weights as it has rows."""
    rows = {f"img/encoderblock/{number}": np.zeros((1000, 1), np.float16) for number in range(40)}
    np.savez(tmp_path / "model.npz", **rows)
    with pytest.raises(CheckpointError, match="more than 20,000 weights"):
        open_checkpoint(tmp_path / "model.npz")


def test_truncated_and_several_files(arrays: Arrays, tmp_path: Path) -> None:
    file = tmp_path / "model.npz"
    np.savez(file, **arrays)
    content = file.read_bytes()
    for length in (100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is not an archive of weights"):
            export_bundle(file, tmp_path / "out", tokenizer=tmp_path)
    (tmp_path / "other.npz").touch()
    with pytest.raises(CheckpointError, match=r"has 2 \.npz files"):
        open_checkpoint(tmp_path)


def test_other_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", images=np.zeros(3))
    with pytest.raises(CheckpointError, match="has no array img/embedding/kernel, expected a checkpoint of big_vision"):
        open_checkpoint(tmp_path / "golden.npz")


def test_a_member_that_declares_no_bytes_is_not_unpacked(tmp_path: Path) -> None:
    """Its head is at most what was asked for, as zlib takes 0 for no limit."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1_000_000))
    declared = (1_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(declared, bytes(4)))
    opened = Archive(path)
    assert opened.size("x.npy") == 0
    assert len(opened.head("x.npy", 100)) == 100
    with pytest.raises(CheckpointError, match="has 1 bytes, expected 0"):
        opened.read("x.npy")
