"""Our ONNX decoding against the onnx package, and against damage."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from auralign.errors import ModelUnavailableError
from auralign.runtime.convert import mobilenet_from_onnx
from auralign.runtime.onnx_reader import read_onnx

RNG = np.random.default_rng(0)
ARRAYS = {
    "weight": RNG.standard_normal((3, 2, 1, 1)).astype(np.float32),
    "bias": RNG.standard_normal(3).astype(np.float32),
    "steps": np.array([2, -2, 1 << 40], dtype=np.int64),
    "scale": np.array(0.5, dtype=np.float32),
    "zero": np.array(3, dtype=np.uint8),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def model_bytes(*, raw: bool = True) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["weight_q"]),
        helper.make_node("DequantizeLinear", ["weight_q", "scale", "zero"], ["weight_dq"]),
        helper.make_node("Conv", ["x", "weight_dq", "bias"], ["y"], kernel_shape=[1, 1]),
    ]
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    if raw:
        constants = [numpy_helper.from_array(value, name) for name, value in ARRAYS.items()]
    else:
        constants = [
            helper.make_tensor(name, kinds[value.dtype.name], value.shape, value.flatten().tolist())
            for name, value in ARRAYS.items()
            if value.dtype.name in kinds
        ]
    shape = [1, 2, 4, 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        constants,
    )
    return helper.make_model(graph).SerializeToString()


MODEL = model_bytes()


@pytest.mark.parametrize("raw", [True, False])
def test_tensors_and_nodes_equal_the_onnx_package(raw):
    data = model_bytes(raw=raw)
    graph, oracle = read_onnx(data), onnx.load_from_string(data).graph
    for constant in oracle.initializer:
        np.testing.assert_array_equal(graph.tensors[constant.name], numpy_helper.to_array(constant))
        assert graph.tensors[constant.name].dtype == numpy_helper.to_array(constant).dtype
    assert [(n.op, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in oracle.node
    ]


def test_external_data_is_read_at_its_offset(tmp_path):
    file = tmp_path / "m.onnx"
    model = onnx.load_from_string(MODEL)
    onnx.save(model, file, save_as_external_data=True, location="m.data", size_threshold=0)
    external = (tmp_path / "m.data").read_bytes()
    graph = read_onnx(file.read_bytes(), external)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(graph.tensors[name], value)
    with pytest.raises(ModelUnavailableError, match="outside"):
        read_onnx(file.read_bytes(), b"")


def test_float_weights_are_found_behind_quantise_pairs():
    tensors = mobilenet_from_onnx(read_onnx(MODEL))
    np.testing.assert_array_equal(tensors["convs.0.weight"].numpy(), ARRAYS["weight"])
    np.testing.assert_array_equal(tensors["convs.0.bias"].numpy(), ARRAYS["bias"])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255), st.booleans())
def test_damage_gives_our_error_or_a_graph_never_a_crash(at, value, cut):
    damaged = MODEL[:at] if cut else MODEL[:at] + bytes([value]) + MODEL[at + 1 :]
    with contextlib.suppress(ModelUnavailableError):
        read_onnx(damaged)
