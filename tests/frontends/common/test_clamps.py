"""Clamps written as choices and as sums of absolute values are clamps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import value_of
from qatc.frontends.pytorch import FRONTEND
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded, to_model

CONSTANTS = (
    "float s = {0.25}, float lo = {0}, float hi = {15}, float a = {3.75}, float half = {0.5}, float two = {2}, "
    "float minus = {-1}"
)
BELOW = "g = Less(b, lo) c = Where(g, lo, b) h = Greater(c, hi) d = Where(h, hi, c)"
SPREAD = (
    "n = Shape(b) l = ConstantOfShape<value = float[1] {0.0}>(n) u = Expand(hi, n) "
    "g = GreaterOrEqual(b, lo) c = Where(g, b, l) h = LessOrEqual(hi, c) d = Where(h, u, c)"
)


# tf.where as tf2onnx writes it
PRODUCTS = (
    "g = Less(b, lo) i = Cast<to = 1>(g) k = Not(g) l = Cast<to = 1>(k) m = Mul(lo, i) n = Mul(l, b) c = Add(m, n) "
    "h = Greater(c, hi) o = Not(h) p = Cast<to = 1>(o) t = Mul(c, p) u = Cast<to = 1>(h) v = Mul(u, hi) d = Add(t, v)"
)


@pytest.mark.parametrize(
    "nodes",
    [
        f"q = Div(x, s) b = Round(q) {BELOW} y = Mul(d, s)",
        f"q = Div(x, s) b = Round(q) {SPREAD} y = Mul(d, s)",
        "p = Relu(x) g = Less(x, a) c = Where(g, p, a) q = Div(c, s) r = Round(q) y = Mul(r, s)",
        "p = Relu(x) g = Less(p, a) o = Relu(p) c = Where(g, o, a) q = Div(c, s) r = Round(q) y = Mul(r, s)",
        "p = Max(x, lo) g = Less(a, x) c = Where(g, a, p) q = Div(c, s) r = Round(q) y = Mul(r, s)",
        "p = Clip(x, , a) g = Greater(x, lo) c = Where(g, p, lo) q = Div(c, s) r = Round(q) y = Mul(r, s)",
        "p = Abs(x) m = Sub(x, a) n = Abs(m) d = Sub(p, n) e = Add(d, a) c = Mul(half, e) "
        "q = Div(c, s) r = Round(q) y = Mul(r, s)",
        "p = Abs(x) m = Sub(a, x) n = Abs(m) e = Add(p, a) d = Sub(e, n) c = Div(d, two) "
        "q = Div(c, s) r = Round(q) y = Mul(r, s)",
    ],
)
def test_quantizers_with_unusual_clamps(nodes: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x) => (float[] y) <{CONSTANTS}> {{ {nodes} }}'
    graph = loaded(text)
    assert FRONTEND.recognize(graph, "") == "1 fake quantization written as arithmetic, producer unknown"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "y = FakeQuant[params=uint8[0,15] scale 0.25 zero 0]" in graph.dump()
    assert not {"Where", "Abs", "Round"} & {n.op for n in graph.nodes}
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 3.6, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


def test_a_choice_written_as_products_is_a_clamp() -> None:
    nodes = f"q = Div(x, s) b = Round(q) {PRODUCTS} y = Mul(d, s)"
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x) => (float[] y) <{CONSTANTS}> {{ {nodes} }}'
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "y = FakeQuant[params=uint8[0,15] scale 0.25 zero 0](x)" in graph.dump()
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 3.6, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_any_choice_written_as_products_is_a_where() -> None:
    nodes = (
        "g = Less(w, lo) i = Cast<to = 1>(g) k = Not(g) l = Cast<to = 1>(k) m = Mul(i, v) n = Mul(x, l) y = Add(n, m)"
    )
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x, float[3] v, float[2,1] w) => (float[] y) '
        f"<{CONSTANTS}> {{ {nodes} }}"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(n.op, [t.name for t in n.inputs]) for n in graph.nodes if n.outputs[0].name == "y"] == [
        ("Where", ["g", "v", "x"])
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        "g = Less(x, lo) y = Where(g, hi, x)",  # another number
        "g = Less(x, lo) i = Cast<to = 1>(g) k = Not(g) l = Cast<to = 1>(k) m = Mul(a, i) n = Mul(l, x) y = Add(m, n)",
        "g = Less(x, lo) k = Less(x, a) i = Cast<to = 1>(g) l = Cast<to = 1>(k) m = Mul(lo, i) n = Mul(l, x)"
        " y = Add(m, n)",  # two conditions
        "g = Less(x, lo) z = Neg(x) y = Where(g, lo, z)",  # another tensor
        "g = Less(x, minus) z = Relu(x) y = Where(g, z, minus)",  # Relu does not let the number through
        "z = Relu(x) g = Less(z, a) y = Where(g, x, a)",  # it is Relu(x) that is compared
        "p = Abs(x) m = Sub(x, hi) n = Abs(m) d = Sub(p, n) e = Add(d, a) y = Mul(half, e)",  # two bounds
    ],
)
def test_choices_that_are_no_clamps_stay(nodes: str) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x) => (float[] y) <{CONSTANTS}> {{ {nodes} }}'
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert not {"Min", "Max", "Clip"} & {n.op for n in graph.nodes}


@pytest.mark.parametrize(
    "nodes",
    [
        "g = Less(x, wide) y = Where(g, wide, x)",
        "g = Less(x, a) y = Where(g, deep, x)",
        "p = Abs(x) m = Sub(x, wide) n = Abs(m) d = Sub(p, n) e = Add(d, wide) y = Mul(half, e)",
        "p = Abs(x) m = Sub(x, a) n = Abs(m) d = Sub(p, n) e = Add(d, a) y = Div(e, twos)",
    ],
)
def test_bounds_that_give_the_result_its_shape_stay(nodes: str) -> None:
    more = "float[3] wide = {3.75, 3.75, 3.75}, float[1,1,1] deep = {3.75}, float[4,1,1] twos = {2, 2, 2, 2}"
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,1] x) => (float[] y) <{CONSTANTS}, {more}> {{ {nodes} }}'
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    x = np.asarray([[-1.0], [9.0]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_a_bound_behind_thousands_of_casts() -> None:
    casts = " ".join(f"c{i + 1} = Cast<to = {(11, 1)[i % 2]}>(c{i})" for i in range(3000))
    nodes = (
        f"h = Shape(x) c0 = ConstantOfShape<value = float {{1.5}}>(h) {casts} g = Less(x, c3000) y = Where(g, x, c3000)"
    )
    graph = loaded(f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[a,3] x) => (float[] y) {{ {nodes} }}')
    FRONTEND.normalize(graph, FrontendOptions())
    assert [(n.op, value_of(n.inputs[1])) for n in graph.nodes] == [("Min", 1.5)]


@pytest.mark.parametrize("dtype", ["int64", "double"])
def test_a_bound_has_the_type_of_what_it_bounds(dtype: str) -> None:
    """Indices into a table are clamped by choices, too."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng ({dtype}[4] x) => ({dtype}[] y) <{dtype} two = {{2}}> '
        "{ g = Less(x, two) y = Where(g, x, two) }"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes if n.op != "Cast"] == ["Min"]  # doubles alone are computed in float32
    x = np.arange(4).astype(dtype)
    np.testing.assert_array_equal(run(to_model(graph), x)[0], run(onnx.parser.parse_model(text), x)[0])


