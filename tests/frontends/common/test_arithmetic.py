"""Fake quantization written as arithmetic, in the orders that people write it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import Constant, QuantGraph
from qatc.frontends.pytorch import FRONTEND
from tests.frontends.running import run, run_canonical, values
from tests.graphs import loaded
from tests.pipeline import read

CONSTANTS = (
    "float s = {0.25}, float r = {4.0}, float z = {3}, float m = {-3}, float h = {0.5}"
    ", float lo = {0}, float hi = {255}"
)
U8 = "FakeQuant[params=uint8 scale 0.25 zero 3](x)"


def text_of(nodes: str, more: str = "", x: str = "float[2,3] x") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\ng ({x}) => (float[] y) <{CONSTANTS}{more}> {{ {nodes} }}'


@pytest.mark.parametrize(
    ("nodes", "more", "want"),
    [
        ("a = Div(x, s) b = Round(a) c = Add(b, z) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)", "", U8),
        ("a = Mul(x, r) b = Round(a) c = Add(z, b) d = Clip(c, lo, hi) e = Sub(d, z) y = Div(e, r)", "", U8),
        ("a = Mul(r, x) b = Round(a) c = Sub(b, m) d = Max(c, lo) f = Min(d, hi) e = Add(d2, m) y = Mul(s, e)", "", U8),
        ("a = Div(x, s) c = Add(a, z) b = Round(c) d = Clip(b, lo, hi) e = Sub(d, z) y = Mul(e, s)", "", U8),
        ("a = Div(x, s) c = Add(a, z) d = Clip(c, lo, hi) b = Round(d) e = Sub(b, z) y = Mul(e, s)", "", U8),
        (
            "a = Div(x, s) c = Add(a, z) g = Add(c, h) b = Floor(g) d = Clip(b, lo, hi) e = Sub(d, z) y = Mul(e, s)",
            "",
            U8,
        ),
        (  # the clamp counts from zero, the range is -3..252
            "a = Div(x, s) b = Round(a) d = Clip(b, l, u) y = Mul(d, s)",
            ", float l = {-3}, float u = {252}",
            "FakeQuant[params=uint8 scale 0.25 zero 3](x)",
        ),
        (
            "a = Div(x, s) d = Clip(a, l, u) b = Round(d) y = Mul(b, s)",
            ", float l = {-8}, float u = {7}",
            "FakeQuant[params=int8[-8,7] scale 0.25 zero 0](x)",
        ),
        (  # PACT: the clamp is on the real values, before the division
            "c = Clip(x, lo, a) b = Div(c, s) d = Round(b) y = Mul(d, s)",
            ", float a = {3.75}",
            "FakeQuant[params=uint8[0,15] scale 0.25 zero 0](",
        ),
        (  # from a minimum: y = round((x - a) / s) * s + a
            "c = Clip(x, l, u) b = Sub(c, l) d = Div(b, s) e = Round(d) f = Mul(e, s) y = Add(f, l)",
            ", float l = {-1.0}, float u = {2.75}",
            "FakeQuant[params=uint8[0,15] scale 0.25 zero 4](",
        ),
        (  # LSQ with its straight-through rounding
            "a = Div(x, s) d = Clip(a, l, u) n = Round(d) o = Sub(n, d) b = Add(o, d) y = Mul(b, s)",
            ", float l = {-128}, float u = {127}",
            "FakeQuant[params=int8 scale 0.25 zero 0](x)",
        ),
        (  # straight-through around the whole
            "a = Div(x, s) b = Round(a) d = Clip(b, l, u) e = Mul(d, s) o = Sub(e, x) y = Add(x, o)",
            ", float l = {-128}, float u = {127}",
            "FakeQuant[params=int8 scale 0.25 zero 0](x)",
        ),
        (  # QKeras: quantized_bits, the clamp on the scaled value
            "a = Mul(x, r) g = Add(a, h) b = Floor(g) c = Div(b, t) d = Clip(c, l, u) e = Mul(d, t2)"
            " n = Neg(x) o = Add(n, e) y = Add(x, o)",
            ", float l = {-1}, float u = {0.9375}, float t = {16}, float t2 = {4}",
            "FakeQuant[params=int8[-16,15] scale 0.25 zero 0](x)",
        ),
        (
            "a = Div(x, c) b = Round(a) d = Clip(b, l, u) y = Mul(d, c)",
            ", float[2,1] c = {0.5, 0.25}, float l = {-128}, float u = {127}",
            "FakeQuant[params=int8 scale 0.25..0.5 zero 0 axis 0 x2](x)",
        ),
        (
            "a = Div(x, s) b = Round(a) d = Clip(b, l, u) y = Mul(d, s)",
            ", float l = {-32768}, float u = {32767}",
            "FakeQuant[params=int16 scale 0.25 zero 0](x)",
        ),
        # tf2onnx: layouts meet inside of it
        (
            "a = Div(x, s) t = Transpose(a) b = Round(t) c = Add(b, z) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)",
            "",
            U8,
        ),
        (
            "a = Div(x, s) b = Round(a) t = Transpose(b) c = Add(z, t) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)",
            "",
            U8,
        ),
        (
            "t = Transpose(x) a = Div(t, s) c = Add(a, z) u = Transpose(c) d = Clip(u, lo, hi) b = Round(d)"
            " e = Sub(b, z) v = Transpose(e) y = Mul(v, s)",
            "",
            "FakeQuant[params=uint8 scale 0.25 zero 3](t)",
        ),
        (
            "a = Mul(x, r) t = Transpose(a) b = Round(t) u = Transpose(b) d = Max(l, u) v = Transpose(d)"
            " e = Min(v, k) y = Div(e, r)",
            ", float l = {-8}, float k = {7}",
            "FakeQuant[params=int8[-8,7] scale 0.25 zero 0](x)",
        ),
        # QKeras through tf2onnx: twice a difference that is negated, and transposed anew wherever it is read
        (  # quantized_bits, with a share of noise of one
            "a = Mul(x, r) b = Round(a) i = Neg(a) j = Add(i, b) k = Add(a, j) c = Min(k, u) d = Max(c, l)"
            " e = Mul(d, s) n = Neg(x) o = Add(n, e) g = Mul(one, o) y = Add(x, g)",
            ", float l = {-128}, float u = {127}, float one = {1}",
            "FakeQuant[params=int8 scale 0.25 zero 0](x)",
        ),
        (  # quantized_relu: the gradient is that of a function of its own
            "a = Mul(x, r) i = Neg(a) t = Transpose(a) b = Round(t) v = Transpose(b) j = Add(i, v) k = Add(a, j)"
            " c = Mul(k, f) d = Min(c, u) e = Max(d, l) g = Mul(r, e)"
            " w = Relu(x) n = Neg(w) o = Add(n, g) y = Add(w, o)",
            ", float f = {0.0625}, float l = {0}, float u = {0.9375}",
            "FakeQuant[params=uint8[0,15] scale 0.25 zero 0](x)",
        ),
        (
            "q = Clip(x, l, u) a = Div(q, s) b = Round(a) e = Mul(b, s) w = Transpose(x) n = Neg(w)"
            " p = Transpose(n) o = Add(p, e) z1 = Transpose(w) y = Add(z1, o)",
            ", float l = {0}, float u = {3.75}",
            "FakeQuant[params=uint8[0,15] scale 0.25 zero 0](",
        ),
        (  # HGQ: one number for each element, noise of v - v, and a choice of what has bits at all
            "a = Min(x, u) b = Max(a, l) c = Mul(b, rs) i = Sub(c, c) j = Add(c, h) k = Floor(j) n = Add(k, i)"
            " e = Mul(n, ss) f = Mul(ones, e) y = Add(f, zeros)",
            ", float u = {31.75}, float l = {-32}, float[1,3] rs = {4, 4, 4}, float[1,3] ss = {0.25, 0.25, 0.25}"
            ", float[1,3] ones = {1, 1, 1}, float[1,3] zeros = {0, 0, 0}",
            "FakeQuant[params=int8 scale 0.25 zero 0](",
        ),
        (  # quantized_tanh: rounded to one step more than it keeps
            "p = Mul(x, f) q = Add(p, h) c = Clip(q, lo, one) g = Mul(k, c) i = Sub(g, n) a = Mul(i, r) b = Round(a)"
            " e = Mul(b, s) d = Min(e, u) y = Max(d, l)",
            ", float f = {0.015625}, float one = {1}, float k = {64}, float n = {32}, float u = {31.75}"
            ", float l = {-32}",
            "FakeQuant[params=int8 scale 0.25 zero 0](x)",
        ),
        (  # around the middle of a range: to 0..1, to 254 steps, and back
            "a = Mul(x, inv) c = Clip(a, n1, one) d = Mul(c, h) e = Add(d, h) f = Mul(e, k) g = Round(f) i = Div(g, k)"
            " j = Mul(i, two) m2 = Sub(j, one) y = Mul(m2, top)",
            ", float inv = {0.031496063}, float n1 = {-1}, float one = {1}, float k = {254}, float two = {2}"
            ", float top = {31.75}",
            "FakeQuant[params=uint8[0,254] scale 0.25 zero 127](x)",
        ),
        (  # an offset around a quantizer that is one without it
            "b = Sub(x, o) a = Div(b, s) d = Clip(a, l, u) e = Round(d) f = Mul(e, s) y = Add(f, o)",
            ", float o = {0.75}, float l = {-128}, float u = {127}",
            "FakeQuant[params=int8 scale 0.25 zero -3](x)",
        ),
        (  # equalized by nothing
            "o = Div(x, ones) a = Div(o, s) b = Round(a) c = Add(b, z) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, s)",
            ", float[1] ones = {1}",
            U8,
        ),
        (  # the offset is rounded behind alone: what is rounded moves by 0.4 of a step
            "c = Clip(x, l, u) b = Sub(c, l) a = Div(b, s) e = Round(a) f = Add(e, w) y = Mul(f, s)",
            ", float l = {-1.1}, float u = {2.65}, float w = {-4}",
            "FakeQuant[params=uint8[0,15] scale 0.25 zero 4](",
        ),
    ],
)
def test_orders(nodes: str, more: str, want: str) -> None:
    nodes = nodes.replace("f = Min(d, hi) e = Add(d2, m)", "f = Min(d, hi) e = Add(f, m)")
    text = text_of(nodes, more)
    graph = loaded(text)
    assert FRONTEND.recognize(graph, "") == "1 fake quantization written as arithmetic, producer unknown"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    quantizers = [line for line in graph.dump().splitlines() if "FakeQuant" in line]
    assert [q.split(" = ", 1)[1].startswith(want) for q in quantizers] == [True]
    assert "Round" not in graph.dump()
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 3.6, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        "b = Round(x) y = Mul(b, s)",  # nothing undoes the scale
        "a = Div(x, s) b = Round(a) y = Mul(b, s)",  # no range
        "a = Div(x, s) b = Round(a) d = Relu(b) y = Mul(d, s)",  # half a range
        "a = Div(x, s) b = Ceil(a) d = Relu(b) y = Mul(d, s)",
    ],
)
def test_other_roundings_stay(nodes: str) -> None:
    graph = loaded(text_of(nodes))
    before = graph.dump()
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant" not in graph.dump()
    assert graph.dump() == before.replace("s, ", "0.25, ") or "Round" in graph.dump() or "Ceil" in graph.dump()


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("a = Div(x, s) b = Round(a) d = Clip(b, lo, hi) y = Mul(d, r)", "uint8 scale 4 zero 0"),
        ("p = Mul(x, x) a = Mul(p, r) b = Round(a) d = Clip(b, lo, hi) y = Mul(d, h)", "uint8 scale 0.5 zero 0"),
        ("a = Mul(x, r) e = Clip(a, lo, hi) b = Round(e) y = Mul(b, h)", "uint8 scale 0.5 zero 0"),
        ("a = Mul(x, r) c = Add(a, h) b = Floor(c) d = Clip(b, lo, hi) y = Mul(d, h)", "uint8 scale 0.5 zero 0"),
        ("b = Round(x) d = Clip(b, lo, hi) y = Mul(d, r)", "uint8 scale 4 zero 0"),
        ("a = Mul(x, r) b = Round(a) c = Clip(b, lo, hi) d = Sub(c, z) y = Mul(d, h)", "uint8 scale 0.5 zero 3"),
    ],
)
def test_a_division_that_was_merged_into_a_factor(nodes: str, want: str) -> None:
    """TensorFlow folds x * k / s to x * c, and what it rounds then is scaled by another number than c undoes."""
    text = text_of(nodes)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert f"FakeQuant[params={want}](" in graph.dump()
    assert "Round" not in graph.dump()
    assert "Floor" not in graph.dump()
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 3.65, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


@pytest.mark.parametrize(
    ("dtype", "want"),
    [("INT8", "int8"), ("UINT8", "uint8"), ("INT4", "int8[-8,7]"), ("UINT4", "uint8[0,15]"), ("INT16", "int16")],
)
def test_a_cast_to_integers_is_a_clamp(dtype: str, want: str) -> None:
    """JAX's quantizers clamp nothing else: what is beyond the type saturates (in ONNX it may become anything)."""
    kind = onnx.TensorProto.DataType.Value(dtype)
    graph = loaded(text_of(f"a = Div(x, s) b = Round(a) c = Cast<to={kind}>(b) d = Cast<to=1>(c) y = Mul(d, s)"))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert f"FakeQuant[params={want} scale 0.25 zero 0](x)" in graph.dump()


