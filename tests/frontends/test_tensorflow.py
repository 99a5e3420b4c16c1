"""TensorFlow's dialect: nudged ranges, FakeQuantWithMinMaxVars as a node, weights without any."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc import compile_model
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.passes.strip import strip
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.frontends import pytorch
from qatc.frontends.common.grid import find_grid
from qatc.frontends.tensorflow import FRONTEND, nudged
from tests.frontends.common.test_lift import reloaded


def tensorflow_s(x: np.ndarray, low: float, high: float, bits: int, narrow: bool) -> np.ndarray:
    """Fake quantization as TensorFlow's kernel computes it, element by element, in Python floats."""
    bottom, top = int(narrow), 2**bits - 1
    scale = np.float32(np.float32(high) - np.float32(low)) / np.float32(top - bottom)
    from_minimum = np.float32(bottom) - np.float32(low) / scale
    zero = min(max(math.floor(from_minimum + 0.5), bottom), top)
    least, most = np.float32(bottom - zero) * scale, np.float32(top - zero) * scale
    clamped = np.clip(x, least, most)
    return np.floor((clamped - least) / scale + np.float32(0.5)) * scale + least


@given(
    st.floats(-10, 0, width=32),
    st.floats(0.015625, 10, width=32),
    st.sampled_from([2, 4, 8, 12, 16]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_nudging_is_tensorflow_s(low: float, high: float, bits: int, narrow: bool, seed: int) -> None:
    bottom, top = int(narrow), 2**bits - 1
    scale, zero = nudged(np.asarray(low), np.asarray(high), bottom, top)
    params = QuantParams.per_tensor(float(scale), int(zero), "uint16", bottom, top)
    x = np.random.default_rng(seed).uniform(low * 1.2, high * 1.2, 200).astype(np.float32)
    steps = np.abs(x / scale - np.rint(x / scale))
    away_from_ties = np.abs(steps - 0.5) > 1e-3 * max(1, top / 255)
    got = params.fake_quantize(x)[away_from_ties]
    np.testing.assert_allclose(got, tensorflow_s(x, low, high, bits, narrow)[away_from_ties], atol=float(scale) * 1e-2)


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], producer: str = "tf2onnx") -> QuantGraph:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    body = helper.make_graph(nodes, "g", [x], [y], initializers)
    return reloaded(
        helper.make_model(body, producer_name=producer, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    )


W = np.asarray([[1.0, -2.0], [0.5, 4.0], [0.25, 3.0]], np.float32)


@pytest.mark.parametrize(
    ("attrs", "want"),
    [
        ({}, "uint8 scale 0.0235294122 zero 43"),
        ({"num_bits": 4}, "uint8[0,15] scale 0.400000006 zero 3"),
        ({"num_bits": 8, "narrow_range": 1}, "uint8[1,255] scale 0.0236220472 zero 43"),
        ({"num_bits": 16}, "uint16 scale 9.15541314e-05 zero 10923"),
    ],
)
def test_the_node_on_activations(attrs: dict[str, int], want: str) -> None:
    ends = {"lo": np.asarray(-1, np.float32), "hi": np.asarray(5, np.float32)}
    graph = model([helper.make_node("FakeQuantWithMinMaxVars", ["x", "lo", "hi"], ["y"], **attrs)], ends)
    assert FRONTEND.recognize(graph, "") == "1 FakeQuantWithMinMaxVars, producer unknown"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert f"y = FakeQuant[params={want}](x)" in graph.dump()
    assert graph.origin["y"] == "y"


def test_the_node_whose_range_is_in_its_attributes() -> None:
    graph = model([helper.make_node("FakeQuantWithMinMaxArgs", ["x"], ["y"], min=-1.0, max=5.0)], {})
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "y = FakeQuant[params=uint8 scale 0.0235294122 zero 43](x)" in graph.dump()


def test_the_node_on_weights_per_channel() -> None:
    constants = {"w": W, "lo": np.asarray([-1, -4], np.float32), "hi": np.asarray([1, 4], np.float32)}
    nodes = [
        helper.make_node("FakeQuantWithMinMaxVarsPerChannel", ["w", "lo", "hi"], ["v"], num_bits=8, narrow_range=1),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    graph = model(nodes, constants)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "int8[-127,127] scale 0.00787401572..0.0314960629 zero 0 axis 1 x2" in graph.dump()
    strip(graph)
    np.testing.assert_array_equal(graph.nodes[0].inputs[1].values, [[127, -64], [64, 127], [32, 95]])


def test_the_nodes_on_data_per_channel() -> None:
    """Along the last axis of tensors whose rank the file does not state, behind one that ONNX does not know either."""
    ends = {"lo": np.asarray([0, -1, -2], np.float32), "hi": np.asarray([1, 1, 2], np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("FakeQuantWithMinMaxVarsPerChannel", ["r", "lo", "hi"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("FakeQuantWithMinMaxVarsPerChannel", ["b", "lo", "hi"], ["y"]),
    ]
    graph = model(nodes, ends)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert graph.dump().count("uint8 scale 0.00392156886..0.0156862754 zero 0..127 axis 1 x3") == 2


def test_asymmetric_weights_keep_their_zero_point_in_signed_bytes() -> None:
    constants = {"w": W, "lo": np.asarray(-2, np.float32), "hi": np.asarray(4, np.float32)}
    nodes = [
        helper.make_node("FakeQuantWithMinMaxVars", ["w", "lo", "hi"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    graph = model(nodes, constants)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "int8 scale 0.0235294122 zero -43" in graph.dump()


@pytest.mark.parametrize("count", [0, 2])
def test_ends_that_do_not_fit_each_other(count: int) -> None:
    constants = {"w": W, "lo": np.zeros(3, np.float32), "hi": np.ones(count, np.float32)}
    nodes = [helper.make_node("FakeQuantWithMinMaxVarsPerChannel", ["w", "lo", "hi"], ["y"])]
    graph = model(nodes, constants)
    FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics.errors
    assert (found.code, found.tensor) == ("QAT104", "w")
    assert f"the shapes [3] and [{count}]" in found.message


@pytest.mark.parametrize(
    ("attrs", "ends", "code"),
    [
        ({"num_bits": 24}, (-1, 1), "QAT103"),
        ({}, (0, 0), "QAT201"),
        ({}, (np.nan, 1), "QAT201"),
        ({}, (2, 1), "QAT201"),
    ],
)
def test_broken_nodes_are_reported(attrs: dict[str, int], ends: tuple[float, float], code: str) -> None:
    constants = {"lo": np.asarray(ends[0], np.float32), "hi": np.asarray(ends[1], np.float32)}
    graph = model([helper.make_node("FakeQuantWithMinMaxVars", ["x", "lo", "hi"], ["y"], **attrs)], constants)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics] == [code]


def test_ranges_computed_at_run_time_are_reported() -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["hi"], keepdims=0),
        helper.make_node("ReduceMin", ["x"], ["lo"], keepdims=0),
        helper.make_node("FakeQuantWithMinMaxVars", ["x", "lo", "hi"], ["y"]),
    ]
    graph = model(nodes, {})
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(d.code, d.tensor) for d in graph.diagnostics] == [("QAT205", "lo"), ("QAT205", "hi")]


def test_a_float_model_of_tf2onnx_is_not_recognized() -> None:
    random = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert (
        FRONTEND.recognize(model(nodes, {"w": random.normal(size=(3, 40)).astype(np.float32)}), "tf2onnx 1.17") is None
    )


def test_one_number_a_channel_is_on_a_grid_by_itself() -> None:
    """Of float models of MediaPipe batch norm is a depthwise 1x1 convolution: that tells of no quantization."""
    weights = np.random.default_rng(0).normal(size=(96, 1, 1, 1)).astype(np.float32)
    assert find_grid(weights, 0) is not None
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=96)]
    assert FRONTEND.recognize(model(nodes, {"w": weights}), "tf2onnx 1.17") is None


def test_weights_on_a_grid_are_enough_to_be_recognized() -> None:
    """Of tf2onnx: others leave a file so whose ranges lie in another one (PPQ), and it must not pass without."""
    integers = np.random.default_rng(0).integers(-127, 128, (3, 40))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    seen = "weights on a quantization grid, producer tf2onnx 1.17"
    half = model(nodes, {"w": (integers * 0.01).astype(np.float16)})
    assert FRONTEND.recognize(half, "tf2onnx 1.17") == seen
    graph = model(nodes, {"w": integers.astype(np.float32) * np.float32(0.01)})
    assert FRONTEND.recognize(graph, "tf2onnx 1.17") == seen
    assert [each.recognize(graph, "pytorch") for each in (FRONTEND, pytorch.FRONTEND)] == [None, None]
    FRONTEND.normalize(graph, FrontendOptions())
    np.testing.assert_array_equal(graph.nodes[0].inputs[1].values, integers)


def test_who_names_the_dialect_decides_it(tmp_path: Path) -> None:
    """A tool that saved the file anew has dropped tf2onnx's name: the rounding of what tfmot left is TensorFlow's."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.1), "z": np.uint8(3), "w": random.normal(size=(3, 40)).astype(np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", 1, [2, 3])], [helper.make_tensor_value_info("y", 1, [2, 40])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    shares = {}
    for dialect in ("auto", "pytorch", "tensorflow"):
        result = compile_model(tmp_path / "m.onnx", dialect=dialect, qat=True, output=tmp_path / dialect)
        shares[result.dialect, dialect] = result.coverage.share
        assert not [d for d in result.diagnostics if d.code == "QAT105"]
    assert shares == {("pytorch", "auto"): 0, ("pytorch", "pytorch"): 0, ("tensorflow", "tensorflow"): 1}


def test_weights_on_no_grid_are_quantized_after_training() -> None:
    w = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    ends = {"lo": np.asarray(-1, np.float32), "hi": np.asarray(5, np.float32), "w": w}
    nodes = [
        helper.make_node("FakeQuantWithMinMaxVars", ["x", "lo", "hi"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    graph = model(nodes, ends)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics] == ["QAT206"]
    assert "w" in graph.params


@pytest.mark.parametrize(("bias", "fits"), [([7, -9], True), ([7, 1 << 40], False)])
def test_biases_of_64_bits(bias: list[int], fits: bool) -> None:
    """TFLite with 16-bit activations has them; ONNX does not."""
    constants = {
        "b": np.asarray(bias, np.int64),
        "bs": np.asarray([0.5, 0.25], np.float32),
        "bz": np.asarray([0, 0], np.int64),
        "w": np.asarray([[1, -2], [5, 4], [25, 3]], np.int8),
        "ws": np.asarray(0.5, np.float32),
        "wz": np.asarray(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], axis=0),
        helper.make_node("MatMul", ["x", "wf"], ["m"]),
        helper.make_node("Add", ["m", "bf"], ["y"]),
    ]
    graph = model(nodes, constants)
    FRONTEND.normalize(graph, FrontendOptions())
    found = [(p.dtype, p.scale) for name, p in graph.params.items() if name.startswith("b")]
    assert found == ([("int32", (0.5, 0.25))] if fits else [])


def test_a_function_that_was_left_out_is_named_with_the_way_around() -> None:
    graph = model([helper.make_node("PartitionedCall", ["x"], ["y"], name="conv2d")], {})
    FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics.errors
    assert (found.code, found.node) == ("QAT106", "conv2d")
    assert "Keras file or the SavedModel" in str(found.hint)


def test_the_exact_gelu_is_one_table() -> None:
    """tf2onnx leaves the Erfc of tf.nn.gelu(approximate=False), which no ONNX runtime knows."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Mul", ["d", "factor"], ["scaled"]),
        helper.make_node("Erfc", ["scaled"], ["e"]),
        helper.make_node("Mul", ["d", "half"], ["halved"]),
        helper.make_node("Mul", ["halved", "e"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    numbers = {"s": 0.05, "factor": -math.sqrt(0.5), "half": 0.5}
    constants = {k: np.asarray(v, np.float32) for k, v in numbers.items()}
    graph = model(nodes, {**constants, "z": np.asarray(0, np.int8)})
    FRONTEND.normalize(graph, FrontendOptions())
    strip(graph)
    integer = lower(graph, LoweringOptions())
    assert [op.kind for op in integer.ops] == ["Quantize", "Lookup", "Dequantize"]
    x = np.linspace(-6, 6, 6, dtype=np.float32).reshape(2, 3)
    q = np.clip(np.rint(x / np.float32(0.05)), -128, 127)
    gelu = [v * 0.05 * 0.5 * math.erfc(-v * 0.05 * math.sqrt(0.5)) for v in q.ravel()]
    found = execute(integer, {"x": x}, get_profile("onnx"))["y"]
    np.testing.assert_allclose(found.ravel(), np.rint(np.asarray(gelu) / 0.05) * 0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attrs", "function"),
    [
        ("TFL_GELU", {"approximate": 0}, lambda v: 0.5 * v * math.erfc(-v * math.sqrt(0.5))),
        (
            "TFL_GELU",
            {"approximate": 1},
            lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        ),
        ("TFL_RELU_N1_TO_1", {}, lambda v: min(max(v, -1.0), 1.0)),
        ("TFL_RELU_0_TO_1", {}, lambda v: min(max(v, 0.0), 1.0)),
    ],
)
def test_what_tf2onnx_leaves_of_tflite(op: str, attrs: dict[str, int], function: Callable[[float], float]) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(op, ["d"], ["g"], **attrs),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    graph = model(nodes, {"s": np.asarray(0.05, np.float32), "z": np.asarray(0, np.int8)})
    FRONTEND.normalize(graph, FrontendOptions())
    strip(graph)
    integer = lower(graph, LoweringOptions())
    assert {op.kind for op in integer.ops} <= {"Quantize", "Lookup", "Rescale", "Dequantize"}
    x = np.linspace(-6, 6, 6, dtype=np.float32).reshape(2, 3)
    q = np.clip(np.rint(x / np.float32(0.05)), -128, 127)
    want = np.rint(np.asarray([function(float(v) * 0.05) for v in q.ravel()]) / 0.05) * 0.05
    found = execute(integer, {"x": x}, get_profile("onnx"))["y"]
    np.testing.assert_allclose(found.ravel(), want, atol=1e-6)
