"""Where between quantized tensors chooses between integers: rounding commutes with choosing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.integer import Lookup, Move
from qatc.compiler.lowering import LoweringOptions
from qatc.compiler.lowering.missing import missing_ranges
from qatc.compiler.passes.propagate import propagate
from tests.agreeing import agrees, kinds, lowered
from tests.graphs import expect, net, stripped

PAIR = "(bool[2,8] c, float[2,8] x, float[2,8] u) => (float[2,8] y)"
ONE = "(bool[2,8] c, float[2,8] x) => (float[2,8] y)"
IMAGE = "(bool[1,1,4,4] c, float[1,2,4,4] x) => (float[1,3,4,4] y)"
CONV = "a = A(x)\nk = D(f)\nv = Conv(a, k)\n"
WEIGHT = "float[3,2,1,1] f = {0.5, 1, -0.25, 1, 2, -1}"
ATTENTION = "(bool[1,4,4] c, float[1,4,8] x) => (float[1,4,8] y)"
HEAD = "q = A(x)\nt = Transpose<perm = [0, 2, 1]>(q)\nm = MatMul(q, t)\nn = Mul(m, f)\n"
TAIL = "p = Softmax<axis = -1>(w)\nr = B(p)\no = MatMul(r, q)\ny = A(o)"
SCORES = "float f = {0.25}, float k = {-1000000000}"


@pytest.mark.parametrize(
    ("signature", "body", "constants", "want"),
    [
        pytest.param(PAIR, "a = A(x)\nb = A(u)\nw = Where(c, a, b)\ny = A(w)", "", ["Where"], id="one grid"),
        pytest.param(PAIR, "a = A(x)\nb = A(u)\ny = Where(c, a, b)", "", ["Where"], id="one grid, not rounded again"),
        pytest.param(PAIR, "a = A(x)\nb = B(u)\nw = Where(c, a, b)\ny = A(w)", "", ["Rescale", "Where"], id="two"),
        pytest.param(
            PAIR, "a = A(x)\nb = B(u)\nw = Where(c, a, b)\ny = C(w)", "", ["Rescale", "Rescale", "Where"], id="three"
        ),
        pytest.param(
            "(bool[2,1] c, float[8] x, float[2,1] u) => (float[2,8] y)",
            "a = A(x)\nb = A(u)\nw = Where(c, a, b)\ny = A(w)",
            "",
            ["Where"],
            id="all three are spread",
        ),
        pytest.param(
            PAIR,
            "a = A(x)\nb = B(u)\nw = Where(c, a, b)\nr = Relu(w)\ny = A(r)",
            "",
            ["Rescale", "Rescale", "Where"],
            id="clamped",
        ),
        pytest.param(ONE, "a = A(x)\nw = Where(c, a, k)\ny = A(w)", "float k = {0.3}", ["Where"], id="off the grid"),
        pytest.param(ONE, "a = A(x)\nw = Where(c, k, a)\ny = A(w)", "float k = {-3e38}", ["Where"], id="saturates"),
        pytest.param(ONE, "a = A(x)\ny = Where(c, a, k)", "float k = {-1.5}", ["Where"], id="on the grid"),
        pytest.param(ONE, "a = A(x)\ny = Where(c, a, k)", "float k = {0.3}", ["(Where)"], id="off the grid, unrounded"),
        pytest.param(
            ONE,
            "a = A(x)\nq = C(k)\nw = Where(c, a, q)\ny = A(w)",
            "float[8] k = {0.3, 1, 2, 3, -5, 5, 6, 9.9}",
            ["Where"],
            id="a constant on a grid of its own",
        ),
        pytest.param(
            IMAGE,
            CONV + "w = Where(c, v, k0)\ny = A(w)",
            f"{WEIGHT}, float k0 = {{-100}}",
            ["Conv", "Where"],
            id="a product is rounded before",
        ),
        pytest.param(
            IMAGE.replace("y)", "y, float[1,3,4,4] z)"),
            CONV + "s = Sin(v)\nw = Where(c, v, s)\ny = A(w)\nw2 = Where(c, s, v)\nz = B(w2)",
            WEIGHT,
            ["Conv", "(Sin)", "(Where)", "(Where)"],
            id="neither side is quantized",
        ),
        pytest.param(
            ONE,
            "w = Where(c, k, l)\nv = A(w)\na = A(x)\nq = Add(a, v)\ny = A(q)",
            "float k = {1.3}, float l = {-1e9}",
            ["Where", "Elementwise"],
            id="two constants",
        ),
        pytest.param(
            ONE,
            "a = A(x)\nk = DequantizeLinear<axis = 1>(q, s, z)\nw = Where(c, a, k)\ny = A(w)",
            "int8[2,8] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[8] s = {0.5,1,2,3,0.5,0.1,0.3,1}, "
            "int8[8] z = {0,0,0,0,0,0,0,0}",
            ["Where"],
            id="a constant with a scale per channel",
        ),
        pytest.param(
            "(float[2,8] x, float[2,8] u) => (float[2,8] y)",
            "a = A(x)\nb = A(u)\nc = Less(a, b)\nw = Where(c, a, b)\ny = A(w)",
            "",
            ["(Less)", "Where"],
            id="the condition is computed",
        ),
        pytest.param(
            "(bool[2,8] c, float[2,8] x) => (float[2,12] y)",
            "a = A(x)\nb = Concat<axis = 1>(a, k)\nr = Relu(b)\ny = A(r)",
            "float[2,4] k = {0, 0, 0, 0, 0, 0, 0, 0}",
            ["Concat", "Rescale"],
            id="zeros are concatenated",
        ),
    ],
)
def test_choices_are_exact(signature: str, body: str, constants: str, want: list[str]) -> None:
    assert kinds(agrees(net(signature, body, constants))) == want


@pytest.mark.parametrize("activations", ["uint8", "keep"])
@pytest.mark.parametrize(("a", "b", "y"), ["CCC", "WWW", "WCA", "ACW"])
def test_every_width_is_chosen_from(a: str, b: str, y: str, activations: str) -> None:
    text = net(PAIR, f"a = {a}(x)\nb = {b}(u)\nw = Where(c, a, b)\ny = {y}(w)", opset=21)
    assert "Where" in kinds(agrees(text, LoweringOptions(activations=activations)))


@given(st.floats(-80, 80, width=32), st.integers(0, 255), st.booleans(), st.integers(0, 99))
@settings(max_examples=30)
def test_a_constant_takes_its_place_on_the_grid(number: float, zero: int, first: bool, seed: int) -> None:
    sides = "k, a" if first else "a, k"
    body = f"a = B(x)\nw = Where(c, {sides})\nq = QuantizeLinear(w, s, z)\ny = DequantizeLinear(q, s, z)"
    values = f"float k = {{{number!r}}}, float s = {{0.3}}, uint8 z = {{{zero}}}"
    assert kinds(agrees(net(ONE, body, values), samples=1 + seed % 2)) == ["Rescale", "Where"]


def test_parameters_go_through_a_choice() -> None:
    graph = stripped(net(ONE, "a = A(x)\nw = Where(c, a, k)\ny = Sigmoid(w)", "float k = {0}"))
    propagate(graph)
    expect(
        graph,
        """
        input c
        input x<uint8 scale 0.5 zero 128>
        w<uint8 scale 0.5 zero 128> = Where(c, x, k_uint8<uint8 scale 0.5 zero 128>:uint8[]{128})
        y = Sigmoid(w)
        output y
        """,
    )


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("s = A(n)\nw = Where(c, s, k)\n", ["Transpose", "MatMul", "(Where)", "(Softmax)", "MatMul"]),
        ("v = Where(c, n, k)\nw = A(v)\n", ["Transpose", "MatMul", "Where", "(Softmax)", "MatMul"]),
    ],
    ids=["behind the rounding", "before the rounding"],
)
def test_masked_scores(body: str, want: list[str]) -> None:
    """A mask that is rounded saturates; one that is not stays what it is, and so does the choice."""
    graph = agrees(net(ATTENTION, HEAD + body + TAIL, SCORES))
    assert kinds(graph) == want
    reasons = {op.op_type: (op.reason, op.tensor) for op in graph.islands()}
    if "(Where)" in want:
        assert reasons["Where"] == ("its result is not quantized by the model", "w")


@pytest.mark.parametrize("mask", ["Where(c, s, k)", "Add(s, k)"])
def test_masked_scores_get_no_range_from_data(mask: str) -> None:
    """-1e9 among them would leave the scores one step of the grid."""
    graph = stripped(net(ATTENTION, HEAD + f"s = A(n)\nw = {mask}\n" + TAIL, SCORES))
    propagate(graph)
    assert missing_ranges(graph, {"Softmax"}) == []


def test_a_choice_by_the_tensor_itself_is_a_table() -> None:
    body = """
        a = A(x)
        c1 = Greater(a, zero)
        c2 = LessOrEqual(a, k)
        c3 = And(c1, c2)
        c = Not(c3)
        m = Mul(a, slope)
        w = Where(c, m, a)
        y = C(w)
    """
    graph = agrees(
        net("(float[2,8] x) => (float[2,8] y)", body, "float zero = {0}, float k = {3.5}, float slope = {-0.3}")
    )
    assert kinds(graph) == ["Lookup"]
    (table,) = [op for op in graph.ops if isinstance(op, Lookup)]
    real = (np.arange(256) - 128) * np.float32(0.5)
    chosen = np.where((real > 0) & (real <= 3.5), real, real * np.float32(-0.3))
    wanted = np.clip(np.rint(chosen.astype(np.float32) / np.float32(0.125)) + 3 + 128, 0, 255)
    np.testing.assert_array_equal(graph.constants[table.inputs[1]], wanted)


def test_both_operands_are_read_as_integers() -> None:
    graph = lowered(net(PAIR, "a = A(x)\nb = A(u)\nw = Where(c, a, b)\ny = A(w)"))
    (where,) = [op for op in graph.ops if isinstance(op, Move)]
    assert [graph.tensors[name].dtype for name in (*where.inputs, *where.outputs)] == ["bool", *["uint8"] * 3]