def test_a_cast_that_cuts_off_fractions_is_no_clamp() -> None:
    graph = loaded(
        text_of("a = Div(x, s) b = Round(a) c = Mul(b, h) d = Cast<to=3>(c) e = Cast<to=1>(d) y = Mul(e, h)")
    )
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant" not in graph.dump()


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("Div", 6), ("Div", 7), ("Sub", 6)],  # int32, int64
)
def test_integers_that_are_divided_lose_their_fractions(op: str, dtype: int) -> None:
    nodes = f"a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) d = Cast<to={dtype}>(c) e = {op}(d, two) f = Cast<to=1>(e)"
    more = f", {({6: 'int32', 7: 'int64'})[dtype]} two = {{2}}"
    text = text_of(f"{nodes} y = Mul(f, s)", more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert any(n.op == "FakeQuant" for n in graph.nodes) == (op == "Sub")
    x = np.asarray([[1.3, 2.6, 3.9], [5.2, 6.5, 7.8]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_arithmetic_of_bytes_wraps_around() -> None:
    nodes = "a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) d = Cast<to=2>(c) e = Sub(d, three) f = Cast<to=1>(e)"
    graph = loaded(text_of(f"{nodes} y = Mul(f, s)", ", uint8 three = {3}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


def test_a_step_that_gives_the_result_another_dimension_is_none() -> None:
    text = text_of("a = Div(x, t) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, t)", ", float[1,1,1] t = {0.25}")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    x = np.asarray([[1.3, 2.6, 3.9], [5.2, 6.5, 7.8]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_a_weight_without_numbers_has_no_integers() -> None:
    nodes = "a = Div(w, s) b = Round(a) c = Clip(b, lo, hi) v = Mul(c, s) y = MatMul(x, v)"
    model = onnx.parser.parse_model(text_of(nodes, ", float[3,2] w = {1, 2, 3, 4, 5, 6}"))
    weight = next(i for i in model.graph.initializer if i.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((3, 2), np.nan, np.float32), "w"))
    graph = read(model)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT209"]


@pytest.mark.parametrize("size", ["Mul(n, d)", "Abs(d)"])
def test_whole_numbers_lose_no_fraction(size: str) -> None:
    """jax2tf casts to integers by the sign and the size rounded down; rounded and clamped values are whole already."""
    nodes = f"a = Div(x, s) b = Round(a) d = Clip(b, l, u) n = Sign(d) p = {size} f = Floor(p) g = Mul(n, f)"
    nodes += " c = Cast<to=3>(g) e = Cast<to=1>(c) y = Mul(e, s)"
    graph = loaded(text_of(nodes, ", float l = {-128}, float u = {127}"))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "FakeQuant[params=int8 scale 0.25 zero 0](x)" in graph.dump()
    assert "Floor" not in graph.dump()


@pytest.mark.parametrize("again", ["Round", "Floor", "Ceil"])
def test_whole_numbers_are_not_rounded_again(again: str) -> None:
    nodes = f"a = Div(x, s) b = Round(a) d = Clip(b, l, u) f = {again}(d) y = Mul(f, s)"
    graph = loaded(text_of(nodes, ", float l = {-128}, float u = {127}"))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert [n.op for n in graph.nodes] == ["FakeQuant"]
    assert "FakeQuant[params=int8 scale 0.25 zero 0](x)" in graph.dump()


def test_fractions_are_cut_off_where_there_are_some() -> None:
    nodes = "a = Div(x, s) b = Clip(a, lo, u) n = Sign(b) p = Mul(n, b) f = Floor(p) g = Mul(n, f) y = Mul(g, s)"
    graph = loaded(text_of(nodes, ", float u = {127.5}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert "Floor" in graph.dump()


def test_an_extreme_behind_a_sign_is_no_scale() -> None:
    """The signs of what a softmax of ReduceMax made are not the scale of its rounding."""
    nodes = "t = ReduceMax(x) k = Sub(x, t) a = Mul(k, x) n = Sign(a) p = Abs(a) c = Add(p, h) b = Floor(c)"
    nodes += " d = Clip(b, lo, hi) f = Mul(n, d) y = Mul(f, s)"
    graph = loaded(text_of(nodes))
    FRONTEND.normalize(graph, FrontendOptions())
    assert not graph.diagnostics.errors


@pytest.mark.parametrize("constant", ["float[1,1]", "float"])
def test_transposes_inside_a_quantizer_with_casts(constant: str) -> None:
    nodes = "a = Mul(x, q) t = Transpose(a) b = Round(t) c = Cast<to=3>(b) d = Cast<to=1>(c) y = Mul(d, s)"
    graph = loaded(text_of(nodes, f", {constant} q = {{4.0}}"))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "FakeQuant[params=int8 scale 0.25 zero 0](x)" in graph.dump()


@pytest.mark.parametrize("divided", [False, True])
def test_weights(divided: bool) -> None:
    more = (
        ", float[2,3] w = {-1.3, 0.26, 9.0, 0.1, -0.4, 0.5}, float[2,1] c = {0.5, 0.25}, float l = {-8}, float u = {7}"
    )
    start = "b = Round(w)" if divided else "a = Div(w, c) b = Round(a)"
    nodes = f"{start} d = Clip(b, l, u) v = Mul(d, c) t = Transpose(v) y = MatMul(x, t)"
    text = text_of(nodes, more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    x = np.eye(3, dtype=np.float32)[:2]
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])
    assert "int8[-8,7] scale 0.25..0.5 zero 0 axis 0 x2" in graph.dump()


@pytest.mark.parametrize("shared", [True, False])
def test_straight_through_gradients_of_weights(shared: bool) -> None:
    """The sum w + (fake_quantize(w) - w), where the exporter wrote the weight down once or twice."""
    floats = "float[2,3] {} = {{-1.3, 0.26, 9.0, 0.1, -0.4, 0.5}}"
    twice = f", {floats.format('w')}, {floats.format('w2')}"
    more = f"{twice}, float[2,1] c = {{0.5, 0.25}}, float l = {{-8}}, float u = {{7}}"
    again = "w" if shared else "w2"
    nodes = f"""a = Div(w, c) b = Round(a) d = Clip(b, l, u) v = Mul(d, c) e = Sub(v, {again}) f = Add(w, e)
        t = Transpose(f) y = MatMul(x, t)"""
    graph = loaded(text_of(nodes, more))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "int8[-8,7] scale 0.25..0.5 zero 0 axis 0 x2" in graph.dump()
    assert "Sub(" not in graph.dump()


def test_weights_around_half_a_zero_point() -> None:
    """DoReFa: 2 * Round(w * 15) / 15 - 1 has the zero point 7.5; on a grid twice as fine that is 15."""
    values = ", ".join(str(round(v, 3)) for v in np.linspace(0, 15, 9))
    more = f", float[3,3] w = {{{values}}}, float n = {{15}}, float two = {{2}}, float one = {{1}}"
    nodes = "b = Round(w) c = Div(b, n) d = Mul(two, c) e = Sub(d, one) y = MatMul(x, e)"
    text = text_of(nodes, more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "scale 0.0666666701 zero 15" in graph.dump()
    x = np.eye(3, dtype=np.float32)[:2]
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], atol=1e-6)


def test_weights_around_half_a_zero_point_per_channel() -> None:
    """N2UQ: (2 * Round(w * 15) / 15 - 1) * s[c]. No channel is off by one where s[c] / s[c] is not quite 1."""
    rng = np.random.default_rng(0)
    values, scales = rng.integers(0, 16, 64 * 5), rng.uniform(0.01, 1, 64)
    weights, scale = (", ".join(f"{v:.9g}" for v in a) for a in (values, scales))
    more = f", float[64,5] w = {{{weights}}}, float[64,1] c = {{{scale}}}"
    more += ", float n = {15}, float two = {2}, float one = {1}"
    nodes = "b = Round(w) d = Div(b, n) e = Mul(d, two) f = Sub(e, one) g = Mul(f, c) t = Transpose(g) y = MatMul(x, t)"
    text = text_of(nodes, more, "float[5,5] x")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "zero 15 axis 0 x64" in graph.dump()
    x = np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], atol=1e-6)


UNOPTIMIZED = {  # as torch.onnx.export(..., dynamo=True, optimize=False) writes it
    "clamped first": """a = Div(x, s) k = CastLike(l, a) b = Max(a, k) n = CastLike(u, a) c = Min(b, n)
        q = Round(c) e = Sub(q, c) f = Identity(e) g = Add(c, f) y = Mul(g, s)""",
    "rounded first": """a = Mul(x, r) q = Round(a) e = Sub(q, a) f = Identity(e) g = Add(a, f)
        k = CastLike(l, g) b = Max(g, k) n = CastLike(u, g) c = Min(b, n) y = Mul(c, s)""",
}


@pytest.mark.parametrize("style", UNOPTIMIZED)
def test_exports_that_nothing_optimized(style: str) -> None:
    text = text_of(UNOPTIMIZED[style], ", int64 l = {-8}, int64 u = {7}")
    graph = loaded(text)
    assert FRONTEND.recognize(graph, "") == "1 fake quantization written as arithmetic, producer unknown"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "y = FakeQuant[params=int8[-8,7] scale 0.25 zero 0](x)" in graph.dump()
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 1.7, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        (  # LSQ of nni: a channel's scale is stated for each of its elements
            "b = Round(w) d = Clip(b, l, u) v = Mul(d, full)",
            "int8[-8,7] scale 0.25..0.5 zero 0 axis 0 x2",
        ),
        (  # DeepSpeed: the zero point is rounded in real numbers, and added in them
            "n = Round(low) zp = Mul(n, c) b = Sub(w, zp) a = Div(b, c) q = Round(a) d = Clip(q, lo, hi) e = Mul(d, c)"
            " v = Add(e, zp)",
            "uint8 scale 0.25 zero 6",
        ),
    ],
)
def test_weights_of_tools(nodes: str, want: str) -> None:
    more = (
        ", float[2,3] w = {-1.3, 0.26, 9.0, 0.1, -0.4, 0.5}, float[2,3] full = {0.5, 0.5, 0.5, 0.25, 0.25, 0.25}"
        ", float[1,1] c = {0.25}, float[1,1] low = {-5.8}, float l = {-8}, float u = {7}"
    )
    text = text_of(f"{nodes} t = Transpose(v) y = MatMul(x, t)", more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    x = np.eye(3, dtype=np.float32)[:2]
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])
    assert want in graph.dump()


def test_offsets_that_a_weight_keeps_are_no_zero_points() -> None:
    """What is added to a rounded weight, one number or as many as it has, makes no offset of the weight itself."""
    more = ", float[2,3] w = {-1.3, 0.26, 9.0, 0.1, -0.4, 0.5}, float l = {-8}, float u = {7}, float o = {0.1}"
    text = text_of("b = Round(w) v = Mul(b, s) p = Add(v, o) t = Transpose(p) y = MatMul(x, t)", more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    x = np.eye(3, dtype=np.float32)[:2]
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])
    assert "int8" in graph.dump()


