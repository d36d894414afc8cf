"""Damaged and malicious model folders: detected, named, and refused before onnxruntime or OpenVINO loads them."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.commands import assert_error, run
from support.engines import ENGINES, Providers
from support.manifests import with_hashes, write_document, write_manifest

import siglip_onnx
from siglip_onnx.bundle import integrity
from siglip_onnx.bundle.folder import open_bundle, verify_folder
from siglip_onnx.bundle.manifest import read_manifest
from siglip_onnx.classifier import Classifier
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import BundleError, CheckpointError, ImageError, SiglipOnnxError
from siglip_onnx.image import load_image
from siglip_onnx.options import RuntimeOptions
from siglip_onnx.session import LazySession
from siglip_onnx.system.cache_dir import cache_folder
from siglip_onnx.system.names import check_name

FLIPS, CUTS = 200, 50
STAR = IMAGES_PATH / "red_star.png"


def flip(rng: random.Random, sound: bytes) -> bytes:
    place = rng.randrange(len(sound))
    return sound[:place] + bytes([sound[place] ^ rng.randrange(1, 256)]) + sound[place + 1 :]


def cut(rng: random.Random, sound: bytes) -> bytes:
    return sound[: rng.randrange(len(sound))]


@pytest.mark.parametrize(("change", "times"), [(flip, FLIPS), (cut, CUTS)])
def test_verify_names_damaged_files(copy: Path, change: Callable[[random.Random, bytes], bytes], times: int) -> None:
    rng = random.Random(times)
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    for _ in range(times):
        path = rng.choice(paths)
        sound = path.read_bytes()
        path.write_bytes(change(rng, sound))
        try:
            problems = "; ".join(verify_folder(copy))
        except SiglipOnnxError as error:
            problems = str(error)
        assert path.relative_to(copy).as_posix() in problems
        path.write_bytes(sound)
    assert verify_folder(copy) == []


def test_load_hashes_only_changed_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = integrity.file_facts
    monkeypatch.setattr(integrity, "file_facts", lambda path: hashed.append(path.name) or original(path))
    siglip_onnx.load(copy)
    num_hashed = len(hashed)
    assert num_hashed == len(open_bundle(copy).manifest.files) + 4
    siglip_onnx.load(copy)
    assert len(hashed) == num_hashed
    weights = copy / "onnx" / "text_model_quantized.onnx_data"
    os.utime(weights)
    siglip_onnx.load(copy)
    assert hashed[num_hashed:] == [weights.name]
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"text_model_quantized\.onnx_data: sha256"):
            siglip_onnx.load(copy)
    siglip_onnx.load(copy, variant="fp32")
    assert {path.name for path in copy.rglob("*") if path.is_file()} == {
        path.name for path in map(Path, open_bundle(copy).manifest.all_files())
    } | {"manifest.json"}
    assert list((cache_folder() / "verified").iterdir())


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_manifest_must_list_the_shared_files(copy: Path, name: str) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    del document["files"][name]
    write_document(copy, document)
    with pytest.raises(BundleError, match=f"does not list {name}"):
        open_bundle(copy)


def test_load_without_a_home_folder(copy: Path) -> None:
    code = f"import siglip_onnx; print(siglip_onnx.load({str(copy)!r}).encode_texts(['a']).shape[0])"
    patch = "import pathlib\ndef home(): raise RuntimeError('no home')\npathlib.Path.home = home\n"
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    assert subprocess.check_output([sys.executable, "-c", patch + code], env=environment, text=True).strip() == "1"


def test_load_with_an_unwritable_cache(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy.parent / "file").touch()
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(copy.parent / "file"))
    assert siglip_onnx.load(copy).encode_texts(["a"]).shape[0] == 1


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "..\\x", "a\\..\\..\\x", "\\\\host\\share", "", ".", "a\0b"]
)
def test_check_name_refuses_names_outside_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="outside the bundle"):
        check_name(name)


@pytest.mark.parametrize("name", ["config.json", "onnx/vision_model.onnx_data", "..hidden", "a b/ä.onnx"])
def test_check_name_accepts_names_inside_the_folder(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_space", "../../escape"),
        ("embedding_space", ""),
        ("quantization", []),
        ("files", {"x": {"size_bytes": -1, "sha256": "0" * 64}}),
        ("files", {"x": {"size_bytes": 1.5, "sha256": "0" * 64}}),
        ("files", {"x": {"size_bytes": 1, "sha256": "short"}}),
        ("files", {f"f{number}": {"size_bytes": 1, "sha256": "0" * 64} for number in range(1001)}),
        ("files", {"\\\\host\\x": {"size_bytes": 1, "sha256": "0" * 64}}),
    ],
)
def test_hostile_manifest_entries(copy: Path, key: str, value: object) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    document["variants"]["int8"][key] = value
    write_document(copy, document)
    with pytest.raises(BundleError, match=r"manifest\.json is incomplete or damaged"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": "siglip_onnx.bundle", "x": ' + "9" * 10_000 + "}",
        '{"a": "' + "x" * 10_000_001 + '"}',
        "[]",
        "NaN",
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=["deep", "digits", "large", "list", "nan", "surrogate"],
)
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "preprocessor_config.json"])
def test_hostile_json(copy: Path, name: str, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    edit_manifest_size(copy, name, len(content))
    (copy / name).write_bytes(content)
    with pytest.raises(SiglipOnnxError, match=name.replace(".", r"\.")):
        open_bundle(copy)


def edit_manifest_size(folder: Path, name: str, size_bytes: int) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    if name in document["files"]:
        document["files"][name]["size_bytes"] = size_bytes
        write_document(folder, document)


def test_links_out_of_the_folder_are_refused_except_in_hub_snapshots(copy: Path, tmp_path: Path) -> None:
    name = "tokenizer.json"
    outside = tmp_path / "outside.json"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    assert "a link to" in verify_folder(copy)[0]
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    (copy / name).unlink()
    outside.rename(copy / name)
    shutil.copytree(copy, snapshot)
    for number, path in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert verify_folder(snapshot) == []
    assert siglip_onnx.load(snapshot).encode_texts(["a"]).shape[0] == 1


def graph_with(location: str, *, offset: int | None = None, length: int | None = None, inside: str = "top") -> bytes:
    """A small graph whose one weight is stored in ``location``, at the top, in a branch of an If, or in a constant."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    if inside == "top":
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor])
    elif inside == "constant":
        graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [out])
    else:
        branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "b", [], [out], [tensor])
        condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", [], [out], [condition])
    return helper.make_model(graph).SerializeToString()