def test_the_clamp_of_pact_in_double_precision() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (double[3] x) => (double[] y) '
        "<double a = {3.75}, double half = {0.5}> "
        "{ p = Abs(x) m = Sub(x, a) n = Abs(m) d = Sub(p, n) e = Add(d, a) y = Mul(half, e) }"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert [n.op for n in graph.nodes if n.op != "Cast"] == ["Clip"]
    x = np.asarray([-1.0, 2.5, 9.0])
    np.testing.assert_array_equal(run(to_model(graph), x)[0], [0.0, 2.5, 3.75])


LINE = "float m = {0.25}, float k = {0.5}, float low = {-2}, float high = {2}, float zero = {0}, float one = {1}"
QIL = "t = Mul(x, m) b = Add(t, k)"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{QIL} g = Greater(x, high) c = Where(g, one, b) h = Less(x, low) d = Where(h, zero, c)",
        f"{QIL} g = Less(x, low) c = Where(g, zero, b) h = LessOrEqual(x, high) d = Where(h, c, one)",
        "i = Div(one, m) j = Div(one, i) t = Mul(j, x) b = Add(t, k) "
        "g = Greater(x, high) c = Where(g, one, b) h = Less(x, low) d = Where(h, zero, c)",
    ],
)
def test_lines_that_are_cut_off_by_choice(nodes: str) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x) => (float[] y) <{LINE}, float n = {{16}}> '
        f"{{ {nodes} q = Mul(d, n) r = Round(q) y = Div(r, n) }}"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "y = FakeQuant[params=uint8[0,16] scale 0.0625 zero 0]" in graph.dump()
    x = np.asarray([[-70, -1.31, 0.2], [1.1, 1.93, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize("sizes", ["2", "n"])
def test_bits_that_are_spread_to_each_element(sizes: str) -> None:
    """HGQ2 through tf2onnx: ends and step of fixed point are computed with the shape of the data, the batch open."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[{sizes},3] x) => (float[] y) <float one = {{1}}, '
        "float[1,1] i = {2}, float[1,1] f = {3}, float two = {2}, float half = {0.5}, float zero = {0}, "
        "int64[1] first = {0}, int64[1] three = {3}> { a = Shape(x) b = Gather(a, first) s = Concat<axis=0>(b, three) "
        "whole = Expand(i, s) part = Expand(f, s) scale = Pow(two, part) less = Neg(part) step = Pow(two, less) "
        "end = Pow(two, whole) top = Sub(end, step) low = Neg(top) "
        "g = Greater(x, top) gn = Not(g) gc = Cast<to=1>(g) gnc = Cast<to=1>(gn) "
        "l = Less(x, low) ln = Not(l) lc = Cast<to=1>(l) lnc = Cast<to=1>(ln) "
        "p = Mul(lc, low) q = Mul(x, lnc) r = Add(p, q) t = Mul(gc, top) u = Mul(r, gnc) v = Add(t, u) "
        "w = Mul(v, scale) h = Add(w, half) k = Floor(h) d = Sub(w, w) e = Add(k, d) o = Div(e, scale) "
        "bits = Add(whole, part) any = Greater(bits, zero) z = Shape(o) none = ConstantOfShape(z) "
        "y = Where(any, o, none) }"
    )
    graph = loaded(text)
    assert FRONTEND.recognize(graph, "") == "1 fake quantization written as arithmetic, producer unknown"
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert "y = FakeQuant[params=int8[-31,31] scale 0.125 zero 0]" in graph.dump()
    assert [n.op for n in graph.nodes] == ["FakeQuant"]
    x = np.asarray([[-70, -1.3, 0.2], [1.1, 3.6, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Mul(x, low) g = Less(x, high) y = Where(g, t, low)",  # it falls
        f"{QIL} g = Greater(x, high) y = Where(g, k, b)",  # it jumps
        "g = Less(x, high) y = Where(g, x, end)",  # it jumps, by little
    ],
)
def test_other_choices_stay(nodes: str) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3] x) => (float[] y) <{LINE}, float end = {{2.00001}}> '
        f"{{ {nodes} }}"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert "Where" in {n.op for n in graph.nodes}