def test_a_rounded_scale_is_no_quantizer() -> None:
    nodes = "p = Mul(k, r) b = Round(p) t = Div(b, r) a = Div(x, t) e = Round(a) d = Clip(e, l, u) y = Mul(d, t)"
    text = text_of(nodes, ", float k = {0.26}, float l = {-128}, float u = {127}")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "y = FakeQuant[params=int8 scale 0.25 zero 0](x)" in graph.dump()


def test_dequantization_of_a_graph_input() -> None:
    text = text_of("c = Cast<to=1>(x) d = Sub(c, m) e = Mul(d, s) y = Relu(e)", x="int8[2,3] x")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert graph.integer_ports == {"x": onnx.TensorProto.INT8}
    assert "e = FakeQuant[params=int8 scale 0.25 zero -3](x)" in graph.dump()
    x = np.asarray([[-128, -3, 0], [1, 2, 127]], np.int8)
    (want,) = run(onnx.parser.parse_model(text), x)
    (got,) = run_canonical(graph, (x.astype(np.float32) + 3) * np.float32(0.25))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("dtype", "zero"), [("int16", -5), ("uint16", 40000), ("uint8", 9)])
def test_dequantization_of_rounded_integers(dtype: str, zero: int) -> None:
    """What a package writes where a DequantizeLinear would be optimized away."""
    nodes = "q = QuantizeLinear(x, s, o) c = Flatten(q) f = Cast<to=1>(c) d = Sub(f, zero) y = Mul(d, s)"
    text = text_of(nodes, f", {dtype} o = {{{zero}}}, float zero = {{{zero}}}").replace('"" : 17', '"" : 21')
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert f"FakeQuant[params={dtype} scale 0.25 zero {zero}](x)" in graph.dump()
    assert not {"Cast", "Sub", "Mul"} & {n.op for n in graph.nodes}


