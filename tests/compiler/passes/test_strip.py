"""Strip: before and after, one test for each legal case and for each that must stay."""

from __future__ import annotations

import pytest

from qatc.compiler.graph import QuantGraph, value_of
from qatc.compiler.passes.strip import strip
from tests.graphs import canonical, expect, net


def after_strip(signature: str, body: str, constants: str = "", *, opset: int = 17) -> QuantGraph:
    graph = canonical(net(signature, body, constants, opset=opset))
    strip(graph)
    graph.diagnostics.check()
    return graph


def test_every_reader_sees_the_same_rounding() -> None:
    graph = after_strip("(float[2] x) => (float[2] y, float[2] z)", "a = A(x)\ny = Relu(a)\nz = Neg(a)")
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        y = Relu(x)
        z = Neg(x)
        output y
        output z
        """,
    )
    assert graph.origin["x"] == "a"


def test_equal_roundings_of_one_tensor_are_one() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y, float[2] z)",
        """
        n = Neg(x)
        a = A(n)
        b = A(n)
        y = Relu(a)
        z = Abs(b)
        """,
    )
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.5 zero 128> = Neg(x)
        y = Relu(n)
        z = Abs(n)
        output y
        output z
        """,
    )


def test_a_reader_of_the_unrounded_tensor_keeps_it() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y, float[2] z)",
        """
        n = Neg(x)
        a = A(n)
        y = Relu(a)
        z = Abs(n)
        """,
    )
    expect(
        graph,
        """
        input x
        n = Neg(x)
        a<uint8 scale 0.5 zero 128> = qatc::Requantize(n)
        y = Relu(a)
        z = Abs(n)
        output y
        output z
        """,
    )
    assert graph.origin == {"a": "a"}


def test_a_quantized_constant_is_clipped_to_a_narrower_range() -> None:
    graph = after_strip(
        "(float[1,3] x) => (float[1,1] y)",
        "w = DequantizeLinear(wq, sD, zD)\nq = QuantizeLinear(w, sD, zD)\nc = Clip(q, low, high)\n"
        "v = DequantizeLinear(c, sD, zD)\ny = MatMul(x, v)",
        "int8[3,1] wq = {-100, 5, 50}, int8 low = {-20}, int8 high = {30}",
    )
    weight = value_of(graph.nodes[0].inputs[1])
    assert weight is not None
    assert weight.ravel().tolist() == [-20, 5, 30]


@pytest.mark.parametrize(("op", "kept"), [("Shape", 0), ("Size", 0), ("other.Shape", 1), ("other.Size", 1)])
def test_only_the_standard_operators_of_shapes_are_blind_to_values(op: str, kept: int) -> None:
    """An operator of somebody else's domain may compute with the unrounded numbers, whatever it is called."""
    graph = canonical(
        '<ir_version: 10, opset_import: ["": 17, "other": 1]>\n'
        "g (float[2] x) => (float[2] y, z) <float s = {0.5}, uint8 o = {128}> "
        f"{{ n = Neg(x) q = QuantizeLinear(n, s, o) a = DequantizeLinear(q, s, o) y = Relu(a) z = {op}(n) }}"
    )
    strip(graph)
    assert [node.op for node in graph.nodes].count("Requantize") == kept


def test_two_consumers_that_round_differently() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y, float[2] z)",
        """
        n = Neg(x)
        a = A(n)
        b = B(n)
        y = Relu(a)
        z = Abs(b)
        """,
    )
    expect(
        graph,
        """
        input x
        n = Neg(x)
        a<uint8 scale 0.5 zero 128> = qatc::Requantize(n)
        b<uint8 scale 0.25 zero 0> = qatc::Requantize(n)
        y = Relu(a)
        z = Abs(b)
        output y
        output z
        """,
    )


def test_a_graph_output_is_read_unrounded() -> None:
    graph = after_strip("(float[2] x) => (float[2] n, float[2] y)", "n = Neg(x)\na = A(n)\ny = Relu(a)")
    expect(
        graph,
        """
        input x
        n = Neg(x)
        a<uint8 scale 0.5 zero 128> = qatc::Requantize(n)
        y = Relu(a)
        output n
        output y
        """,
    )


