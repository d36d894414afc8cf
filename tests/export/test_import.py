"""Import of ONNX files that others exported: sound ones, those of the Hub, and hostile ones."""

import json
import os
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.checkpoints import make_naflex_checkpoint
from support.commands import assert_error, run
from support.hub_server import Hub, serve

import siglip_onnx
from siglip_onnx.bundle.folder import verify_folder
from siglip_onnx.bundle.manifest import read_manifest
from siglip_onnx.config import read_config
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import DownloadError
from siglip_onnx.export import imported
from siglip_onnx.hub.remote_head import RemoteHead, read_remote_head

NAME, BASE = "onnx-community/tiny-siglip-ONNX", "someone/tiny-siglip"
VISION, TEXT = "onnx/vision_model.onnx", "onnx/text_model.onnx"
IMAGE = IMAGES_PATH / "red_star.png"
FILES = ("config.json", "preprocessor_config.json", "spiece.model")


@pytest.fixture(scope="module")
def foreign(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers that optimum traced and onnxruntime quantized, named as on the Hub; fp32 has its weights beside it."""
    from onnxruntime.quantization import quantize_dynamic

    from siglip_onnx.export.optimum import trace_towers

    folder = tmp_path_factory.mktemp("foreign") / "tiny"
    (folder / "onnx").mkdir(parents=True)
    trace_towers(small_checkpoint, read_config(small_checkpoint / "config.json"), folder)
    for tower in ("vision", "text"):
        path = folder / "onnx" / f"{tower}_model.onnx"
        quantize_dynamic(folder / f"{tower}.onnx", path.with_name(f"{tower}_model_quantized.onnx"))
        model = onnx.load(folder / f"{tower}.onnx")
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1000)
        for old in folder.glob(f"{tower}.onnx*"):
            old.unlink()
    for name in FILES:
        shutil.copyfile(small_checkpoint / name, folder / name)
    return folder


@pytest.fixture
def changed(foreign: Path, tmp_path: Path) -> Path:
    """A copy of ``foreign`` that a test may change."""
    return Path(shutil.copytree(foreign, tmp_path / "source" / "tiny"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_imported_towers_answer_as_the_checkpoint(
    foreign: Path, small_checkpoint: Path, small_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("import", foreign, out, "--checkpoint", small_checkpoint)
    assert result.exit_code == 0, result.stderr
    assert "made elsewhere" in result.stderr
    assert "int8: cosine to its fp32 at least 0.9" in result.stderr
    assert verify_folder(out) == []
    manifest = read_manifest(out)
    assert (manifest.logit_scale, manifest.logit_bias) == (4.5, -9.25)
    assert (manifest.source["imported"], manifest.source["checkpoint"]) == ("tiny", "small")
    assert f"{VISION}_data" in manifest.variants["fp32"].files
    ours, theirs = (siglip_onnx.load(folder, variant="fp32") for folder in (small_bundle, out))
    assert ours.embedding_space != theirs.embedding_space
    np.testing.assert_allclose(theirs.encode_images(IMAGE), ours.encode_images(IMAGE), atol=1e-6)
    np.testing.assert_allclose(theirs.encode_texts(["a cat"]), ours.encode_texts(["a cat"]), atol=1e-6)
    cosine = float((siglip_onnx.load(out).encode_images(IMAGE) @ theirs.encode_images(IMAGE).T)[0, 0])
    assert manifest.variants["int8"].accuracy["vision_cosine_min"] <= cosine + 1e-6
    rows = json.loads(run("import", foreign, out, "--checkpoint", small_checkpoint, "--overwrite", "--json").stdout)
    assert [row["name"] for row in rows["variants"]] == ["fp32", "int8"]
    assert run("verify", out, "--reference", small_checkpoint).exit_code in (0, 1)


def test_head_comes_from_a_few_bytes_of_the_checkpoint_on_the_hub(
    hub: Hub, changed: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    commit = hub.add(BASE, small_checkpoint)
    (changed / "README.md").write_text(f"---\nbase_model: {BASE}\n---\n# tiny\n")
    refused = run("import", changed, tmp_path / "out")
    assert_error(refused, 4, f"says that it was made from '{BASE}', whose logit_scale and logit_bias are needed")
    assert not hub.requests, "only the user names what is read from the Hub"
    result = run("import", changed, tmp_path / "out", "--checkpoint", BASE)
    assert result.exit_code == 0, result.stderr
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.logit_scale, manifest.logit_bias) == (4.5, -9.25)
    assert (manifest.source["checkpoint"], manifest.source["revision"]) == (BASE, commit)
    size = (small_checkpoint / "model.safetensors").stat().st_size
    assert 0 < hub.sent["model.safetensors"] < size / 10
    hub.ranges = False
    failed = run("import", changed, tmp_path / "out2", "--checkpoint", BASE)
    assert_error(failed, 4, "larger than the 8 bytes")


def test_repository_of_the_hub_is_imported(hub: Hub, changed: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((changed / "config.json").read_text()) | {"_name_or_path": BASE}
    (changed / "config.json").write_text(json.dumps(config))
    hub.add(BASE, small_checkpoint)
    commit = hub.add(NAME, changed, **{"onnx/vision_model_bnb4.onnx": b"x"})
    result = run("import", NAME, tmp_path / "out", "--precision", "int8")
    assert result.exit_code == 0, result.stderr
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.source["imported"], manifest.source["imported_revision"]) == (NAME, commit)
    assert list(manifest.variants) == ["int8"]
    assert hub.requests[VISION] == 0
    assert "There is no fp32 variant" in result.stderr
    assert "vision_model_bnb4.onnx" in result.stderr
    assert siglip_onnx.load(tmp_path / "out").encode_images(IMAGE).shape == (1, 64)
    assert json.loads(run("models", "list", "--json").stdout)["models"] == []
    hub.cut["onnx/text_model.onnx_data"] = 9
    assert_error(run("import", NAME, tmp_path / "both"), 4, "could not be downloaded")
    del hub.cut["onnx/text_model.onnx_data"]
    before = hub.requests[f"{VISION}_data"]
    assert run("import", NAME, tmp_path / "both").exit_code == 0
    assert hub.requests[f"{VISION}_data"] == before, "a second run resumes"


@pytest.mark.parametrize(("dtype", "width"), [("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8)])
@pytest.mark.parametrize("sharded", [False, True])
def test_head_of_any_type_is_read(hub: Hub, dtype: str, width: int, sharded: bool) -> None:
    layout = {"F32": "<f", "F16": "<e", "F64": "<d", "BF16": "<f"}[dtype]
    numbers = b"".join(struct.pack(layout, value)[-width:] for value in (4.5, -9.25))
    header = {
        "logit_scale": {"dtype": dtype, "shape": [1], "data_offsets": [100, 100 + width]},
        "logit_bias": {"dtype": dtype, "shape": [], "data_offsets": [100 + width, 100 + 2 * width]},
    }
    packed = json.dumps(header).encode()
    weights = struct.pack("<Q", len(packed)) + packed + bytes(100) + numbers + bytes(50_000)
    name = "model-00001-of-00002.safetensors" if sharded else "model.safetensors"
    index = {"weight_map": dict.fromkeys(header, name)}
    files = {name: weights} | ({"model.safetensors.index.json": json.dumps(index).encode()} if sharded else {})
    commit = hub.put(BASE, files)
    assert read_remote_head(BASE, None) == RemoteHead(4.5, -9.25, commit)
    assert hub.sent[name] < 2000


@pytest.mark.parametrize(
    "weights",
    [
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 5) + b"[[[[[",
        *(
            struct.pack("<Q", len(header)) + header + bytes(100)
            for header in (
                b'{"logit_scale": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
                b'{"logit_scale": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
                b'{"logit_scale": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}',
                b'{"logit_scale": {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}}',
                b'{"logit_scale": 3}',
            )
        ),
    ],
)
def test_damaged_weights_on_the_hub_are_one_message(hub: Hub, weights: bytes) -> None:
    hub.put(BASE, {"model.safetensors": weights})
    with pytest.raises(DownloadError, match=r"cannot be read from someone/tiny-siglip.*--checkpoint"):
        read_remote_head(BASE, None)


def test_checkpoint_without_safetensors_on_the_hub(hub: Hub) -> None:
    hub.put(BASE, {"pytorch_model.bin": b"x"})
    with pytest.raises(DownloadError, match=r"neither model.safetensors nor"):
        read_remote_head(BASE, None)


def test_what_cannot_be_imported_says_so(foreign: Path, changed: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "out", ("--checkpoint", str(small_checkpoint))
    assert_error(run("import", foreign, out), 4, "does not say which checkpoint it was made from")
    assert_error(run("import", small_checkpoint, out, *base), 4, "has no towers of any variant; it has neither")
    assert_error(run("import", foreign, out, *base, "--precision", "q4"), 4, "no towers of q4; it has fp32, int8")
    assert_error(run("import", tmp_path / "nothing", out, *base), 4, "was not found")
    model = onnx.load(changed / VISION)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, changed / "onnx" / "vision_model_fp16.onnx")
    shutil.copyfile(changed / TEXT, changed / "onnx" / "text_model_fp16.onnx")
    refused = run("import", changed, out, *base, "--precision", "fp16")
    assert_error(refused, 4, "inputs are {'pixel_values': 'FLOAT16'}, expected pixel_values of FLOAT alone")
    assert not out.exists()
    result = run("import", changed, out, *base)
    assert result.exit_code == 0, result.stderr
    assert "fp16 is left out" in result.stderr
    assert list(read_manifest(out).variants) == ["fp32", "int8"]


def test_checkpoint_of_another_model_is_refused(
    foreign: Path, hub: Hub, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Its scale and bias would give the probabilities of that model."""
    other = Path(shutil.copytree(small_checkpoint, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 99
    (other / "config.json").write_text(json.dumps(config))
    message = "has max_position_embeddings 99 in its text tower, but the model has"
    for name in ("folder", "naflex"):
        (tmp_path / name).mkdir()
    naflex = make_naflex_checkpoint(tmp_path / "naflex_checkpoint")
    assert_nothing_is_written(foreign, naflex, tmp_path / "naflex", "is of model_type 'siglip2', but the model is of")
    assert_nothing_is_written(foreign, other, tmp_path / "folder", message)
    hub.put(BASE, {name: (other / name).read_bytes() for name in ("config.json", "model.safetensors")})
    assert_error(run("import", foreign, tmp_path / "out", "--checkpoint", BASE), 4, message)


def test_towers_of_another_width_are_refused(
    changed: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported, "check_sizes", lambda *_: None)  # the checkpoint is as wide as the towers
    config = json.loads((changed / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 128
    config["text_config"] |= {"hidden_size": 128, "projection_size": 128}
    (changed / "config.json").write_text(json.dumps(config))
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, "gives an output of shape (1, 64)")


def assert_nothing_is_written(source: Path, checkpoint: Path, folder: Path, message: str) -> None:
    parent = folder / "target"
    parent.mkdir()
    result = run("import", source, parent / "out", "--checkpoint", checkpoint)
    assert_error(result, 4, message)
    assert len([line for line in result.stderr.splitlines() if line.startswith("siglip-onnx: ")]) == 1
    assert list(parent.iterdir()) == []


Change = Callable[[onnx.ModelProto], object]


def set_location(model: onnx.ModelProto, location: str) -> None:
    entry = next(tensor for tensor in model.graph.initializer if tensor.external_data).external_data[0]
    assert entry.key == "location"
    entry.value = location


def set_offset(model: onnx.ModelProto, key: str, value: str) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    kept = [entry for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend([*kept, onnx.StringStringEntryProto(key=key, value=value)])


def add_operator(model: onnx.ModelProto, domain: str) -> None:
    model.graph.node.append(helper.make_node("Steal", ["pixel_values"], ["stolen"], domain=domain))
    model.opset_import.append(helper.make_opsetid(domain, 1))


def add_inner_operator(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Steal", [], ["y"], domain="evil")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner))


def add_constant(model: onnx.ModelProto, *dims: int) -> None:
    model.graph.initializer.append(TensorProto(name="huge", dims=dims, data_type=TensorProto.FLOAT, raw_data=b"1234"))


def add_weight(model: onnx.ModelProto, *dims: int) -> None:
    """Add a weight beside the graph."""
    weight = next(each for each in model.graph.initializer if each.external_data)
    model.graph.initializer.append(weight)
    del model.graph.initializer[-1].dims[:]
    model.graph.initializer[-1].dims.extend(dims)


def fill_by_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["filled"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[1 << 62] * 300_000))


def fill_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["filled"]))


def add_node(model: onnx.ModelProto, operator: str, *inputs: object, **attributes: object) -> None:
    """Put a node first whose inputs are constants, each from a node ``Constant``."""
    names = [f"{operator}_{number}" for number in range(len(inputs))]
    model.graph.node.insert(0, helper.make_node(operator, names, ["huge"], **attributes))
    for name, value in zip(names, inputs, strict=True):
        tensor = numpy_helper.from_array(np.array(value))
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))


def add_loop(model: onnx.ModelProto) -> None:
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("on", 9), ("next", 9))]
    body = helper.make_graph([helper.make_node("Identity", ["on"], ["next"])], "body", values[:2], values[2:])
    add_node(model, "Loop", 1 << 62, True, body=body)