def test_integers_minus_infinity_are_no_dequantization() -> None:
    nodes = "q = QuantizeLinear(x, s, o) f = Cast<to=1>(q) d = Sub(f, far) y = Mul(d, s)"
    graph = loaded(text_of(nodes, ", uint8 o = {9}, float far = {inf}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT104"]


def test_a_zero_point_inside_the_rounding_moves_exact_ties_alone(tmp_path: Path) -> None:
    """Round(6.5 + 7) - 7 is 7, Round(6.5) is 6: the compile's own check knows a tie from an error."""
    more = ", float half = {0.5}, float o = {7}, float l = {-128}, float u = {127}, uint8 zu = {128}"
    nodes = (
        "q = QuantizeLinear(x, s, zu) d = DequantizeLinear(q, s, zu)"
        " t = Mul(d, half) a = Div(t, s) b = Add(a, o) c = Round(b) e = Clip(c, l, u) k = Sub(e, o) y = Mul(k, s)"
    )
    onnx.save(onnx.parser.parse_model(text_of(nodes, more)), tmp_path / "model.onnx")
    found = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert found.verification is not None
    assert found.verification.passed


@pytest.mark.parametrize(
    ("op", "step", "low", "high", "want"),
    [
        ("Floor", 0.3, -0.9, 0.9, "int8[-3,2] scale"),  # 0.9 / 0.3 is 2.9999998
        ("Floor", 0.7, -4.9, 4.9, "int8[-8,7] scale"),  # -4.9 / 0.7 is -7.0000005
        ("Ceil", 0.7, -4.9, 4.9, "int8[-7,8] scale"),
        ("Floor", 0.25, -1, 0.75, "int8[-4,3] scale"),
    ],
)
def test_a_range_ends_where_float32_rounds_its_end_down_to(
    op: str, step: float, low: float, high: float, want: str
) -> None:
    """All that is clamped was a step beside what the file makes of it."""
    more = f", float l = {{{low}}}, float u = {{{high}}}, float p = {{{step}}}"
    text = text_of(f"a = Max(x, l) b = Min(a, u) c = Div(b, p) d = {op}(c) y = Mul(d, p)", more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    (made,) = (node for node in graph.nodes if node.op == "FakeQuant")
    assert want in str(made.attrs["params"])
    x = np.array([[-9, 9, low], [high, 0.1, -0.1]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("a = Div(x, v) c = Add(a, w) b = Round(c) d = Clip(b, n, p) e = Sub(d, w) y = Mul(e, v)", "whole number"),
        ("a = Div(x, s) b = Round(a) c = Max(b, lo) y = Mul(c, s)", "both sides"),
        ("a = Div(x, s) b = Floor(a) c = Clip(b, lo, hi) y = Mul(c, p)", "rounds down"),
        ("a = Div(x, s) b = Round(a) c = Clip(b, o, hi) y = Mul(c, s)", "between two of its steps"),
    ],
)
def test_what_looks_like_a_quantizer_and_is_none_is_said(nodes: str, why: str) -> None:
    more = ", float n = {-1}, float p = {62}, float[2,1] v = {1, 2}, float[2,1] w = {0.5, 0.5}, float o = {-8.3}"
    graph = loaded(text_of(nodes, more))
    FRONTEND.normalize(graph, FrontendOptions())
    (note,) = graph.diagnostics
    assert note.code == "QAT109"
    assert why in note.message
    assert note.tensor == "b"
    assert {"Round", "Floor"} & {n.op for n in graph.nodes}


DYNAMIC = "t = ReduceMax<keepdims=0>(x) v = Div(t, hi) i = Reciprocal(v)"  # a scale for the data at hand


@pytest.mark.parametrize(
    "nodes",
    [
        f"{DYNAMIC} a = Div(x, v) b = Round(a) c = Add(b, z) d = Clip(c, lo, hi) e = Sub(d, z) y = Mul(e, v)",
        f"{DYNAMIC} a = Mul(x, i) b = Round(a) d = Clip(b, lo, hi) f = Cast<to=3>(d) e = Cast<to=1>(f) y = Mul(v, e)",
        # QKeras: magnitudes, scaled by a number and given their sign before
        "p = Abs(x) t = ReduceMax<keepdims=0>(p) v = Div(t, hi) a = Div(p, v) c = Add(a, h) b = Floor(c)"
        " k = Less(b, hi) d = Where(k, b, hi) e = Mul(d, s) n = Sign(x) f = Mul(n, e) j = Mul(v, r) y = Mul(j, f)",
    ],
)
def test_a_scale_found_at_run_time_is_refused(nodes: str) -> None:
    graph = loaded(text_of(nodes))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(d.code, d.tensor) for d in graph.diagnostics.errors] == [("QAT205", "b")]


def test_a_gate_behind_a_rounding_is_no_scale() -> None:
    """The scale of whole numbers is 1 and not written; what multiplies them then may well depend on an extreme."""
    nodes = "b = Round(x) d = Clip(b, lo, hi) t = ReduceMax<keepdims=0>(x) g = Sigmoid(t) y = Mul(d, g)"
    graph = loaded(text_of(nodes))
    FRONTEND.normalize(graph, FrontendOptions())
    assert not graph.diagnostics.errors


WEIGHT = ", int8[3,2] w = {1, -2, 127, 3, -127, 5}, float[1,2] c = {0.5, 0.25}, float[2] t = {0.5, 0.25}"


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Cast<to=1>(w) b = Mul(a, c) y = MatMul(x, b)",
        "a = Cast<to=1>(w) b = MatMul(x, a) y = Mul(b, t)",  # its scale behind the product, as torchao writes it
        "v = Transpose(w) i = Transpose(v) a = Cast<to=1>(i) b = MatMul(x, a) y = Mul(b, t)",  # moved before the Cast
    ],
)
def test_weights_stored_in_integers_are_recognized_and_keep_them(nodes: str, tmp_path: Path) -> None:
    """Without a quantizer in the file; their inputs' ranges come from data."""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text_of(nodes, WEIGHT)), path)
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32))
    found = compile_model(path, qat=True, calibrate=tmp_path / "data.npy", output=tmp_path / "out")
    assert found.evidence.startswith("1 Cast of integer weights")
    assert found.coverage.share == 1.0
    (held,) = [t.params for t in found.tensors if t.params is not None and t.params.dtype == "int8"]
    assert (held.scale, held.zero_point, held.axis) == ((0.5, 0.25), (0, 0), 1)


