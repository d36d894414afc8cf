"""Weights of graphs lie in files that the manifest lists, wherever in a graph they are named."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import siglip_onnx
from siglip_onnx.bundle.folder import verify_folder
from siglip_onnx.bundle.graph_files import MAX_FIELDS, weight_files
from siglip_onnx.bundle.integrity import FileFacts, file_facts
from siglip_onnx.bundle.manifest import embedding_space, read_manifest
from siglip_onnx.errors import BundleError
from siglip_onnx.system.protobuf import read_fields, write_fields


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


def field(number: int, content: bytes) -> bytes:
    return write_fields([(number, content)])


@pytest.mark.parametrize("repeated", [field(1, b""), field(200, b""), b"\x10\x01", field(5, field(13, b""))])
def test_graph_of_countless_fields_is_refused_before_they_are_read(
    repeated: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes, unknown fields, numbers and tensors: each took 140 bytes and some microseconds."""
    path, num_read = tmp_path / "m.onnx", 0

    def count_fields(message: Any, only: Any) -> Iterator[tuple[int, Any]]:
        nonlocal num_read
        for entry in read_fields(message, only):
            num_read += 1
            yield entry

    monkeypatch.setattr("siglip_onnx.bundle.graph_files.read_fields", count_fields)
    path.write_bytes(field(7, repeated * MAX_FIELDS))
    with pytest.raises(ValueError, match="more than 500,000 fields outside its weights"):
        weight_files(path)
    assert num_read == MAX_FIELDS + 1
    path.write_bytes(field(7, repeated * (MAX_FIELDS // 4)))
    assert weight_files(path) == set()


@pytest.mark.parametrize("key", [b"\xea\x80\x80\x80\x10", b"\xea\x00", b"\xea\x80\x80\x00"])
def test_a_field_whose_number_libraries_read_as_another_is_damage(key: bytes, tmp_path: Path) -> None:
    """They take the lower 32 bits: field 13, the place of a tensor's weights, with more bits or bytes than it needs."""
    tensor = external("hidden.bin").SerializeToString()
    start = tensor.index(b"\x6a")
    path = tmp_path / "m.onnx"
    for content, hidden in ((tensor, False), (tensor[:start] + key + tensor[start + 1 :], True)):
        path.write_bytes(field(7, field(5, content)))
        if hidden:
            with pytest.raises(ValueError, match="a field whose number is written in an odd way"):
                weight_files(path)
        else:
            assert weight_files(path) == {"hidden.bin"}


def test_memory_does_not_depend_on_the_number_of_nodes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(field(7, field(1, b"") * 50_000))
    tracemalloc.start()
    try:
        assert weight_files(path) == set()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(100):
        content = field(1, field(5, field(6, content)))  # a node, its attribute, a graph
    (tmp_path / "m.onnx").write_bytes(field(7, content))
    with pytest.raises(ValueError, match="more than 100 deep"):
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
