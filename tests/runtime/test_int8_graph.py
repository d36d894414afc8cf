"""The rewriting of int8 graphs before they are loaded: what it changes, and that it refuses everything else."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from siglip_onnx.session.int8_graph import ZERO_POINT, parse_int8_graph

DATA = "tower.onnx_data"


def make_tensor(name: str, kind: int, shape: list[int], location: str = DATA, length: int = 12) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "4096"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_graph(weight: TensorProto, zero_point: str = "") -> bytes:
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "weight", "scale", zero_point, "bias"], ["y"], domain="com.microsoft"
    )
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [4], [1.0] * 4)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    other = make_tensor("other", TensorProto.INT8, [3, 4])
    graph = helper.make_graph([node], "tower", [x], [y], [weight, scale, other])
    content: bytes = helper.make_model(graph, producer_name="siglip_onnx").SerializeToString()
    return content


@pytest.mark.parametrize(("unsigned", "kind"), [(False, TensorProto.INT8), (True, TensorProto.UINT8)])
def test_weights_become_inputs(unsigned: bool, kind: int) -> None:
    content = make_graph(make_tensor("weight", TensorProto.INT8, [3, 4]))
    parsed = parse_int8_graph(content, DATA)
    assert [(name, *vars(weight).values()) for name, weight in parsed.weights.items()] == [("weight", (3, 4), 4096, 12)]
    model = onnx.load_model_from_string(parsed.serialize(unsigned=unsigned))
    before = onnx.load_model_from_string(content)
    assert model.graph.input[:1] == before.graph.input
    assert model.graph.input[1:] == [helper.make_tensor_value_info("weight", kind, [3, 4])]
    assert [tensor.data_type for tensor in model.graph.initializer[:3]] == [kind, TensorProto.FLOAT, TensorProto.INT8]
    if unsigned:
        zero_point = model.graph.initializer[3]
        assert onnx.numpy_helper.to_array(zero_point) == np.uint8(ZERO_POINT)
        assert list(model.graph.node[0].input) == ["x", "weight", "scale", zero_point.name, "bias"]
        del model.graph.initializer[3]
        model.graph.node[0].input[3] = ""
        model.graph.initializer[0].data_type = TensorProto.INT8
    del model.graph.input[1:]
    assert model == before  # nothing else has changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_graph(make_tensor("weight", TensorProto.INT8, [3, 4], location="../other")), "elsewhere"),
        (make_graph(make_tensor("weight", TensorProto.INT8, [3, 5])), "wrong size"),
        (make_graph(make_tensor("weight", TensorProto.FLOAT, [3, 1])), "no int8 weights"),
        (make_graph(make_tensor("weight", TensorProto.INT8, [3, 4]), zero_point="other"), "zero points"),
        (b"", "not enough values"),
        (b"\x3a\x05abc", "ends too late"),
        (b"\x3a" + b"\x80" * 20_000_000, "too many bytes"),
    ],
    ids=["elsewhere", "size", "float", "zero-points", "empty", "cut", "long-number"],
)
def test_other_graphs_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_int8_graph(content, DATA)


def test_damage_is_a_value_error(small_bundle: Path) -> None:
    path = small_bundle / "onnx" / "text_model_quantized.onnx"
    sound = path.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= rng.randrange(1, 256)
        try:
            parse_int8_graph(bytes(damaged[: rng.choice((len(sound), rng.randrange(len(sound))))]), f"{path.name}_data")
        except ValueError:
            continue
