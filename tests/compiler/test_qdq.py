"""QuantGraph -> QDQ: the form of what is written, and that it means the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.backends.qdq import BACKEND
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Node, QuantGraph, Variable
from qatc.compiler.qdq import QdqModel, can_raise, to_qdq
from qatc.compiler.quant import QuantParams
from qatc.compiler.runtime.processor import is_exact
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import stripped
from tests.pipeline import canonical, passes
from tests.random_models import models, random_input

CORPUS = Path(__file__).parent.parent / "corpus"

CONV = """
net (float[1,2,4,4] x) => (float[1,3,4,4] y)
<float s = {0.0625}, uint8 z = {128}, float[1] s1 = {0.0625}, uint8[1] z1 = {128},
 int8[3,2,1,1] w = {1, -2, 3, 4, -5, 127}, float[3] ws = {0.5, 0.25, 0.125}, int8[3] wz = {0, 0, 0},
 float[3] b = {0.5, -1, 2}, uint8 low = {0}, uint8 high = {200}, float os = {0.5}, uint8 oz = {3}>
{
  q = QuantizeLinear(x, s1, z1)
  d = DequantizeLinear(q, s, z)
  wd = DequantizeLinear <axis = 0> (w, ws, wz)
  c = Conv(d, wd, b)
  r = Relu(c)
  rq = QuantizeLinear(r, os, oz)
  rc = Clip(rq, low, high)
  y = DequantizeLinear(rc, os, oz)
}
"""


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def nodes(written: QdqModel, op: str) -> list[onnx.NodeProto]:
    return [n for n in written.model.graph.node if n.op_type == op]


def run(written: QdqModel, feeds: dict[str, np.ndarray], *, optimize: bool = False) -> dict[str, np.ndarray]:
    return RunnableModel(written.model, weights=written.external, optimize=optimize).run(feeds)


def checked(written: QdqModel) -> QdqModel:
    onnx.checker.check_model(written.model)
    onnx.shape_inference.infer_shapes(written.model, strict_mode=True)
    return written


def test_the_form_of_a_convolution():
    written = checked(to_qdq(stripped(CONV)))
    values = constants(written.model)
    assert Counter(n.op_type for n in written.model.graph.node) == {
        "QuantizeLinear": 2, "DequantizeLinear": 4, "Conv": 1, "Relu": 1, "Clip": 1,
    }  # fmt: skip
    for node in nodes(written, "QuantizeLinear"):
        assert [values[n].shape for n in node.input[1:]] == [(), ()]
        assert not node.attribute
    by_output = {n.output[0]: n for n in written.model.graph.node}
    (conv,) = nodes(written, "Conv")
    weight, bias = by_output[conv.input[1]], by_output[conv.input[2]]
    assert values[weight.input[0]].dtype == np.int8
    assert [a.i for a in weight.attribute if a.name == "axis"] == [0]
    assert values[bias.input[0]].dtype == np.int32
    assert len(bias.input) == 2  # an int32 DequantizeLinear takes no zero point
    np.testing.assert_array_equal(values[bias.input[0]], np.array([16, -64, 256]))
    (clip,) = nodes(written, "Clip")
    assert values[clip.input[2]] == 200
    assert values[clip.input[2]].dtype == np.uint8
    read = {n for node in written.model.graph.node for n in node.input}
    assert set(values) <= read  # no float bias is left beside its integers
    assert by_output["y"].op_type == "DequantizeLinear"
    assert written.rounded["x"] == "x_DequantizeLinear_Output"
    assert [o.name for o in written.model.graph.output] == ["y"]


def test_writing_is_deterministic_and_leaves_the_graph_alone():
    graph = stripped(CONV)
    before = graph.dump()
    first, second = to_qdq(graph), to_qdq(graph)
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert graph.dump() == before
    names = [n.name for n in first.model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_a_bias_that_int32_would_move_stays_float():
    graph = stripped(CONV.replace("{0.5, -1, 2}", "{0.513, -1, 2}"))
    coarse = to_qdq(graph, max_bias_error=1e-6)
    assert len(nodes(coarse, "DequantizeLinear")) == 3
    assert "bias stays float" in coarse.notes[0]
    assert len(nodes(to_qdq(graph, max_bias_error=0.1), "DequantizeLinear")) == 4
    assert len(nodes(to_qdq(graph, bias="float"), "DequantizeLinear")) == 3


def test_a_bias_without_a_rounded_result_stays_float():
    graph = stripped(CONV)
    del graph.params["y"]
    assert len(nodes(to_qdq(graph), "DequantizeLinear")) == 2


def test_a_shared_bias_is_written_once_for_each_reader():
    text = CONV.replace("r = Relu(c)", "c2 = Conv(d, wd, b)\n  a = Add(c, c2)\n  r = Relu(a)")
    graph = stripped(text)
    for node in graph.nodes:
        if node.op == "Conv":
            graph.params[node.outputs[0].name] = QuantParams.per_tensor(0.25, 7)
    written = checked(to_qdq(graph))
    first, second = nodes(written, "Conv")
    assert first.input[2] != second.input[2]


def test_one_number_for_all_channels_of_a_gemm_is_one_for_each():
    """It ended in an exception."""
    text = """