def hide_size(model: onnx.ModelProto) -> None:
    """Fill an array whose size only a multiplication tells: two terabytes."""
    add_node(model, "ConstantOfShape", [1 << 39])
    fill = next(node for node in model.graph.node if node.op_type == "ConstantOfShape")
    fill.input[0] = "product"
    add_node(model, "Mul", [1 << 20], [1 << 19])
    product = next(node for node in model.graph.node if node.op_type == "Mul")
    product.output[0] = "product"
    nodes = sorted(
        model.graph.node, key=lambda node: {"Constant": 0, "Mul": 1, "ConstantOfShape": 2}.get(node.op_type, 3)
    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("ReduceMax", ["huge"], ["huge_max"], keepdims=0))
    output = model.graph.output[0].name
    last = next(node for node in model.graph.node if output in node.output)
    last.output[list(last.output).index(output)] = "small"
    model.graph.node.append(helper.make_node("Add", ["small", "huge_max"], [output]))


def grow_weight(model: onnx.ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.external_data).dims[0] = 1 << 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: set_location(model, "../../../../etc/passwd"), "outside its folder"),
        (lambda model: set_location(model, "/etc/passwd"), "outside its folder"),
        (lambda model: set_location(model, "C:\\Windows\\win.ini"), "outside its folder"),
        (lambda model: set_location(model, ""), "outside its folder"),
        (lambda model: set_location(model, "elsewhere.bin"), "which is missing"),
        (lambda model: set_location(model, "link"), "outside the folder"),
        (lambda model: set_offset(model, "offset", "-8"), "has only"),
        (lambda model: set_offset(model, "offset", str(1 << 50)), "has only"),
        (lambda model: set_offset(model, "length", str(1 << 50)), "has only"),
        (lambda model: set_offset(model, "length", "many"), "not numbers"),
        (lambda model: set_offset(model, "length", "4"), "has only"),
        (grow_weight, "has only"),
        (lambda model: add_operator(model, "evil"), "has the operator 'Steal' of 'evil'"),
        (lambda model: add_operator(model, "ai.onnx.contrib"), "has the operator 'Steal' of 'ai.onnx.contrib'"),
        (add_inner_operator, "has the operator 'Steal' of 'evil'"),
        (lambda model: model.functions.append(onnx.FunctionProto(name="Steal", domain="evil")), "functions"),
        (lambda model: add_constant(model, 1 << 20, 1 << 20), "has a constant of at least 1,048,576 elements"),
        (lambda model: add_constant(model, *[1 << 62] * 64), "has a constant of at least 4,611,686,018,427,387,904 el"),
        (lambda model: add_constant(model, *[1 << 62] * 300_000), "has the constant 'huge' of 300,000 dimensions"),
        (lambda model: add_weight(model, *[1 << 62] * 64), "has only"),
        (lambda model: add_node(model, "ConstantOfShape", [1 << 62] * 100), "fills a constant of at least 4,611,686,"),
        (fill_by_attribute, "fills a constant of at least 4,611,686,018,427,387,904 elements"),
        (lambda model: add_constant(model, -5), "of shape [-5]"),
        (fill_constant, "fills a constant of at least 1,099,511,627,776 elements"),
        (add_loop, "has the operator 'Loop', which towers do not need"),
        (lambda model: add_node(model, "ConstantOfShape", [1 << 40]), "fills a constant of at least 1,099,511,6"),
        (
            lambda model: add_node(model, "Expand", 1.0, [1 << 20, 1 << 20]),
            "fills a constant of at least 1,099,511,6",
        ),
        (lambda model: add_node(model, "Tile", [1.0], [1 << 40]), "fills a constant of at least 1,099,511,6"),
        (
            lambda model: add_node(model, "RandomNormal", shape=[1 << 20, 1 << 20]),
            "fills a constant of at least 1,099,",
        ),
        (lambda model: add_node(model, "Range", 0, 1 << 40, 1), "fills a constant of at least 1,099,511,6"),
        (
            lambda model: add_node(model, "Pad", [1.0], [1 << 39, 1 << 39]),
            "fills a constant of at least 1,099,511,6",
        ),
        (hide_size, "siglip-onnx models check"),
        (lambda model: model.graph.node[0].input.__setitem__(0, "nowhere"), "cannot be loaded"),
    ],
)
def test_hostile_graph_is_one_message_and_nothing_is_written(
    changed: Path, small_checkpoint: Path, tmp_path: Path, change: Change, message: str
) -> None:
    (tmp_path / "secret").write_bytes(bytes(100_000))
    (changed / "onnx" / "link").symlink_to(tmp_path / "secret")
    model = onnx.load(changed / VISION, load_external_data=False)
    change(model)
    (changed / VISION).write_bytes(model.SerializeToString())
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, message)