@pytest.mark.parametrize(
    ("nodes", "weight", "found"),
    [
        ("b = MatMul(x, w) y = Mul(b, t)", "{1, -2, 127, 3, -127, 5}", "1 product of whole weights"),
        ("b = MatMul(x, w) k = Squeeze(b) y = Mul(t, k)", "{1, -2, 127, 3, -127, 5}", "1 product of whole weights"),
        (
            "v = Constant<value = float[3,1] {3, -4, 5}>() b = MatMul(x, v)"
            " k = Constant<value = float[1] {0.5}>() y = Mul(b, k)",
            "{1, -2, 127, 3, -127, 5}",
            "1 product of whole weights",
        ),
        ("b = MatMul(x, w) y = Mul(b, t)", "{1, -2, 127, 3.5, -127, 5}", None),
        ("b = MatMul(x, w) y = Mul(b, t)", "{1, -1, 0, 1, 1, 0}", None),  # nothing that tells of a quantizer
        ("b = MatMul(x, w) y = Add(b, t)", "{1, -2, 127, 3, -127, 5}", None),
        ("b = MatMul(x, w) y = Mul(b, b)", "{1, -2, 127, 3, -127, 5}", None),
    ],
)
def test_whole_weights_whose_scale_is_behind_the_product(nodes: str, weight: str, found: str | None) -> None:
    graph = loaded(text_of(nodes, f", float[3,2] w = {weight}, float[2] t = {{0.5, 0.25}}"))
    evidence = FRONTEND.recognize(graph, "")
    assert (evidence or "").startswith(found) if found else evidence is None