INSIDE = ("top", "branch", "constant")


@pytest.mark.parametrize("providers", ENGINES)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str, inside: str, providers: Providers) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(graph_with(location, inside=inside))
    with pytest.raises(BundleError):
        LazySession(path, providers=providers).load()
    with pytest.raises(BundleError):
        Classifier(path, RuntimeOptions(providers=providers))


@pytest.mark.parametrize("providers", ENGINES)
def test_external_data_at_an_address_in_memory(tmp_path: Path, providers: Providers) -> None:
    """An address that can be read: OpenVINO itself would return the secret."""
    secret = np.arange(4, dtype=np.float32)
    path = tmp_path / "m.onnx"
    path.write_bytes(graph_with("*/_ORT_MEM_ADDR_/*", offset=secret.ctypes.data, length=secret.nbytes))
    with pytest.raises(BundleError, match="cannot be loaded"):
        LazySession(path, providers=providers).load()


@pytest.mark.parametrize("providers", ENGINES)
@pytest.mark.parametrize("inside", INSIDE)
def test_external_data_beside_the_graph(tmp_path: Path, inside: str, providers: Providers) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "w.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    path.write_bytes(graph_with("w.data", offset=0, length=16, inside=inside))
    if inside != "constant":  # which onnxruntime does not run
        assert LazySession(path, providers=providers).run("y", {}).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("providers", ENGINES)
@pytest.mark.parametrize(("offset", "length"), [(0, 17), (8, 16), (-1, 4), (1 << 70, 4), (0, 1 << 70)])
def test_external_data_beyond_the_file(tmp_path: Path, offset: int, length: int, providers: Providers) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "w.data").write_bytes(bytes(16))
    path.write_bytes(graph_with("w.data", offset=offset, length=length))
    with pytest.raises(BundleError, match="cannot be loaded"):
        LazySession(path, providers=providers).load()


@pytest.mark.parametrize("providers", ENGINES)
def test_external_data_that_links_elsewhere(tmp_path: Path, providers: Providers) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.data").symlink_to(tmp_path / "secret")
    (folder / "m.onnx").write_bytes(graph_with("w.data"))
    with pytest.raises(BundleError, match="cannot be loaded"):
        LazySession(folder / "m.onnx", providers=providers).load()