def test_a_rounded_graph_output_keeps_its_name() -> None:
    graph = after_strip("(float[2] x) => (float[2] y)", "n = Neg(x)\ny = A(n)")
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Neg(x)
        output y
        """,
    )
    assert graph.origin == {"y": "y"}


def test_the_input_as_a_rounded_output() -> None:
    """The names of both are part of the interface: a node must stand between them."""
    graph = after_strip("(float[2] x) => (float[2] y)", "y = A(x)")
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        y<uint8 scale 0.5 zero 128> = Identity(x)
        output y
        """,
    )


def test_two_outputs_of_one_rounding() -> None:
    graph = after_strip("(float[2] x) => (float[2] y, float[2] z)", "n = Neg(x)\ny = A(n)\nz = A(n)")
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Neg(x)
        z<uint8 scale 0.5 zero 128> = Identity(y)
        output y
        output z
        """,
    )


def test_readers_of_the_shape_do_not_matter() -> None:
    graph = after_strip(
        "(float[N] x) => (float[N] y, int64[1] s)",
        """
        n = Neg(x)
        s = Shape(n)
        a = A(n)
        y = Relu(a)
        """,
    )
    expect(
        graph,
        """
        input x
        n<uint8 scale 0.5 zero 128> = Neg(x)
        s = Shape(n)
        y = Relu(n)
        output y
        output s
        """,
    )


def test_rounding_twice_onto_one_grid_is_rounding_once() -> None:
    graph = after_strip("(float[2] x) => (float[2] y)", "a = A(x)\nb = A(a)\nc = A(b)\ny = Relu(c)")
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        y = Relu(x)
        output y
        """,
    )


def test_rounding_onto_another_grid_stays() -> None:
    graph = after_strip("(float[2] x) => (float[2] y)", "a = A(x)\nb = B(a)\nc = A(b)\ny = Relu(c)")
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b<uint8 scale 0.25 zero 0> = qatc::Requantize(x)
        c<uint8 scale 0.5 zero 128> = qatc::Requantize(b)
        y = Relu(c)
        output y
        """,
    )


def test_a_narrower_range_of_the_same_grid_stays() -> None:
    """Clip between Q and DQ: the second rounding still clamps."""
    graph = after_strip(
        "(float[2] x) => (float[2] y)",
        """
        a = A(x)
        n = QuantizeLinear(a, sA, zA)
        m = Clip(n, low, high)
        b = DequantizeLinear(m, sA, zA)
        c = A(b)
        y = Relu(c)
        """,
        "uint8 low = {120}, uint8 high = {200}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        b<uint8[120,200] scale 0.5 zero 128> = qatc::Requantize(x)
        y = Relu(b)
        output y
        """,
    )


