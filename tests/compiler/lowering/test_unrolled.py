"""Layer normalization written out as older opsets have it: one integer operator where that is asked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qatc import compile_model, verify_package
from qatc.compiler.integer import IntegerGraph, LayerNorm
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.shapes import infer_shapes
from tests.graphs import net, stripped

SHAPE = "(float[2,3,4] x) => (float[2,3,4] y)"
CONSTANTS = (
    "float e = {0.25}, float p = {2.0}, float[4] g = {1.0, 0.5, 0.25, 2.0}, float[1,4] b = {0.0, 0.5, 1.0, 2.0}, "
)
CONSTANTS += "float half = {0.5}, float minus = {-0.5}, int64[1] ax = {-1}"
START = "a = A(x)\nm = ReduceMean<axes = [-1]>(a)\nd = Sub(a, m)\n"
SQUARE = "s = Pow(d, p)\n"
ROOT = "v = ReduceMean<axes = [-1]>(s)\nw = Add(v, e)\nr = Sqrt(w)\n"
OTHER = "u = C(x)\nmu = ReduceMean<axes = [-1]>(u)\ndu = Sub(u, mu)\n"
APART = "k = Div(g, r)\no = Mul(k, a)\nq = Mul({}, m)\nt = {}\nl = Add(t, o)\ny = A(l)"
CONSTANTS += ", float zero = {0.0}, float[4] powers = {2.0, 3.0, 2.0, 2.0}"
END = "n = Div(d, r)\nk = Mul(n, g)\nl = Add(k, b)\ny = A(l)"


def lowered(body: str, opset: int = 13, more: str = "") -> IntegerGraph:
    graph = stripped(net(SHAPE, body, CONSTANTS + more, opset=opset))
    infer_shapes(graph)
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    result = lower(graph, LoweringOptions(operators=frozenset({"LayerNorm"})))
    graph.diagnostics.check()
    result.verify()
    return result


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (START + SQUARE + ROOT + END, [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (START + "s = Mul(d, d)\n" + ROOT + END, [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (START + "d2 = Sub(a, m)\ns = Pow(d2, p)\n" + ROOT + END, [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (START + SQUARE + ROOT + "i = Reciprocal(r)\nn = Mul(i, d)\nl = Add(b, n)\ny = A(l)",
         [[1, 1, 1, 1], [0, 0.5, 1, 2]]),
        (START + SQUARE + ROOT + "n = Div(d, r)\nk = Mul(e, n)\nq = Relu(k)\ny = A(q)", [[0.25] * 4]),
        (START + SQUARE + ROOT + "n = Div(d, r)\ny = A(n)", [[1, 1, 1, 1]]),
        (START + SQUARE + ROOT + "i = Reciprocal(r)\nk = Mul(i, g)\nn = Mul(d, k)\nl = Add(n, b)\ny = A(l)",
         [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (START + SQUARE + ROOT + "k = Mul(d, g)\nn = Div(k, r)\no = Mul(n, e)\ny = A(o)",
         [[0.25, 0.125, 0.0625, 0.5]]),
        (START + SQUARE + ROOT + "i = Reciprocal(r)\nk = Mul(i, g)\no = Mul(a, k)\nq = Mul(m, k)\nt = Sub(b, q)\n"
         "l = Add(o, t)\ny = A(l)", [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (START + SQUARE + ROOT + "k = Div(g, r)\no = Mul(k, a)\nq = Mul(k, m)\nt = Sub(b, q)\nl = Add(t, o)\ny = A(l)",
         [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
    ],
    ids=["pow", "square", "twice", "reciprocal", "one factor", "bare", "gamma first", "two factors", "apart",
         "apart, divided"],
)  # fmt: skip
def test_what_is_written_out_is_one_operator(body: str, constants: list[list[float]]) -> None:
    graph = lowered(body)
    (op,) = [op for op in graph.ops if isinstance(op, LayerNorm)]
    assert op.epsilon == 0.25
    assert [graph.constants[name].tolist() for name in op.inputs[1:]] == constants
    assert [op.kind for op in graph.ops] == ["Quantize", "LayerNorm", "Dequantize"]


@pytest.mark.parametrize(
    "body",
    [
        START + "s = Pow(d, e)\n" + ROOT + END,
        START + SQUARE + ROOT.replace("axes = [-1]", "axes = [1]") + END,
        START.replace("Sub(a, m)", "Sub(m, a)") + SQUARE + ROOT + END,
        START + "f = C(d)\ns = Pow(f, p)\n" + ROOT + END,
        START + SQUARE + ROOT + "n = Div(r, d)\nk = Mul(n, g)\nl = Add(k, b)\ny = A(l)",
        START + SQUARE + ROOT + "n = Mul(d, e)\nl = Add(n, b)\ny = A(l)",
        START + SQUARE + ROOT + "k = Div(g, r)\no = Mul(k, a)\nq = Mul(k, d)\nt = Sub(b, q)\nl = Add(t, o)\ny = A(l)",
        START + SQUARE + ROOT + "k = Div(g, r)\nf = Div(e, r)\no = Mul(k, a)\nq = Mul(f, m)\nt = Sub(b, q)\n"
        "l = Add(t, o)\ny = A(l)",
        START + SQUARE + ROOT + "n = Div(d, r)\nk = Div(n, g)\ny = A(k)",
        OTHER + START.replace("Sub(a, m)", "Sub(a, mu)") + SQUARE + ROOT + END,
        START.replace("Sub(a, m)", "Add(a, m)") + SQUARE + ROOT + END,
        START + SQUARE + ROOT.replace("Add(v, e)", "Sub(v, e)") + END,
        START + SQUARE + ROOT.replace("Add(v, e)", "Add(v, zero)") + END,
        START + SQUARE + ROOT.replace("Add(v, e)", "Add(v, zero)") + APART.format("k", "Sub(b, q)"),
        START + "s = Pow(d, powers)\n" + ROOT + END,
        START + "s = Add(d, p)\n" + ROOT + END,
        START + SQUARE + ROOT + APART.format("k", "Add(b, q)"),
        START + SQUARE + ROOT + APART.format("k", "Sub(q, b)"),
        START + SQUARE + ROOT + "w2 = Add(v, half)\nr2 = Sqrt(w2)\nk2 = Div(g, r2)\n" + APART.format("k2", "Sub(b, q)"),
        START + OTHER + "s = Pow(du, p)\n" + ROOT + APART.format("k", "Sub(b, q)"),
        OTHER + START + SQUARE + ROOT + APART.format("k", "Sub(b, q)").replace("Mul(k, m)", "Mul(k, mu)"),
    ],
    ids=[
        "another power",
        "other axes",
        "minus x",
        "rounded between",
        "upside down",
        "not divided",
        "no mean",
        "another factor",
        "divided by gamma",
        "another's mean",
        "plus the mean",
        "less epsilon",
        "no epsilon",
        "apart: no epsilon",
        "several powers",
        "no power",
        "apart: plus the mean",
        "apart: minus beta",
        "apart: two deviations",
        "apart: another's deviation",
        "apart: another's mean",
    ],
)
def test_what_is_none_stays_float(body: str) -> None:
    assert not [op for op in lowered(body).ops if isinstance(op, LayerNorm)]


QUANTIZED = ", int8 two = {2}, int8 four = {4}"


def test_quantized_powers_and_epsilons_are_real_numbers() -> None:
    """Not their integers: d ** -0.125, which is no square, and 0.25."""
    power = "k2 = DequantizeLinear(two, sC, zC)\ns = Pow(d, k2)\n"
    assert not [op for op in lowered(START + power + ROOT + END, more=QUANTIZED).ops if isinstance(op, LayerNorm)]
    root = "k4 = DequantizeLinear(four, sD, zD)\n" + ROOT.replace("Add(v, e)", "Add(v, k4)")
    (op,) = [op for op in lowered(START + SQUARE + root + END, more=QUANTIZED).ops if isinstance(op, LayerNorm)]
    assert op.epsilon == 0.25


MEAN = "v = ReduceMean<axes = [-1]>(s)\nw = Add(v, e)\n"
RMS = "a = A(x)\ns = Pow(a, p)\n" + MEAN


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (RMS + "r = Sqrt(w)\nn = Div(a, r)\nk = Mul(n, g)\ny = A(k)", [[1, 0.5, 0.25, 2]]),
        (RMS + "r = Sqrt(w)\ni = Reciprocal(r)\nn = Mul(a, i)\nk = Mul(g, n)\ny = A(k)", [[1, 0.5, 0.25, 2]]),
        (RMS + "r = Sqrt(w)\nk = Div(g, r)\nn = Mul(k, a)\ny = A(n)", [[1, 0.5, 0.25, 2]]),
        (RMS + "i = Pow(w, minus)\nn = Mul(a, i)\nk = Mul(n, g)\nl = Add(k, b)\ny = A(l)",
         [[1, 0.5, 0.25, 2], [0, 0.5, 1, 2]]),
        (RMS + "r = Pow(w, half)\nn = Div(a, r)\ny = A(n)", [[1, 1, 1, 1]]),
        (RMS.replace("Pow(a, p)", "Mul(a, a)") + "r = Sqrt(w)\nn = Div(a, r)\nm = Relu(n)\ny = A(m)", [[1, 1, 1, 1]]),
    ],
    ids=["divided", "reciprocal", "gamma divided", "power of -1/2, a bias", "power of 1/2", "bare, clamped"],
)  # fmt: skip
def test_rms_normalization_is_one_operator(body: str, constants: list[list[float]]) -> None:
    graph = lowered(body)
    (op,) = [op for op in graph.ops if isinstance(op, LayerNorm)]
    assert (op.uncentered, op.epsilon) == (True, 0.25)
    assert [graph.constants[name].tolist() for name in op.inputs[1:]] == constants
    assert [op.kind for op in graph.ops] == ["Quantize", "LayerNorm", "Dequantize"]


@pytest.mark.parametrize(
    "body",
    [
        RMS + "r = Sqrt(w)\nt = Neg(a)\nu = B(t)\nn = Div(u, r)\ny = A(n)",
        RMS.replace("s = Pow(a, p)", "t = Pow(a, p)\ns = B(t)") + "r = Sqrt(w)\nn = Div(a, r)\ny = A(n)",
        RMS + "r = Pow(w, minus)\nn = Div(a, r)\ny = A(n)",
        RMS + "r = Pow(w, e)\nn = Div(a, r)\ny = A(n)",
        RMS.replace("axes = [-1]", "axes = [1]") + "r = Sqrt(w)\nn = Div(a, r)\ny = A(n)",
        RMS.replace("axes = [-1]", "axes = [-1], keepdims = 0")
        + "r = Sqrt(w)\nn = Div(a, o)\ny = A(n)".replace("o)", "u)").replace("n =", "u = Unsqueeze(r, ax)\nn ="),
    ],
    ids=[
        "of another tensor",
        "a rounded square",
        "times the root",
        "another root",
        "other axes",
        "its axis is dropped",
    ],
)
def test_what_is_no_rms_normalization_stays_float(body: str) -> None:
    assert not [op for op in lowered(body).ops if isinstance(op, LayerNorm)]


def test_the_range_of_its_input_is_missed() -> None:
    body = (START + SQUARE + ROOT + END).replace("a = A(x)", "a = Neg(x)")
    graph = stripped(net(SHAPE, body, CONSTANTS, opset=13))
    infer_shapes(graph)
    assert [t.name for t in missing_ranges(graph, {"LayerNorm"})] == ["x", "a"]
    assert missing_ranges(graph) != missing_ranges(graph, {"LayerNorm"})


@pytest.mark.parametrize("activations", ["uint8", "keep"])
@pytest.mark.parametrize(("start", "means"), [(START + SQUARE, 2), ("a = A(x)\nd = Identity(a)\n" + SQUARE, 1)])
def test_the_whole_road(start: str, means: int, activations: str, tmp_path: Path) -> None:
    text = net(SHAPE, start + ROOT + END.replace("y = A(l)", "y = C(l)"), CONSTANTS, opset=13)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    (tmp_path / "edge.toml").write_text(
        f'name = "edge"\nbackend = "onnx"\noperators = ["LayerNorm"]\nactivations = "{activations}"\n'
        '[options]\nlayernorm = "integer"\n'
    )
    result = compile_model(
        tmp_path / "m.onnx", qat=True, target=str(tmp_path / "edge.toml"), require_integer=True, samples=4,
        golden=True, output=tmp_path / "p",
    )  # fmt: skip
    assert result.package_ops["ReduceMean"] == means
    assert verify_package(tmp_path / "p").passed
