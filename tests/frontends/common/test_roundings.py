"""Roundings written with signs, magnitudes, Floor and Ceil are roundings to the nearest number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.frontend import FrontendOptions
from qatc.frontends.common import roundings
from qatc.frontends.pytorch import FRONTEND
from tests.frontends.running import run, run_canonical
from tests.graphs import loaded

CONSTANTS = (
    "float s = {0.25}, float lo = {-8}, float hi = {7}, float half = {0.5}, float minus = {-0.5}, float zero = {0}, "
    "float n = {7}, float bottom = {-7}, float[1] a = {1.75}, float eighth = {0.125}, float one = {1}"
)
MICRONET = "v = Div(x, s) i = Sign(v) m = Abs(v) t = Add(m, half) f = Floor(t) r = Mul(i, f)"
TRUNC = "v = Div(x, s) i = Sign(v) k = Mul(half, i) w = Add(v, k) m = Abs(w) f = Floor(m) j = Sign(w) r = Mul(f, j)"


def _text(nodes: str) -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,4] x) => (float[] y) <{CONSTANTS}> {{ {nodes} }}'


@pytest.mark.parametrize(
    ("nodes", "params"),
    [
        (f"{MICRONET} c = Clip(r, lo, hi) y = Mul(c, s)", "int8[-8,7] scale 0.25 zero 0"),
        (f"{TRUNC} c = Clip(r, lo, hi) y = Mul(c, s)", "int8[-8,7] scale 0.25 zero 0"),
        (
            "b = Div(x, a) v = Clip(b, minus, one) i = Sign(b) m = Abs(v) p = Mul(n, m) r = Round(p) q = Div(r, n) "
            "u = Mul(q, i) y = Mul(u, a)",
            "int8[-4,7] scale 0.25 zero 0",
        ),
        (
            "v = Div(x, a) i = Sign(x) m = Abs(v) c = Min(m, one) p = Mul(c, n) r = Round(p) q = Div(r, n) "
            "u = Mul(q, i) y = Mul(u, a)",
            "int8[-7,7] scale 0.25 zero 0",
        ),
        (
            "v = Div(x, s) g = GreaterOrEqual(v, zero) t = Add(v, half) f = Floor(t) u = Sub(v, half) e = Ceil(u) "
            "r = Where(g, f, e) c = Clip(r, lo, hi) y = Mul(c, s)",
            "int8[-8,7] scale 0.25 zero 0",
        ),
        (
            "v = Div(x, s) g = Less(v, zero) t = Add(half, v) f = Floor(t) u = Add(v, minus) e = Ceil(u) "
            "r = Where(g, e, f) c = Clip(r, lo, hi) y = Mul(c, s)",
            "int8[-8,7] scale 0.25 zero 0",
        ),
        (
            "v = Div(x, s) m = Neg(v) t = Add(m, half) f = Floor(t) r = Neg(f) c = Clip(r, lo, hi) y = Mul(c, s)",
            "int8[-8,7] scale 0.25 zero 0",
        ),
        (
            "v = Div(x, s) i = Sign(v) b = Abs(v) m = Neg(b) t = Add(m, half) f = Floor(t) k = Neg(f) r = Mul(k, i) "
            "c = Clip(r, lo, hi) y = Mul(c, s)",
            "int8[-8,7] scale 0.25 zero 0",
        ),
        ("v = Div(x, s) t = Sub(v, half) r = Ceil(t) c = Clip(r, lo, hi) y = Mul(c, s)", "int8[-8,7] scale 0.25"),
        ("t = Add(x, eighth) v = Div(t, s) f = Floor(v) c = Clip(f, lo, hi) y = Mul(c, s)", "int8[-8,7] scale 0.25"),
        ("v = Div(x, s) t = Add(v, half) c = Clip(t, zero, hi) f = Floor(c) y = Mul(f, s)", "uint8[0,7] scale 0.25"),
    ],
)
def test_quantizers_with_unusual_roundings(nodes: str, params: str) -> None:
    graph = loaded(_text(nodes))
    assert "fake quantization written as arithmetic" in (FRONTEND.recognize(graph, "") or "nothing")
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert f"y = FakeQuant[params={params}" in graph.dump()
    assert [n.op for n in graph.nodes] == ["FakeQuant"]
    x = np.asarray([[-70, -1.3, -0.9, -0.2], [0.2, 1.1, 1.6, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(_text(nodes)), x)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        "v = Div(x, s) i = Sign(x) m = Abs(v) f = Floor(m) r = Mul(i, f) c = Clip(r, lo, hi) y = Mul(c, s)",  # down
        "v = Div(x, s) f = Floor(v) c = Clip(f, lo, hi) d = Add(c, half) y = Mul(d, s)",  # to the middle of a step
        "v = Div(x, s) t = Sub(v, half) i = Sign(t) m = Abs(v) p = Round(m) r = Mul(i, p) c = Clip(r, lo, hi) "
        "y = Mul(c, s)",  # of another sign
        "v = Div(x, s) i = Sign(v) m = Abs(v) t = Add(m, one) p = Round(t) r = Mul(i, p) c = Clip(r, lo, hi) "
        "y = Mul(c, s)",  # a larger magnitude
    ],
)
def test_what_does_not_round_to_the_nearest_number_stays(nodes: str) -> None:
    graph = loaded(_text(nodes))
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    assert "FakeQuant" not in graph.dump()
    x = np.asarray([[-70, -1.3, -1, -0.2], [0, 1, 1.6, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(_text(nodes)), x)[0])


def test_weights_that_are_rounded_half_down_keep_their_integers() -> None:
    nodes = "v = Div(w, s) t = Sub(v, half) r = Ceil(t) c = Clip(r, lo, hi) d = Mul(c, s) y = MatMul(x, d)"
    text = _text(nodes).replace("> {", ", float[4,2] w = {0.3, -1.1, 0.6, 0.9, -0.2, 1.4, 0.7, -0.8}> {")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    (product,) = graph.nodes
    assert str(graph.quant(product.inputs[1])) == "int8[-8,7] scale 0.25 zero 0"
    x = np.asarray([[-7, -1.3, -0.9, -0.2], [0.2, 1.1, 1.6, 9]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize("op", ["Floor", "Ceil"])
@pytest.mark.parametrize(
    ("nodes", "params"),
    [
        ("v = Div(x, s) r = {op}(v) c = Clip(r, lo, hi) y = Mul(c, s)", "int8[-8,7] scale 0.25 zero 0"),
        ("v = Div(x, s) c = Clip(v, lo, hi) r = {op}(c) y = Mul(r, s)", "int8[-8,7] scale 0.25 zero 0"),
        (
            "v = Mul(x, n) t = Add(v, seven) r = {op}(t) c = Clip(r, zero, n) k = Sub(c, seven) y = Div(k, n)",
            "uint8[0,7]",
        ),
        ("b = Clip(x, minus, a) v = Div(b, s) r = {op}(v) y = Mul(r, s)", "int8[-2,7] scale 0.25 zero 0"),
    ],
)
def test_rounding_down_and_up_is_on_the_grid_that_it_makes(op: str, nodes: str, params: str) -> None:
    """The rounding stays, between its step alone; clamps are the range, and so is a whole zero point."""
    text = _text(nodes.format(op=op)).replace("float n", "float seven = {7}, float n")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    assert not list(graph.diagnostics)
    assert [n.op for n in graph.nodes][-4:] == ["Mul" if "Mul(x" in nodes else "Div", op, "Mul", "FakeQuant"]
    assert f"FakeQuant[params={params}" in graph.dump()
    x = np.asarray([[-70, -1.3, -1, -0.2], [0, 1, 1.6, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)


@pytest.mark.parametrize("nodes", ["v = Div(x, one) r = Floor(v)", "r = Floor(x)"])
def test_a_step_of_one_need_not_be_divided_by(nodes: str) -> None:
    graph = loaded(_text(f"{nodes} c = Clip(r, lo, hi) y = Mul(c, one)"))
    FRONTEND.normalize(graph, FrontendOptions())
    assert not list(graph.diagnostics)
    assert "FakeQuant[params=int8[-8,7] scale 1 zero 0]" in graph.dump()
    x = np.asarray([[-70, -1.3, -1, -0.2], [0, 1, 1.6, 90]], np.float32)
    np.testing.assert_array_equal(run_canonical(graph, x)[0], [[-8, -2, -1, -1], [0, 1, 1, 7]])


def test_rounding_down_that_nothing_undoes_is_told() -> None:
    graph = loaded(_text("v = Div(x, s) r = Floor(v) c = Clip(r, lo, hi) y = Mul(c, n)"))
    FRONTEND.normalize(graph, FrontendOptions())
    (note,) = graph.diagnostics
    assert (note.code, note.message.split(": ")[1].split(",")[0]) == ("QAT109", "it rounds down")


def test_toward_zero_is_down_of_what_is_not_negative() -> None:
    nodes = (
        "p = Relu(x) v = Div(p, s) i = Sign(v) m = Abs(v) f = Floor(m) r = Mul(i, f) c = Clip(r, lo, hi) y = Mul(c, s)"
    )
    for text, ops in (
        (_text(nodes), ["Relu", "Div", "Floor", "Mul", "FakeQuant"]),
        (_text(nodes.replace("Relu(x)", "Neg(x)")), None),
    ):
        graph = loaded(text)
        FRONTEND.normalize(graph, FrontendOptions())
        assert [n.op for n in graph.nodes] == ops or ops is None
        assert ("FakeQuant" in graph.dump()) == (ops is not None)
        x = np.asarray([[-70, -1.3, -1, -0.2], [0, 1, 1.6, 90]], np.float32)
        np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0])


@given(
    nodes=st.sampled_from([f"{MICRONET} y = Mul(r, s)", f"{TRUNC} y = Mul(r, s)"]),
    steps=st.lists(st.integers(-1023, 1023).filter(lambda n: n % 4 != 2), min_size=8, max_size=8),
)
def test_only_ties_are_rounded_differently(nodes: str, steps: list[int]) -> None:
    graph = loaded(_text(nodes))
    assert roundings.rewrite(graph) == 1
    assert "Round" in graph.dump()
    x = np.asarray(steps, np.float32).reshape(2, 4) / 16  # steps of a quarter, of which 2 mod 4 is halfway
    np.testing.assert_array_equal(run_canonical(graph, x)[0], run(onnx.parser.parse_model(_text(nodes)), x)[0])


@pytest.mark.parametrize(
    "nodes",
    [
        "i = Sign(w) m = Abs(w) p = Mul(m, n) r = Round(p) q = Div(r, n) k = Mul(q, i)",  # APoT
        "v = Div(w, g) r = Round(v) c = Clip(r, lo, hi) q = Mul(c, g) k = Mul(q, mask)",  # pruned
        "v = Div(w, g) r = Round(v) q = Mul(g, r) t = Mul(q, mask) k = Div(t, n)",
        "v = Div(w, g) r = Floor(v) u = Add(r, mask) c = Clip(u, lo, hi) k = Mul(c, g)",  # AdaRound
    ],
)
def test_constants_beyond_a_weights_quantizer_leave_it_on_its_grid(nodes: str) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,2] x) => (float[] y) <{CONSTANTS}, '
        "float[1] g = {0.125}, float[2,3] w = {-0.9,0.1,0.4,0.77,0.2,-0.6}, float[2,3] mask = {1,1,0,1,0,1}> "
        f"{{ v0 = Div(x, s) r0 = Round(v0) c0 = Clip(r0, lo, hi) x0 = Mul(c0, s) {nodes} y = MatMul(x0, k) }}"
    )
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    weight = next(n for n in graph.nodes if n.op == "MatMul").inputs[1]
    assert graph.quant(weight) is not None
    x = np.asarray([[-0.3, 1.2], [0.6, 0.1]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "modulo",
    [
        "k = Add(d, one) q = Div(k, two) f = Floor(q) p = Mul(f, two) m = Sub(k, p)",  # tf2onnx
        "k = Add(d, one) m = Mod<fmod=1>(k, two)",
    ],
)
def test_values_that_wrap_around_are_said_to(modulo: str) -> None:
    """HGQ2's WRAP, which saturating kernels do not do."""
    nodes = f"v = Div(x, s) r = Round(v) d = Mul(r, s) {modulo} y = Sub(m, one)"
    text = _text(nodes).replace("float one = {1}", "float one = {1}, float two = {2}")
    graph = loaded(text)
    assert FRONTEND.recognize(graph, "")
    FRONTEND.normalize(graph, FrontendOptions())
    (found,) = graph.diagnostics
    assert (found.code, "wrap around" in found.message, "overflow_mode='SAT'" in (found.hint or "")) == (
        "QAT109",
        True,
        True,
    )


NUDGED = "i = Sign(x) n = Mul({times}, i) k = Add(x, n) q = QuantizeLinear(k, s, z) y = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize(("times", "stays"), [(1e-6 * 0.25, False), (0.01 * 0.25, True), (-1e-6 * 0.25, True)])
def test_a_nudge_away_from_zero_before_a_quantizer_moves_ties_alone(times: float, stays: bool) -> None:
    """TinyNeuralNetwork's rounding_mode "tflite"; what moves more than ties, or ties to zero, is left."""
    text = _text(NUDGED.format(times="t")).replace("float n = {7}", f"float t = {{{times}}}, uint8 z = {{3}}")
    graph = loaded(text)
    FRONTEND.normalize(graph, FrontendOptions())
    graph.diagnostics.check()
    ops = [n.op for n in graph.nodes]
    assert ops == (["Sign", "Mul", "Add", "FakeQuant"] if stays else ["FakeQuant"])
    x = np.asarray([[-70, -1.3, -0.9, -0.2], [0.2, 1.1, 1.6, 90]], np.float32)
    np.testing.assert_allclose(run_canonical(graph, x)[0], run(onnx.parser.parse_model(text), x)[0], rtol=1e-6)