def test_integers_that_no_product_reads_are_no_weights() -> None:
    graph = loaded(text_of("a = Cast<to=1>(w) b = ReduceSum(a) y = Add(x, b)", WEIGHT))
    assert FRONTEND.recognize(graph, "") is None


LEARNED = {  # offsets of a fraction of a step, and one that is no integer of the type at all
    "LSQ+": "a = Sub(x, n) b = Div(a, s) c = Clip(b, lo, hi) d = Round(c) e = Mul(d, s) y = Add(e, n)",
    "real zero point": "a = Div(x, s) b = Add(a, f) c = Clip(b, lo, hi) d = Round(c) e = Sub(d, f) y = Mul(e, s)",
    "from a minimum": "c = Clip(x, n, p) a = Sub(c, n) d = Div(a, s) b = Round(d) e = Mul(b, s) y = Add(e, n)",
    "above zero": "a = Div(x, s) b = Add(a, g) c = Clip(b, lo, hi) d = Round(c) e = Sub(d, g) y = Mul(e, s)",
}


@pytest.mark.parametrize("style", LEARNED)
def test_learned_offsets(style: str) -> None:
    """Round(x - c) + c on a grid with zero: the same numbers, and integers in between."""
    more = ", float n = {-1.1}, float p = {62.65}, float f = {4.4}, float g = {-7}"
    text = text_of(LEARNED[style], more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert not list(graph.diagnostics)
    assert [n.op for n in graph.nodes].count("FakeQuant") == 1
    assert "Round" not in graph.dump()
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 33.6, 90]], np.float32)
    want = run(onnx.parser.parse_model(text), x)[0]
    np.testing.assert_allclose(run_canonical(graph, x)[0], want, atol=1e-5)


def test_a_tensor_with_a_learned_offset_is_verified(tmp_path: Path) -> None:
    """The file has no tensor with these values, but one that is larger by the offset: that is compared."""
    conv = "w = DequantizeLinear(wq, s, zero) c = Conv(b, w) t = Relu(c)"
    first = "a = Div(x, s) i = Add(a, f) j = Clip(i, lo, hi) k = Round(j) l = Sub(k, f) b = Mul(l, s)"
    second = "v = Div(t, h) n = Add(v, e) o = Clip(n, lo, hi) p = Round(o) q = Sub(p, e) y = Mul(q, h)"
    more = ", float f = {12.3}, float e = {3.6}, int8 zero = {0}, int8[2,1,3,3] wq = {"
    text = text_of(
        f"{first} {conv} {second}", more + ", ".join(str(v - 9) for v in range(18)) + "}", x="float[1,1,8,8] x"
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.parser.parse_model(text), str(path))
    result = compile_model(path, output=tmp_path / "package")
    assert result.coverage.share == 1.0
    assert result.verification is not None
    assert result.verification.passed
    compared = {t.tensor for t in result.verification.local if t.elements}
    assert {"b", "y"} <= compared
    assert not {"b", "y"} & {t.source for t in result.tensors}


