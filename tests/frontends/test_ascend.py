"""Ascend: integer models of AMCT and msModelSlim mean what their float models with Q/DQ mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import QuantGraph
from qatc.frontends import ascend
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded

WEIGHT = np.asarray([3, -7, 127, 0, 5, -128, 64, 1, -2, 9, 11, -40], np.int8).reshape(3, 2, 1, 2)
BIAS = np.asarray([5, -300, 41], np.int32)
STEP = 0.25
SCALES = np.asarray([0.5, 0.125, 0.25], np.float32)
MATRIX = np.asarray([[1, -5], [100, 7], [-127, 3]], np.int8)
ENDS = "float[1,2,2,5] x) => (float[] y)"
X = np.linspace(-9, 9, 20, dtype=np.float32).reshape(1, 2, 2, 5)


def deq(scales: np.ndarray, upper: int = 0) -> np.ndarray:
    """Scales as Ascend stores them, under other numbers."""
    return scales.view(np.uint32).astype(np.uint64) | np.uint64(upper << 32)


def model_of(nodes: str, **constants: Any) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng ({ENDS} {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
    return model


def graph_of(nodes: str, **constants: Any) -> QuantGraph:
    graph = loaded(model_of(nodes, **constants))
    assert ascend.FRONTEND.recognize(graph, "")
    ascend.FRONTEND.normalize(graph, FrontendOptions())
    return graph


def expected(offset: int, tail: str = "y = Identity(c)") -> np.ndarray:
    """What the float model with Q/DQ answers: weights and biases at the scales of the integer one."""
    real = WEIGHT.astype(np.float32) * SCALES.reshape(3, 1, 1, 1) / np.float32(STEP)
    nodes = f"q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv<pads = [0, 1, 0, 1]>(d, w, b) {tail}"
    model = model_of(nodes, s=np.float32(STEP), z=np.int8(offset), w=real, b=BIAS.astype(np.float32) * SCALES)
    return run(model, X)[0]


@pytest.mark.parametrize(
    ("attributes", "offset"),
    [
        ('scale = 4.0, offset = 3.0, dst_type = "INT8"', 3),  # AMCT
        ("scale = 4.0, offset = -5.0, quant_bit = 8", -5),  # msModelSlim
        ('scale = 2.0, offset = 0.0, sqrt_mode = 1, dst_type = "INT8"', 0),
    ],
)
def test_a_convolution_of_integers(attributes: str, offset: int) -> None:
    nodes = (
        f"q = AscendQuant<{attributes}>(x) c = Conv<pads = [0, 1, 0, 1]>(q, w, b) y = AscendDequant<dtype = 0>(c, d)"
    )
    graph = graph_of(nodes, w=WEIGHT, b=BIAS, d=deq(SCALES))
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert f"FakeQuant[params=int8 scale 0.25 zero {offset}](x)" in graph.dump()
    assert "int8 scale 0.5..2 zero 0 axis 0 x3" in graph.dump()
    np.testing.assert_allclose(run_canonical(graph, X)[0], expected(offset), rtol=1e-6, atol=1e-6)


_ADDED = (
    'q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "INT8">(x) m = Conv<pads = [0, 1, 0, 1]>(q, w)'
    " c = Add(m, b) y = AscendDequant(c, d)"
)


def test_a_bias_added_behind_a_convolution() -> None:
    graph = graph_of(_ADDED, w=WEIGHT, b=BIAS.reshape(1, 3, 1, 1), d=deq(SCALES))
    graph.diagnostics.check()
    np.testing.assert_allclose(run_canonical(graph, X)[0], expected(3), rtol=1e-6, atol=1e-6)


def test_a_bias_of_other_channels_is_refused() -> None:
    graph = graph_of(_ADDED, w=WEIGHT, b=BIAS[:2].reshape(1, 2, 1, 1), d=deq(SCALES))
    assert [d.code for d in graph.diagnostics.errors] == ["QAT204"]


@pytest.mark.parametrize("other", ["u = AscendDequant(c, e)", "u = Cast<to = 1>(c)"])
def test_integers_that_something_else_reads_are_refused(other: str) -> None:
    """They would be multiplied by the scales of both."""
    nodes = (
        'q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "INT8">(x) c = Conv<pads = [0, 1, 0, 1]>(q, w, b)'
        f" t = AscendDequant(c, d) {other} y = Add(t, u)"
    )
    found = graph_of(nodes, w=WEIGHT, b=BIAS, d=deq(SCALES), e=deq(SCALES * 2)).diagnostics.errors
    assert {d.code for d in found} == {"QAT104"}


def test_a_relu_inside_and_a_product_behind() -> None:
    nodes = (
        'q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "INT8">(x) c = Conv<pads = [0, 1, 0, 1]>(q, w, b)'
        " r = AscendDequant<relu_flag = 1>(c, d) p = GlobalAveragePool(r) f = Flatten(p)"
        ' k = AscendQuant<scale = 2.0, offset = 0.0, dst_type = "INT8">(f) t = Reshape(k, shape) m = MatMul(t, v)'
        " a = Add(m, b2) y = AscendDequant(a, e)"
    )
    tail = (
        "r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) k = QuantizeLinear(f, s2, z2)"
        " t = DequantizeLinear(k, s2, z2) m = MatMul(t, v) y = Add(m, b2)"
    )
    graph = graph_of(
        nodes,
        w=WEIGHT,
        b=BIAS,
        d=deq(SCALES),
        v=MATRIX,
        e=deq(np.asarray([0.0625], np.float32)),
        b2=np.asarray([20, -9], np.int32),
        shape=np.asarray([1, 3]),
    )
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "int8 scale 0.125 zero 0" in graph.dump()
    real = WEIGHT.astype(np.float32) * SCALES.reshape(3, 1, 1, 1) / np.float32(STEP)
    nodes = f"q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv<pads = [0, 1, 0, 1]>(d, w, b) {tail}"
    model = model_of(
        nodes,
        s=np.float32(STEP),
        z=np.int8(3),
        w=real,
        b=BIAS.astype(np.float32) * SCALES,
        s2=np.float32(0.5),
        z2=np.int8(0),
        v=MATRIX.astype(np.float32) * np.float32(0.125),
        b2=np.asarray([20, -9], np.float32) * np.float32(0.0625),
    )
    np.testing.assert_allclose(run_canonical(graph, X)[0], run(model, X)[0], rtol=1e-6, atol=1e-6)


def test_integers_made_real_again() -> None:
    nodes = (
        'q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "INT8">(x) m = MaxPool<kernel_shape = [2, 2]>(q)'
        " y = AscendAntiQuant<scale = 0.25, offset = -3.0>(m)"
    )
    graph = graph_of(nodes)
    graph.diagnostics.check()
    assert "AscendAntiQuant" not in graph.dump()


def test_a_weight_quantizer_without_an_offset_is_nothing_and_scales_may_be_floats() -> None:
    nodes = (
        "q = AscendQuant<scale = 4.0, offset = 3.0>(x) v = AscendWeightQuant(w, o)"
        " c = Conv<pads = [0, 1, 0, 1]>(q, v, b) y = AscendDequant(c, d)"
    )
    graph = graph_of(nodes, w=WEIGHT, b=BIAS, d=SCALES, o=np.zeros(1, np.int8))
    graph.diagnostics.check()
    np.testing.assert_allclose(run_canonical(graph, X)[0], expected(3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ('q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "HIFP8">(x) y = Conv(q, w)', "QAT103"),
        ("q = AscendQuant<scale = -4.0, offset = 3.0>(x) y = Conv(q, w)", "QAT103"),
        ("q = AscendQuant<offset = 3.0>(x) y = Conv(q, w)", "QAT104"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) c = Conv(q, w) y = AscendDequant(c, shifted)", "QAT103"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) c = Conv(q, w) y = AscendDequant(c, x)", "QAT205"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) c = Conv(q, f) y = AscendDequant(c, d)", "QAT104"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) c = GlobalAveragePool(q) y = AscendDequant(c, d)", "QAT104"),
        ("c = Conv(x, w) y = AscendDequant(c, d)", "QAT104"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) c = Conv(q, w, x) y = AscendDequant(c, d)", "QAT205"),
        ("q = AscendQuant<scale = 4.0, offset = 0.0>(x) y = AscendAntiQuant<scale = 0.5, offset = 0.0>(q)", "QAT203"),
        ("v = AscendWeightQuant(w, o) y = Conv(x, v)", "QAT103"),
    ],
)
def test_what_is_refused(nodes: str, code: str) -> None:
    graph = graph_of(
        nodes,
        w=WEIGHT,
        f=WEIGHT.astype(np.float32),
        d=deq(SCALES),
        shifted=deq(SCALES, 3),
        o=np.asarray([1], np.int8),
    )
    assert {d.code for d in graph.diagnostics.errors} == {code}


def test_an_input_of_double_precision_is_cast_in_front() -> None:
    """The cast is made last and read first: it was taken for a node that nobody reads."""
    nodes = 'q = AscendQuant<scale = 4.0, offset = 3.0, dst_type = "INT8">(x) c = Conv<pads = [0, 1, 0, 1]>(q, w, b)'
    model = model_of(f"{nodes} y = AscendDequant(c, d)", w=WEIGHT, b=BIAS, d=deq(SCALES))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    graph = loaded(model)
    ascend.FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    np.testing.assert_allclose(run_canonical(graph, X.astype(np.float64))[0], expected(3), rtol=1e-6, atol=1e-6)