def test_constants_become_integers() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y)",
        "a = A(x)\nb = C(w)\ny = Mul(a, b)",
        "float[4] w = {0.0625, -100.0, 100.0, 1.0}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.5 zero 128>
        y = Mul(x, w_int8<int8 scale 0.125 zero 3>:int8[4]{3,-128,127,11})
        output y
        """,
    )


def test_a_constant_on_two_grids_becomes_two() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y)",
        "b = C(w)\nc = D(w)\nd = C(w)\np = Mul(x, b)\nq = Mul(p, c)\ny = Mul(q, d)",
        "float[2] w = {0.5, 1.0}",
    )
    expect(
        graph,
        """
        input x
        p = Mul(x, w_int8<int8 scale 0.125 zero 3>:int8[2]{7,11})
        q = Mul(p, w_int8_1<int8 scale 0.0625 zero 0>:int8[2]{8,16})
        y = Mul(q, w_int8<int8 scale 0.125 zero 3>:int8[2]{7,11})
        output y
        """,
    )


def test_a_constant_that_is_also_read_as_it_is() -> None:
    graph = after_strip(
        "(float[2] x) => (float[2] y)", "b = C(w)\np = Mul(x, b)\ny = Mul(p, w)", "float[2] w = {0.55, 1.0}"
    )
    expect(
        graph,
        """
        input x
        p = Mul(x, w_int8<int8 scale 0.125 zero 3>:int8[2]{7,11})
        y = Mul(p, w:float32[2]{0.550000012,1})
        output y
        """,
    )


def test_integers_of_a_constant_are_kept_on_their_own_grid() -> None:
    """DQ, Q and DQ of one grid: the integers are not rounded again, only clamped."""
    graph = after_strip(
        "(float[3] x) => (float[3] y)",
        """
        w = DequantizeLinear(wq, sD, zD)
        v = D(w)
        y = Mul(x, v)
        """,
        "int8[3] wq = {-128, 3, 127}",
    )
    expect(
        graph,
        """
        input x
        y = Mul(x, wq_int8<int8 scale 0.0625 zero 0>:int8[3]{-128,3,127})
        output y
        """,
    )


def test_per_channel_parameters() -> None:
    graph = after_strip(
        "(float[1,2,2] x) => (float[1,2,2] y)",
        """
        q = QuantizeLinear<axis=1>(x, s, z)
        a = DequantizeLinear<axis=1>(q, s, z)
        y = Relu(a)
        """,
        "float[2] s = {0.5, 0.25}, uint8[2] z = {0, 128}",
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.25..0.5 zero 0..128 axis 1 x2>
        y = Relu(x)
        output y
        """,
    )


def test_int16() -> None:
    graph = after_strip("(float[2] x) => (float[2] y)", "a = W(x)\ny = Relu(a)", opset=21)
    expect(
        graph,
        """
        input x<int16 scale 0.5 zero 0>
        y = Relu(x)
        output y
        """,
    )


def test_several_outputs() -> None:
    graph = after_strip(
        "(float[4] x) => (float[2] y, float[1] z, float[1] v)",
        """
        a, b, c = Split(x, sizes)
        y = A(a)
        z = B(b)
        v = Neg(c)
        """,
        "int64[3] sizes = {2, 1, 1}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128>, z<uint8 scale 0.25 zero 0>, c = Split(x, sizes:int64[3]{2,1,1})
        v = Neg(c)
        output y
        output z
        output v
        """,
    )


def test_what_a_body_captures_is_read_unrounded() -> None:
    graph = after_strip(
        "(float[2] x, bool c) => (float[2] y, float[2] z)",
        """
        n = Neg(x)
        a = A(n)
        y = Relu(a)
        z = If(c) <
            then_branch = one () => (float[2] t) { t = Abs(n) },
            else_branch = two () => (float[2] e) { e = Exp(a) }
        >
        """,
    )
    expect(
        graph,
        """
        input x
        input c
        n = Neg(x)
        a<uint8 scale 0.5 zero 128> = qatc::Requantize(n)
        y = Relu(a)
        z = If[else_branch=graph(Exp) then_branch=graph(Abs)](c, n, a)
        output y
        output z
        """,
    )


@pytest.mark.parametrize(("value", "what"), [("nan", "NaN"), ("inf", None)])
def test_constants_that_are_not_finite(value: str, what: str | None) -> None:
    graph = canonical(net("(float[1] x) => (float[1] y)", "b = C(w)\ny = Mul(x, b)", f"float[1] w = {{{value}}}"))
    strip(graph)
    found = [str(d) for d in graph.diagnostics.errors]
    assert bool(found) == (what is not None)
    assert all("QAT104" in d and str(what) in d for d in found)


def test_a_moved_tensor_that_is_rounded_again_is_another_tensor_of_the_source() -> None:
    """The source has d on A's grid; with B's parameters it is the source's b."""
    graph = after_strip(
        "(float[2,3] x) => (float[3,2] y)",
        "q = QuantizeLinear(x, sA, zA)\nt = Transpose(q)\nd = DequantizeLinear(t, sA, zA)\nb = B(d)\ny = Relu(b)",
    )
    assert graph.origin["d"] == "b"
    assert str(graph.params["d"]) == "uint8 scale 0.25 zero 0"