def test_a_range_from_zero_leaves_no_trace() -> None:
    """round((clip(x, min, max) - min) / s) * s + min, with min = 0 behind ReLU."""
    nodes = "c = Clip(x, lo, p) a = Sub(c, lo) d = Div(a, s) b = Round(d) e = Mul(b, s) f = Add(lo, e) y = Relu(f)"
    graph = loaded(text_of(nodes, ", float p = {63.75}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant[params=uint8 scale 0.25 zero 0]" in graph.dump()
    assert not {"Add", "Sub", "Div", "Mul", "Round"} & {n.op for n in graph.nodes}
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 33.6, 90]], np.float32)
    want = run(onnx.parser.parse_model(text_of(nodes, ", float p = {63.75}")), x)[0]
    np.testing.assert_array_equal(run_canonical(graph, x)[0], want)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Sub(lo, x)",
        "y = Add(x, wide)",  # it broadcasts
        "y = Mul(x, lo)",
    ],
)
def test_what_changes_something_stays(nodes: str) -> None:
    graph = loaded(text_of(nodes, ", float[1,1,1] wide = {0}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert len(graph.nodes) == 1


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Where(on, e, x)",
        "y = Where(off, x, e)",
        "f = Mul(x, lo) y = Add(f, e)",  # (1 - alpha) * x + alpha * e
        "f = Sub(e, x) g = Mul(f, lo) i = Sub(e, g) j = Add(x, f) y = Where(off, j, i)",  # torch.lerp
    ],
)
def test_a_quantizer_that_training_switched_on(nodes: str) -> None:
    """Where a constant says so, with nothing left of what is not quantized."""
    more = ", bool on = {1}, bool[1,1] off = {0}, float l = {-128}, float u = {127}"
    text = text_of(f"a = Div(x, s) b = Round(a) c = Clip(b, l, u) e = Mul(c, s) {nodes}", more)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes] == ["FakeQuant"]
    assert "FakeQuant[params=int8 scale 0.25 zero 0](x)" in graph.dump()
    x = np.random.default_rng(2).normal(0, 20, (2, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_straight_through_by_twice_the_difference() -> None:
    """What is left of c - (c - round(c / s) * s), whose inner difference is detached."""
    graph = loaded(
        text_of(
            "c = Clip(x, n, p) d = Div(c, s) b = Round(d) e = Mul(b, s) f = Sub(c, e) y = Sub(c, f)",
            ", float n = {-32}, float p = {31.75}",
        )
    )
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant[params=int8 scale 0.25 zero 0]" in graph.dump()
    assert not {"Sub", "Round"} & {n.op for n in graph.nodes}


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Transpose<perm = [0, 2, 1]>(x) n = Neg(t) o = Add(n, r) y = Add(x, o)",  # other elements
        "t = Transpose<perm = [1, 0, 2]>(x) u = Transpose<perm = [0, 2, 1]>(x) n = Neg(t) o = Add(n, r) y = Add(u, o)",
        "n = Neg(x) g = Neg(n) o = Add(g, r) y = Add(x, o)",  # 2 x
        "n = Neg(x) o = Add(n, r) g = Mul(o, two) y = Add(x, g)",
        "n = Neg(x) o = Add(n, r) g = Div(one, o) y = Add(x, g)",
        "n = Neg(x) o = Sub(x, n) y = Add(x, o)",
        "o = Sub(x, x) y = Add(few, o)",  # nothing, but it has a shape
        "o = Sub(x, x) y = Add(o, few)",
    ],
)
def test_what_is_not_taken_off_again_stays(nodes: str) -> None:
    text = text_of(nodes, ", float two = {2}, float one = {1}, float[3,1] few = {1, 2, 3}", "float[3,3,3] x")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    x = np.random.default_rng(0).integers(1, 8, (3, 3, 3)).astype(np.float32) + 4.5
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_an_offset_that_does_not_fit_ends_the_quantizer() -> None:
    """Fuzzing: walked up from the rounding, the file contradicts itself at the first operator."""
    nodes = "i = Mul(x, five) j = Add(i, two) k = Mul(j, r) b = Round(k) c = Clip(b, lo, hi) y = Mul(c, s)"
    graph = loaded(text_of(nodes, ", float[1,2] two = {4, 2}, float[1,5] five = {1, 2, 3, 4, 5}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes] == ["Mul", "Add", "FakeQuant"]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Mul(x, two) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, five)",
        "a = Mul(x, two) j = Mul(a, five) b = Round(j) c = Clip(b, lo, hi) y = Mul(c, two)",
        "a = Mul(x, r) b = Round(a) i = Mul(b, two) c = Clip(i, lo, hi) y = Mul(c, five)",
        "b = Round(five) c = Clip(b, lo, hi) y = Mul(c, two)",
        "a = Mul(x, r) b = Round(a) c = Clip(b, lo, hi) d = Add(c, two) e = Mul(d, s) y = Mul(e, five)",
    ],
)
def test_constants_that_do_not_fit_are_no_quantizer(nodes: str) -> None:
    """Fuzzing: the file contradicts itself, which ONNX Runtime says."""
    graph = loaded(text_of(nodes, ", float[1,2] two = {4, 2}, float[1,5] five = {1, 2, 3, 4, 5}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant" not in graph.dump()


@pytest.mark.parametrize(
    "nodes",
    [
        "g = GlobalAveragePool(x) d = Sub(g, x) y = Add(d, x)",
        "g = GlobalAveragePool(x) d = Sub(x, g) y = Sub(x, d)",
        "g = GlobalAveragePool(x) d = Mul(x, lo) y = Add(g, d)",
        "g = GlobalAveragePool(x) y = Where(yes, g, x)",
        "g = GlobalAveragePool(x) y = Where(some, x, g)",
    ],
)
def test_what_broadcasts_is_no_straight_through(nodes: str) -> None:
    """(g - x) + x has the shape of x, g has not."""
    text = text_of(nodes, ", bool yes = {1}, bool[3] some = {1, 0, 1}", x="float[1,2,3,3] x")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    x = np.random.default_rng(0).integers(-8, 8, (1, 2, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_a_weight_that_a_product_of_doubles_reads() -> None:
    """Its integers stand for float32; the exporter divided it already."""
    nodes = "a = Round(w) c = Clip(a, dlo, dhi) d = Mul(c, ds) e = Cast<to=11>(x) f = MatMul(e, d) y = Cast<to=1>(f)"
    text = text_of(nodes, f", double[3,2] w = {{4, -8.2, 3, 2.6, -127.4, 1}}{DOUBLES}")
    text = text.replace("float[] y", "float[2,2] y")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.sort()
    graph.verify(stripped=False)
    assert [n.op for n in graph.nodes if n.op != "Cast"] == ["MatMul"]
    assert "int8 scale 0.25 zero 0" in {str(p) for p in graph.params.values()}
    x = np.random.default_rng(4).normal(0, 9, (2, 3)).astype(np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_a_step_that_is_no_number_is_no_quantizer(number: str) -> None:
    graph = loaded(
        text_of("a = Mul(x, r) b = Round(a) c = Clip(b, lo, hi) d = Mul(c, t) y = Add(d, t)", ", float t = {0.1}")
    )
    constant = next(t for t in graph.tensors() if t.name == "t")
    assert isinstance(constant, Constant)
    constant.values = np.asarray(float(number), np.float32)
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant" not in graph.dump()


def test_two_quantizers_around_a_clamp_stay_two() -> None:
    """From the first one's rounding to the second one's division nothing is scaled, on the whole."""
    first = "a = Div(x, s) b = Round(a) c = Clip(b, lo, hi) e = Mul(c, s)"
    second = "n = Relu(e) f = Div(n, s) g = Round(f) i = Clip(g, lo, hi) y = Mul(i, s)"
    graph = loaded(text_of(f"{first} {second}"))
    FRONTEND.normalize(graph, FrontendOptions())
    kept = "FakeQuant[params=uint8 scale 0.25 zero 0]"
    assert graph.dump().split("\n")[2:-2] == [f"e = {kept}(x)", "n = Relu(e)", f"y = {kept}(n)"]


def test_a_scale_of_one_is_a_scale() -> None:
    """Images of 0..255."""
    graph = loaded(text_of("a = Div(x, one) b = Round(a) c = Clip(b, lo, hi) y = Mul(c, one)", ", float one = {1}"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert "FakeQuant[params=uint8 scale 1 zero 0]" in graph.dump()


def test_ties_that_training_rounds_up_are_no_failure(tmp_path: Path) -> None:
    """Fixed point with floor(x + 0.5): half of these sums are ties, which integers round to even."""
    text = text_of(
        "q = QuantizeLinear(x, s, zero) a = DequantizeLinear(q, s, zero) w = DequantizeLinear(wq, s, zero) "
        "c = Conv(a, w) d = Div(c, h) e = Add(d, h) f = Floor(e) g = Clip(f, n, p) y = Mul(g, h)",
        ", int8 zero = {0}, int8[1,1,1,1] wq = {4}, float n = {-128}, float p = {127}",
        x="float[1,1,16,16] x",
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.parser.parse_model(text), str(path))
    result = compile_model(path, output=tmp_path / "package")
    assert result.coverage.share == 1.0


STEPS = {
    "Div({}, {})": (0.25, 0.1, 1.0), "Mul({}, {})": (4.0, 10.0, -4.0), "Add({}, {})": (3.0, 2.4, -6.0),
    "Sub({}, {})": (3.0, -1.1), "Sub({1}, {0})": (0.0, 5.0),
}  # fmt: skip
UNDOES = {"Div({}, {})": "Mul({}, {})", "Add({}, {})": "Sub({}, {})", "Sub({1}, {0})": "Sub({1}, {0})"}
UNDOES |= {undone: step for step, undone in UNDOES.items()}
CLAMPS = ("Clip({}, {}, {})", "Clip({}, {}, {})", "Clip({}, {}, {})", "Relu({})", "Max({}, {})", "Min({}, {})")


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, tuple[float, ...]]]:
    """Operators around a Round that undo each other, or nearly, with clamps between them."""
    before = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=2))
    steps = [(op, (draw(st.sampled_from(STEPS[op])),)) for op in before]
    back = [(UNDOES[op], numbers) for op, numbers in reversed(steps)]
    match draw(st.sampled_from(["exact", "exact", "exact", "dropped", "other number", "other operator"])):
        case "dropped":
            back.pop(draw(st.integers(0, len(back) - 1)))
        case "other number":
            at = draw(st.integers(0, len(back) - 1))
            back[at] = (back[at][0], (draw(st.sampled_from([0.25, 0.5, 3.0, 2.0])),))
        case "other operator":
            at = draw(st.integers(0, len(back) - 1))
            back[at] = (draw(st.sampled_from(sorted(STEPS))), back[at][1])
        case _:
            pass
    chain = [*steps, ("Round({})", ()), *back]
    for _ in range(draw(st.integers(0, 2))):
        bounds = tuple(sorted(draw(st.lists(st.sampled_from([-128, -8.3, 0, 12, 255]), min_size=2, max_size=2))))
        chain.insert(draw(st.integers(0, len(chain))), (draw(st.sampled_from(CLAMPS)), bounds))
    return chain


ROUND, BYTES = ("Round({})", ()), ("Clip({}, {}, {})", (-128.0, 12.0))


@given(chains())
@example([("Div({1}, {0})", (0.25,)), ROUND, BYTES, ("Mul({}, {})", (0.25,))])
@example([("Sub({1}, {0})", (0.0,)), ROUND, BYTES, ("Sub({1}, {0})", (0.0,))])
@example(
    [("Div({}, {})", (0.25,)), BYTES, ("Add({}, {})", (3.0,)), ROUND, ("Sub({}, {})", (3.0,)), ("Mul({}, {})", (0.25,))]
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_recognized_means_the_same(chain: list[tuple[str, tuple[float, ...]]]) -> None:
    """Everywhere but at the steps themselves, where a zero point inside the rounding moves ties."""
    lines: list[str] = []
    constants: list[str] = []
    for i, (form, numbers) in enumerate(chain):
        names = [f"k{i}_{j}" for j in range(form.count("{") - 1)]
        constants += [f", float {name} = {{{number!r}}}" for name, number in zip(names, numbers, strict=False)]
        source, result = ("x" if i == 0 else f"v{i}"), ("y" if i == len(chain) - 1 else f"v{i + 1}")
        lines.append(f"{result} = {form.format(source, *names)}")
    text = text_of(" ".join(lines), "".join(constants), x="float[1,801] x")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assume(not graph.diagnostics.errors)
    x = np.linspace(-40, 40, 801, dtype=np.float32)[None] + np.float32(0.0137)
    model = onnx.parser.parse_model(text)
    with np.errstate(all="ignore"):  # a chain may divide by a rounded zero
        below, want, above = (run(model, x + np.float32(d))[0] for d in (-2e-3, 0, 2e-3))
        found = values(graph, x)
    steady = np.abs(above - below) < 1e-4 if any(n.op == "FakeQuant" for n in graph.nodes) else np.ones_like(x, bool)
    np.testing.assert_allclose(found[steady], want[steady], rtol=1e-5, atol=1e-4)


DOUBLES = ", double ds = {0.25}, double dlo = {-128}, double dhi = {127}, double big = {1073741824}"
S8 = "FakeQuant[params=int8 scale 0.25 zero 0]"


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        (  # a scale of float64, as NumPy gives it, takes everything to double precision, and a Cast takes it back
            "w = Cast<to=11>(x) a = Div(w, ds) b = Round(a) c = Clip(b, dlo, dhi) e = Mul(c, ds) f = Cast<to=1>(e)"
            " y = Mul(f, z)",
            f"{S8}(x)",
        ),
        (  # it begins in float32 and ends in double precision, which something else reads
            "a = Div(x, s) b = Round(a) c = Clip(b, l, u) d = Cast<to=11>(c) e = Mul(d, ds) f = Exp(e)"
            " y = Cast<to=1>(f)",
            f"{S8}(x)",
        ),
        (  # what it rounds is of double precision for good
            "w = Cast<to=11>(x) v = Sigmoid(w) a = Div(v, ds) b = Round(a) c = Clip(b, dlo, dhi) e = Mul(c, ds)"
            " y = Cast<to=1>(e)",
            f"{S8}(v_single)",
        ),
        (  # I-BERT: mantissas are multiplied in double precision, where a scale is one the product is no quantizer's
            "j = Round(x) k = Clip(j, l, u) a = Cast<to=11>(k) b = Mul(a, big) c = Div(b, big) d = Round(c)"
            " w = Cast<to=11>(x) e = Add(d, w) y = Cast<to=1>(e)",
            "FakeQuant[params=int8 scale 1 zero 0](x)",
        ),
    ],
)
def test_quantizers_among_doubles_are_of_single_precision(nodes: str, want: str) -> None:
    """A tensor of double precision has no integers in ONNX: Casts stand around those that are quantized."""
    text = text_of(nodes, f", float l = {{-128}}, float u = {{127}}{DOUBLES}").replace("float[] y", "float[2,3] y")
    x = np.random.default_rng(1).normal(0, 9, (2, 3)).astype(np.float32)
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.sort()
    graph.verify(stripped=False)
    assert want in graph.dump()
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


def normalized(text: str) -> QuantGraph:
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.sort()
    return graph


@pytest.mark.parametrize(
    ("weight", "nodes"),
    [
        (-3, "t = Mul(v, r) y = Add(t, x)"),
        (-3, "t = Mul(v, r) y = Sub(x, t)"),
        (-2, "f = Div(x, s) g = Round(f) i = Clip(g, lo, u) j = Mul(i, s) y = Mul(j, v)"),
    ],
)
def test_integers_of_a_constant_are_not_its_numbers(weight: int, nodes: str) -> None:
    """A constant at the lower end of its range is the integer 0, or 1, which changes nothing only where it is that."""
    quantized = "b = Round(w) c = Add(b, z) d = Clip(c, lo, u) e = Sub(d, z) v = Mul(e, s)"
    text = text_of(f"{quantized} {nodes}", f", float[1] w = {{{weight}}}, float u = {{255}}")
    graph = normalized(text)
    x = np.random.default_rng(0).normal(0, 1, (2, 3)).astype(np.float32)
    (want,) = run(onnx.parser.parse_model(text), x)
    np.testing.assert_allclose(run_canonical(graph, x)[0], want, atol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Div(x, s) c = Clip(a, l, u) g = Add(c, h) b = Floor(g) y = Mul(b, s)",
        "a = Mul(x, q) c = Clip(a, l, u) g = Add(c, h) b = Floor(g) y = Mul(b, s)",
    ],
)
def test_a_clamp_that_ends_on_a_tie_is_rounded_up_where_everything_is(nodes: str) -> None:
    text = text_of(nodes, ", float q = {10}, float l = {-13.5}, float u = {14.5}")
    x = np.float32([[-100, -2, 0], [1, 2, 100]])
    (want,) = run(onnx.parser.parse_model(text), x)
    np.testing.assert_array_equal(run_canonical(normalized(text), x)[0], want)


def test_the_axis_of_steps_of_a_tensor_whose_shape_the_file_leaves_out() -> None:
    nodes = "c = Min(x, hi) a = Div(c, t) b = Round(a) d = Clip(b, l, u) y = Mul(d, t)"
    graph = normalized(text_of(nodes, ", float[3] t = {0.5, 0.25, 0.125}, float l = {-8}, float u = {15}"))
    (params,) = (n.attrs["params"] for n in graph.nodes if n.op == "FakeQuant")
    assert str(params) == "int8[-8,15] scale 0.125..0.5 zero 0 axis 1 x3"