net (float[2,2] x) => (float[2,3] y)
<float s = {0.0625}, uint8 z = {128}, int8[2,3] w = {1, -2, 3, 4, -5, 127}, float[3] ws = {0.5, 0.25, 0.125},
 int8[3] wz = {0, 0, 0}, float[1] b = {0.5}, float os = {0.5}, uint8 oz = {3}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  wd = DequantizeLinear <axis = 1> (w, ws, wz)
  g = Gemm(d, wd, b)
  gq = QuantizeLinear(g, os, oz)
  y = DequantizeLinear(gq, os, oz)
}
"""
    written = checked(to_qdq(stripped(text)))
    (bias,) = [v for v in constants(written.model).values() if v.dtype == np.int32]
    np.testing.assert_array_equal(bias, [16, 32, 64])
    feeds = {"x": np.array([[1, -2], [0.5, 7]], np.float32)}
    wanted = RunnableModel(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>{text}')).run(feeds)
    np.testing.assert_array_equal(run(written, feeds)["y"], wanted["y"])


def test_a_requantize_is_one_more_pair():
    text = """
    net (float[1,4] x) => (float[1,4] y, float[1,4] raw)
    <float s = {0.5}, uint8 z = {9}>
    { raw = Relu(x)  q = QuantizeLinear(raw, s, z)  d = DequantizeLinear(q, s, z)  y = Neg(d) }
    """
    graph = stripped(text)
    assert [n.op for n in graph.nodes] == ["Relu", "Requantize", "Neg"]
    written = checked(to_qdq(graph))
    assert Counter(n.op_type for n in written.model.graph.node)["QuantizeLinear"] == 1
    found = run(written, {"x": np.array([[1.3, -1, 0.2, 9]], np.float32)})
    np.testing.assert_array_equal(found["raw"], np.array([[1.3, 0, 0.2, 9]], np.float32))
    np.testing.assert_array_equal(found["y"], -np.array([[1.5, 0, 0, 9]], np.float32))


# -- inputs and outputs -----------------------------------------------------------------------------------------------
def identity_graph(dtype: str = "uint8", kind: int = TensorProto.FLOAT, opset: int = 17) -> QuantGraph:
    x, y = Variable("x", kind, ["N", 4]), Variable("y", kind, ["N", 4])
    graph = QuantGraph([Node("Relu", "relu", {}, [x], [y])], [x], [y], opset=opset)
    graph.params = {name: QuantParams.per_tensor(0.5, 3, dtype) for name in ("x", "y")}
    return graph


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_integer_ports_keep_their_names(kind):
    graph = identity_graph()
    graph.integer_ports = {"x": kind, "y": TensorProto.UINT8}
    written = checked(to_qdq(graph))
    kinds = [p.type.tensor_type.elem_type for p in (*written.model.graph.input, *written.model.graph.output)]
    assert kinds == [kind, TensorProto.UINT8]
    shift, dtype = (-128, np.int8) if kind == TensorProto.INT8 else (0, np.uint8)
    codes = np.array([[0, 3, 4, 255]])
    found = run(written, {"x": (codes + shift).astype(dtype)})["y"]
    np.testing.assert_array_equal(found, np.array([[3, 3, 4, 255]], np.uint8), strict=True)


def test_float_ports_on_request():
    graph = identity_graph()
    graph.integer_ports = {"x": TensorProto.UINT8, "y": TensorProto.UINT8}
    written = checked(to_qdq(graph, io="float"))
    found = run(written, {"x": np.array([[-9, 0.6, 200, 0.2]], np.float32)})["y"]
    np.testing.assert_array_equal(found, np.array([[0, 0.5, 126, 0]], np.float32), strict=True)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types_are_rounded_in_float32(kind):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    written = checked(to_qdq(identity_graph(kind=kind)))
    found = run(written, {"x": np.array([[-9, 0.6, 200, 0.2]], dtype)})["y"]
    np.testing.assert_array_equal(found, np.array([[0, 0.5, 126, 0]], dtype), strict=True)


# -- widths -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["uint4", "int4", "uint2", "int2"])
def test_few_bits_are_bytes_with_a_clip(dtype):
    graph = identity_graph()
    top = {"uint4": 15, "int4": 7, "uint2": 3, "int2": 1}[dtype]
    graph.params = {"x": QuantParams.per_tensor(1.0, 0, dtype)}
    written = checked(to_qdq(graph))
    found = run(written, {"x": np.array([[-99, 0, 1, 99]], np.float32)})["y"]
    np.testing.assert_array_equal(found, np.array([[0, 0, 1, top]], np.float32))


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_sixteen_bits_raise_the_opset(dtype):
    graph = identity_graph(dtype)
    x, y = graph.inputs[0], graph.outputs[0]
    middle = Variable("m", TensorProto.FLOAT, ["N", 1])
    graph.nodes[0].outputs[0] = Variable("relu", TensorProto.FLOAT, ["N", 4])
    graph.insert("ReduceMean", [graph.nodes[0].outputs[0]], [middle], attrs={"axes": [1], "keepdims": 1})
    graph.insert("Add", [middle, x], [y])
    written = checked(to_qdq(graph))
    assert written.model.opset_import[0].version == 21
    microsoft = to_qdq(graph, portable=False)
    assert microsoft.model.opset_import[0].version == 17
    assert {n.domain for n in nodes(microsoft, "QuantizeLinear")} == {"com.microsoft"}
    feeds = {"x": np.array([[-9, 0.6, 200, 0.2]], np.float32)}
    np.testing.assert_array_equal(run(written, feeds)["y"], run(microsoft, feeds)["y"])


def test_what_cannot_be_raised_uses_onnx_runtimes_own_operator():
    graph = identity_graph("int16")
    for op in ("GroupNormalization", "If"):  # in whose branches may be a ReduceMean with axes as an attribute
        graph.nodes[0].op = op
        assert not can_raise(graph, 21)
        assert "com.microsoft" in to_qdq(graph).notes[0]


def test_wide_activations_are_refused():
    graph = identity_graph()
    graph.params["y"] = QuantParams.per_tensor(1.0, 0, "int32")
    with pytest.raises(CompileError) as caught:
        to_qdq(graph)
    (found,) = caught.value.diagnostics
    assert found.code == "QAT302"
    assert "16 bits at most" in found.message
    assert "int16" in (found.hint or "")


def test_constants_may_lie_in_a_file_of_their_own():
    graph = stripped(CONV)
    weight = graph.constant("big", np.arange(8192, dtype=np.uint8).reshape(64, 128), QuantParams.per_tensor(0.5, 7))
    graph.insert("Identity", [weight], [other := Variable("other", TensorProto.FLOAT, [64, 128])])
    graph.outputs.append(other)
    infer_shapes(graph)
    inside, apart = to_qdq(graph), to_qdq(graph, data_file=True)
    assert [name for name, _ in apart.external] == ["big_quantized"]
    assert apart.data_file
    feeds = {"x": np.ones((1, 2, 4, 4), np.float32)}
    expected, found = run(inside, feeds), run(apart, feeds)
    assert all((expected[n] == found[n]).all() for n in expected)


# -- meaning ----------------------------------------------------------------------------------------------------------
def meaning(graph: QuantGraph) -> tuple[Counter[str], list[str]]:
    """Operators and grids; the range that a constant's integers happen to keep is no part of it."""
    fixed = {t.name for t in graph.tensors() if not t.inputs and t not in graph.inputs}
    grids = [p.with_range(*full(p)) if name in fixed else p for name, p in graph.params.items()]
    return Counter(n.op for n in graph.nodes), sorted(map(str, grids))


