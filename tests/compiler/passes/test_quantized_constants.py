"""What is made of quantized constants alone is computed, and rounded as the graph says."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.runtime.sessions import RunnableModel
from tests.graphs import net, stripped

WEIGHT = "int8[2,2] wq = {1, 2, 3, 4}"


def spread(body: str, constants: str) -> QuantGraph:
    graph = stripped(net("(float[2,2] x) => (float[2,2] y)", body, constants))
    propagate(graph)
    return graph


def test_a_product_of_constants_is_rounded_onto_its_grid() -> None:
    """The first step of an unrolled GRU, whose state is zero."""
    graph = spread(
        "h = D(k)\nw = DequantizeLinear(wq, sD, zD)\nm = Gemm<transB = 1, alpha = 2.0>(h, w, b)\nn = B(m)\n"
        "a = B(x)\ny = Add(a, n)",
        f"{WEIGHT}, float[2,2] k = {{1.0, 2.0, 3.0, 4.0}}, float[2] b = {{1.0, -1.0}}",
    )
    assert [n.op for n in graph.nodes] == ["Add"]
    made = graph.nodes[0].inputs[1]
    want = 2 * np.float32([[1, 2], [3, 4]]) @ (np.float32([[1, 2], [3, 4]]) * 0.0625).T + np.float32([1, -1])
    value = graph.real(made)
    assert value is not None
    np.testing.assert_array_equal(value, np.clip(np.rint(want / 0.25), 0, 255) * 0.25)


def test_what_keeps_its_operands_grid_stays() -> None:
    graph = spread("w = DequantizeLinear(wq, sD, zD)\nr = Relu(w)\na = A(x)\ny = MatMul(a, r)", WEIGHT)
    assert [n.op for n in graph.nodes] == ["Relu", "MatMul"]
    assert str(graph.params["r"]) == "int8[0,127] scale 0.0625 zero 0"


@pytest.mark.parametrize(
    ("lines", "shape"),
    [
        ("m = Gemm<transA = 1, beta = 0.5>(h, w, b)\nn = B(m)", (2, 2)),
        ("m = Gemm<transB = 1>(h, w)\nn = A(m)", (3, 3)),
        ("n = Gemm<alpha = 0.25, transB = 1>(h, w, c)", (3, 3)),  # a product needs no grid of its own
        ("t = Transpose(w)\nn = MatMul(h, t)", (3, 3)),
        ("m = Sub(h, w)\nn = A(m)", (3, 2)),
        ("p = Exp(w)\nm = Div(h, p)\nn = A(m)", (3, 2)),  # a curve keeps no grid, and what follows it has none
        ("p = Add(w, w)\ne = B(p)\nr = Sqrt(e)\nm = Div(k, r)\nq = Mul(m, k)\nn = A(q)", (3, 2)),
        ("p = Abs(h)\ne = B(p)\nn = Div(k, e)", (3, 2)),
    ],
)
def test_what_is_computed_is_what_onnx_runtime_computes(lines: str, shape: tuple[int, int]) -> None:
    text = net(
        f"(float[{shape[0]},{shape[1]}] x) => (float[{shape[0]},{shape[1]}] y)",
        f"h = D(k)\nw = DequantizeLinear(wq, sD, zD)\n{lines}\na = A(x)\ny = Add(a, n)",
        "int8[3,2] wq = {1, -2, 30, 40, 50, 127}, float[3,2] k = {1, 2, -3, 4, 5, 0.3}, float[2] b = {1, -1}, "
        "float[3] c = {1, 2, 4}",
    )
    graph = stripped(text)
    propagate(graph)
    (add,) = graph.nodes
    value = graph.real(next(t for t in add.inputs if t is not graph.inputs[0]))
    want = RunnableModel(onnx.parser.parse_model(text)).run({"x": np.zeros(shape, np.float32)})["y"]
    assert value is not None
    np.testing.assert_array_equal(value, want)


def test_what_is_no_number_is_not_rounded() -> None:
    graph = spread("h = D(k)\nl = Log(h)\nn = B(l)\na = B(x)\ny = Add(a, n)", "float[2,2] k = {1.0, 2.0, -3.0, 4.0}")
    assert [n.op for n in graph.nodes] == ["Log", "Add"]


WIDE = "int8[3,2] wq = {1, -2, 30, 40, 50, 127}, float[3,1] g = {0.5, -3, 2}, float[2] c = {0.25, 4}, float k = {0.1}"


@pytest.mark.parametrize(
    ("lines", "scales", "axis"),
    [
        ("n = Mul(w, k)", 1, None),
        ("n = Div(w, k)", 1, None),
        ("n = Mul(g, w)", 3, 0),
        ("n = Mul(w, c)", 2, 1),
        ("l = ReduceL2<axes = [1]>(w)\nv = Div(w, l)\nn = Mul(g, v)", 3, 0),  # weight normalization
        ("r = ReduceSumSquare<axes = [1]>(w)\nl = Sqrt(r)\nv = Div(w, l)\nn = Mul(v, g)", 3, 0),
    ],
)
def test_a_factor_for_each_channel_is_one_of_the_scales(lines: str, scales: int, axis: int | None) -> None:
    text = net(
        "(float[2,3] x) => (float[2,2] y)",
        f"w = DequantizeLinear(wq, sD, zD)\n{lines}\na = A(x)\ny = MatMul(a, n)",
        WIDE,
    )
    graph = stripped(text)
    propagate(graph)
    (product,) = graph.nodes
    weight = product.inputs[1]
    params = graph.params[weight.name]
    assert (len(params.scale), params.axis) == (scales, axis)
    np.testing.assert_array_equal(np.abs(weight.values), np.abs([[1, -2], [30, 40], [50, 127]]))
    want = RunnableModel(onnx.parser.parse_model(text)).run({"x": np.eye(3, dtype=np.float32)[:2]})["y"]
    real = graph.real(weight)
    assert real is not None
    np.testing.assert_allclose(real[:2], want, rtol=1e-5)


@pytest.mark.parametrize("factor", [-2.0, 0.5])
def test_a_single_number_times_another(factor: float) -> None:
    graph = spread(
        "k = DequantizeLinear(q, sD, zD)\nm = Mul(k, f)\na = A(x)\ny = Mul(a, m)",
        f"int8 q = {{-128}}, float f = {{{factor}}}",
    )
    (made,) = [t for t in graph.nodes[-1].inputs if t.name != "x"]
    value = graph.real(made)
    assert value is not None
    assert (value.shape, float(value)) == ((), -8 * factor)


@pytest.mark.parametrize("line", ["Mul(w, zero)", "Mul(w, every)", "Mul(w, deep)", "Mul(w, infinite)"])
def test_what_is_no_factor_of_channels_stays(line: str) -> None:
    more = "float zero = {0}, float[3,2] every = {1, 2, 3, 4, 5, 6}, float[1,1,1] deep = {2}, float infinite = {inf}"
    body = f"w = DequantizeLinear(wq, sD, zD)\nn = {line}\na = A(x)\ny = MatMul(a, n)"
    graph = stripped(net("(float[2,3] x) => (float[] y)", body, f"{WIDE}, {more}"))
    propagate(graph)
    assert [n.op for n in graph.nodes] == ["Mul", "MatMul"]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_a_weight_that_is_standardized_with_roundings_in_between_is_a_constant(op: str) -> None:
    """PyTorch's FX quantizes what a network does to its weights, and leaves out the division and the float operand."""
    body = (
        f"w = D(k)\nm = ReduceMean<axes = [0], keepdims = 1>(w)\nn = C(m)\nc = {op}(k, n)\ns = C(g)\nd = Div(c, s)\n"
        "r = Reshape(d, shape)\nf = B(r)\nt = QuantizeLinear<axis = 0>(f, sw, zw)\n"
        "u = DequantizeLinear<axis = 0>(t, sw, zw)\na = A(x)\ny = MatMul(a, u)"
    )
    constants = (
        "float[2,2] k = {1, -0.7, 0.3, 2.2}, float[1,2] g = {0.6, 1.9}, float[2] sw = {0.01, 0.02}, "
        "int8[2] zw = {0, 0}, int64[2] shape = {2, 2}"
    )
    text = net("(float[2,2] x) => (float[2,2] y)", body, constants, opset=17)
    graph = stripped(text)
    propagate(graph)
    (product,) = graph.nodes
    assert product.op == "MatMul"
    weight = product.inputs[1]
    assert (graph.params[weight.name].dtype, graph.params[weight.name].axis) == ("int8", 0)
    x = np.eye(2, dtype=np.float32) * 0.5  # one step of A
    want = RunnableModel(onnx.parser.parse_model(text)).run({"x": x})["y"]
    value = graph.real(weight)
    assert value is not None
    np.testing.assert_array_equal(x @ value, want)


def test_arithmetic_that_is_not_rounded_in_the_end_stays() -> None:
    graph = spread(
        "w = DequantizeLinear(wq, sD, zD)\nc = Sub(w, k)\na = A(x)\ny = MatMul(a, c)",
        f"{WEIGHT}, float[2,2] k = {{1, 2, 3, 4}}",
    )
    assert [n.op for n in graph.nodes] == ["Sub", "MatMul"]