def test_nan_weights_are_an_error(copy: Path) -> None:
    weights = copy / "onnx" / "vision_model.onnx_data"
    np.full(weights.stat().st_size // 4, np.nan, np.float32).tofile(weights)
    model = siglip_onnx.SigLIP(open_bundle(copy), variant="fp32")
    with pytest.raises(BundleError, match="returned NaN or infinity"):
        model.encode_images(np.zeros((8, 8, 3), np.uint8))


def swap_colors(folder: Path) -> None:
    """Let a copy of the demo model read "red" where a text has "blue"; no file changes its size."""
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    swapped = {'"▁red"': '"▁blue"', '"▁blue"': '"▁red"'}
    path.write_text(re.sub("|".join(swapped), lambda piece: swapped[piece[0]], text), encoding="utf-8")


def test_a_model_cannot_claim_the_embedding_space_of_another(tmp_path: Path) -> None:
    """Else its label embeddings would be taken for the other's, from a cache that both use."""
    evil = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "evil"))
    texts, cache = ("a red star", "a blue star"), tmp_path / "labels"
    honest = siglip_onnx.load("demo").classify(STAR, texts)
    arguments = ("classify", STAR, *(option for text in texts for option in ("--text", text)), "--label-cache", cache)
    swap_colors(evil)
    assert_error(run(*arguments, "--model", evil), 4, "tokenizer.json: sha256")
    claiming = with_hashes(evil)
    (evil / "manifest.json").write_text(claiming.to_json())
    spaces = {name: variant.embedding_space for name, variant in read_manifest(BUNDLE_PATH).variants.items()}
    found = f"variant 'fp32' has embedding space '{spaces['fp32']}', expected 'fp32-"
    assert_error(run(*arguments, "--model", evil), 4, found)
    with pytest.raises(BundleError, match=re.escape(found)):
        verify_folder(evil)
    assert not cache.exists()
    write_manifest(evil, claiming)
    assert verify_folder(evil) == []
    poisoned = siglip_onnx.load(evil, label_cache=cache).classify(STAR, texts)
    assert poisoned[1].probability > 0.5 > poisoned[0].probability
    assert siglip_onnx.load("demo", label_cache=cache).classify(STAR, texts) == honest
    other_space = read_manifest(evil).variants["int8"].embedding_space
    assert {folder.name for folder in cache.iterdir()} == {spaces["int8"], other_space}


def unlist(folder: Path, name: str) -> None:
    """Remove a file's entries from the manifest."""
    manifest = read_manifest(folder)
    files = {key: facts for key, facts in manifest.files.items() if key != name}
    variants = {
        key: replace(variant, files={key: facts for key, facts in variant.files.items() if key != name})
        for key, variant in manifest.variants.items()
    }
    write_manifest(folder, replace(manifest, files=files, variants=variants))


def test_unlisted_pieces_are_not_read(copy: Path) -> None:
    expected = siglip_onnx.load(copy).encode_texts(["a red star"])
    (copy / "tokenizer_pieces.npz").write_bytes(b"of another model")
    np.testing.assert_array_equal(siglip_onnx.load(copy).encode_texts(["a red star"]), expected)


def test_unlisted_weights_are_refused(copy: Path) -> None:
    name = "onnx/vision_model.onnx_data"
    unlist(copy, name)
    assert verify_folder(copy) == [
        "onnx/vision_model.onnx: its weights are in 'vision_model.onnx_data', which the manifest does not list for it",
        f"{name}: manifest.json does not list it",
    ]
    with pytest.raises(BundleError, match=r"does not list onnx/vision_model\.onnx_data"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "preprocessor_config.json", "tokenizer.json"])
def test_links_out_of_the_folder_are_not_read(copy: Path, tmp_path: Path, name: str) -> None:
    """Also if the file has been verified at its old place: time and inode stay the same."""
    siglip_onnx.load(copy)
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match="outside the folder"):
        open_bundle(copy)
    assert "outside the folder" in verify_folder(copy)[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "tokenizer.json", "onnx/vision_model.onnx"])
def test_named_pipes_in_a_model_are_refused_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BundleError, match=Path(name).name):
        siglip_onnx.load(copy, variant="fp32")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("providers", ENGINES)
def test_named_pipe_as_a_compiled_classifier_is_refused_at_once(tmp_path: Path, providers: Providers) -> None:
    os.mkfifo(tmp_path / "c.onnx")
    with pytest.raises(BundleError, match="it is a pipe"):
        Classifier(tmp_path / "c.onnx", RuntimeOptions(providers=providers))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "model.safetensors.* it is a pipe"),
        ("pytorch_model.bin", "pytorch_model.bin.* it is a pipe"),
        ("config.json", "config.json.* it is a pipe"),
        ("spiece.model", "has neither spiece.model nor"),
        ("modules.json", "modules.json is damaged .*it is a pipe"),
    ],
)
def test_named_pipes_in_a_checkpoint_are_refused_at_once(
    small_checkpoint: Path, tmp_path: Path, name: str, message: str
) -> None:
    from siglip_onnx.export.checkpoint import open_checkpoint
    from siglip_onnx.export.tokenizer import write_tokenizer

    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    (copy / "model.safetensors" if name == "pytorch_model.bin" else copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(CheckpointError, match=message), open_checkpoint(copy) as checkpoint:
        write_tokenizer(checkpoint.tokenizer, tmp_path / "t.json", text_length=16, vocab_size=300)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_named_pipe_as_an_image_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(ImageError, match="it is a pipe") as refused:
        load_image(tmp_path / "image.png")
    assert refused.value.status == "io_error"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_named_pipe_beside_a_config_of_open_clip_is_refused_at_once(tmp_path: Path) -> None:
    from siglip_onnx.export.checkpoint import open_checkpoint

    for name in ("open_clip_config.json", "config.json"):
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