@pytest.mark.parametrize("name", [VISION, "config.json"])
def test_links_out_of_the_folder_are_refused(changed: Path, small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    shutil.move(changed / name, tmp_path / "elsewhere")
    (changed / name).symlink_to(tmp_path / "elsewhere")
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, f"{name} is a link that leads outside the folder")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x01" * 5000])
def test_file_that_is_not_a_graph_is_one_message(
    changed: Path, small_checkpoint: Path, tmp_path: Path, content: bytes
) -> None:
    (changed / TEXT).write_bytes(content)
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, "text_model.onnx")


def test_file_of_absurd_size_and_pipe_are_not_read(changed: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    with (changed / VISION).open("r+b") as file:
        file.truncate(1 << 40)
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, "more than an ONNX file can have")
    (changed / VISION).unlink()
    os.mkfifo(changed / VISION)
    (tmp_path / "target").rmdir()
    assert_nothing_is_written(changed, small_checkpoint, tmp_path, "it is a pipe")


def test_only_the_beginning_of_a_card_is_read(changed: Path, tmp_path: Path) -> None:
    with (changed / "README.md").open("wb") as file:
        file.truncate(500_000_000)
    tracemalloc.start()
    try:
        assert_error(run("import", changed, tmp_path / "out"), 4, "does not say which checkpoint")
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_long_cards_are_searched_in_linear_time() -> None:
    began = time.process_time()
    assert imported._BASE.search("base_model:" + "\n" * 99_980) is None
    assert time.process_time() - began < 1
    assert [imported._BASE.search(f"base_model:{name}")[1] for name in (" a/b", "\n- a/b", "\n  - 'a/b'")] == [
        "a/b"
    ] * 3
