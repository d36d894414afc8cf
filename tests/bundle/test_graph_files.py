"""Weights of graphs lie in files that the manifest lists, wherever in a graph they are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import siglip_onnx
from siglip_onnx.bundle.folder import verify_folder
from siglip_onnx.bundle.graph_files import weight_files
from siglip_onnx.bundle.integrity import FileFacts, file_facts
from siglip_onnx.bundle.manifest import embedding_space, read_manifest
from siglip_onnx.errors import BundleError


def external(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], initializer=list(tensors))


def constant() -> onnx.NodeProto:
    # Numbers and texts beside it: a float is a field of fixed size.
    return helper.make_node("Constant", [], ["c"], value=external("w.bin"), alpha=1.5, axis=-1, name="n")


def sparse() -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(external("w.bin"), numpy_helper.from_array(np.arange(3)), [9])


def with_sparse_initializer() -> onnx.ModelProto:
    model = helper.make_model(graph())
    model.graph.sparse_initializer.append(sparse())
    return model


def with_function() -> onnx.ModelProto:
    function = helper.make_function("d", "f", [], ["c"], [constant()], [helper.make_opsetid("", 17)])
    return helper.make_model(graph(), functions=[function])


def with_training() -> onnx.ModelProto:
    model = helper.make_model(graph())
    model.training_info.add().algorithm.CopyFrom(graph(constant()))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: helper.make_model(graph(tensors=(external("w.bin"),))),
        lambda: helper.make_model(graph(constant())),
        lambda: helper.make_model(graph(helper.make_node("X", [], ["c"], values=[external("w.bin")]))),
        lambda: helper.make_model(graph(helper.make_node("Constant", [], ["c"], sparse_value=sparse()))),
        lambda: helper.make_model(graph(helper.make_node("If", ["b"], ["c"], then_branch=graph(constant())))),
        lambda: helper.make_model(graph(helper.make_node("X", [], ["c"], graphs=[graph(constant())]))),
        with_sparse_initializer,
        with_function,
        with_training,
    ],
)
def test_names_of_weights_are_found_everywhere(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString())
    assert weight_files(tmp_path / "m.onnx") == {"w.bin"}


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\xff\xff\x03", b"\x3b\x3c"])
def test_files_that_are_not_graphs(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        weight_files(tmp_path / "m.onnx")


def move_weights(folder: Path, location: str, *, listed: str | None) -> None:
    """Let the int8 text tower name its weights by ``location``, and list them by ``listed``."""
    path = folder / "onnx" / "text_model_quantized.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    (folder / "onnx" / "text_model_quantized.onnx_data").rename(path.parent / location)
    manifest = read_manifest(folder)
    files: dict[str, FileFacts] = dict(manifest.variants["int8"].files)
    weights = files.pop("onnx/text_model_quantized.onnx_data")
    files |= {"onnx/text_model_quantized.onnx": file_facts(path)} | ({listed: weights} if listed else {})
    space = embedding_space("int8", manifest.files, files)
    variants = manifest.variants | {"int8": replace(manifest.variants["int8"], files=files, embedding_space=space)}
    (folder / "manifest.json").write_text(replace(manifest, variants=variants).to_json())


def test_weights_of_any_name_must_be_listed(copy: Path) -> None:
    move_weights(copy, "w.bin", listed=None)
    problem = "its weights are in 'w.bin', which the manifest does not list for it"
    assert verify_folder(copy) == [f"onnx/text_model_quantized.onnx: {problem}"]
    with pytest.raises(BundleError, match=f"The model is damaged: .*{problem}"):
        siglip_onnx.load(copy, variant="int8")


def test_listed_weights_of_any_name_are_read(copy: Path) -> None:
    expected = siglip_onnx.load(copy, variant="int8").encode_texts(["a"])
    move_weights(copy, "./w.bin", listed="onnx/w.bin")
    assert verify_folder(copy) == []
    assert (siglip_onnx.load(copy, variant="int8").encode_texts(["a"]) == expected).all()