def full(params: QuantParams) -> tuple[int, int]:
    info = np.iinfo(params.container)
    return int(info.min), int(info.max)


def strip_of(model: onnx.ModelProto) -> QuantGraph:
    graph = next(graph for name, graph in passes(model) if name == "strip")
    infer_shapes(graph)
    return graph


@settings(max_examples=40)
@given(model=models(dyadic=False), seed=st.integers(0, 1000))
def test_a_stripped_model_written_back_gives_the_same_results_and_the_same_graph(model, seed):
    feeds = random_input(model, seed, dyadic=False)
    graph = strip_of(model)
    written = checked(to_qdq(graph, bias="float"))
    expected, found = RunnableModel(model).run(feeds), run(written, feeds)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)
    assert meaning(strip_of(written.model)) == meaning(graph)


@pytest.mark.parametrize(
    "name", ["fx-fbgemm-nofold__resnet8", "fx-u8pc__vit", "eager-u8pc-convert__eager", "pt2e-x86__vit"]
)
def test_real_models_load_with_and_without_optimizations(name):
    model = onnx.load(CORPUS / name / "model.onnx")
    feeds = {model.graph.input[0].name: np.load(CORPUS / name / "input_0.npy")}
    graph = strip_of(model)
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    assert canonical(emission.model).params is not None
    plain = RunnableModel(emission.model).run(feeds)
    fast = RunnableModel(emission.model, optimize=True).run(feeds)
    expected = RunnableModel(model).run(feeds)
    for output, value in expected.items():
        span = float(np.abs(value).max())
        assert np.abs(plain[output] - value).max() <= 0.02 * span
        # ONNX Runtime makes integer products of it, which this processor may saturate
        assert not is_exact() or np.abs(fast[output] - value).max() <= 0.05 * span
        assert np.isfinite(fast[output]).all()


def test_options_of_the_backend():
    graph = stripped(CONV)
    assert (
        len([n for n in BACKEND.emit(graph, BACKEND.checked({})).model.graph.node if n.op_type == "DequantizeLinear"])
        == 4
    )
    floating = BACKEND.emit(graph, BACKEND.checked({"bias": "float"}))
    assert len([n for n in floating.model.graph.node if n.op_type == "DequantizeLinear"]) == 3
    assert floating.names["x"] == "x"  # as it is fed
    assert floating.names["x_quantized"] == "x_QuantizeLinear_Output"
    with pytest.raises(CompileError) as caught:
        BACKEND.checked({"biass": "float"})
    assert "did you mean bias" in (caught.value.diagnostics[0].hint or "")
