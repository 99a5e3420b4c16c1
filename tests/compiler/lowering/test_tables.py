"""Tables of element-wise functions: their values are those that the model computes in float32."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.integer import Lookup
from qatc.compiler.quant import Floats, Integers, QuantParams
from tests.agreeing import agrees, lowered_net, reasons
from tests.agreeing import kinds as kinds_of
from tests.graphs import expect, net


def test_tables_round_as_float32_does() -> None:
    """Ten of these codes lie within float error of a tie; the table takes the side that the model takes."""
    graph = lowered_net(
        "(float[1,1,2,2] x) => (float[1,1,2,2] y)",
        "a = A(x)\nm = Mul(a, k)\nd = Div(m, n)\ny = C(d)",
        "float k = {0.1}, float n = {0.8}",
    )
    real = (np.arange(256, dtype=np.float32) - 128) * np.float32(0.5)
    steps = np.rint(real * np.float32(0.1) / np.float32(0.8) / np.float32(0.125))
    exact = np.rint(real.astype(np.float64) * float(np.float32(0.1)) / float(np.float32(0.8)) / 0.125)
    assert not np.array_equal(steps, exact)  # the case is there
    np.testing.assert_array_equal(graph.constants["y_table"], steps + 131)


def test_a_function_on_two_grids_is_two_tables() -> None:
    """In YOLO's neck the same SiLU goes onto one grid in a Concat, and onto another where it is upsampled first."""
    graph = agrees(
        net(
            "(float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,1,8,8] z)",
            """
            a = A(x)
            s = Sigmoid(a)
            f = Mul(a, s)
            b = B(f)
            y = Concat<axis = 1>(b, b)
            r = Resize<mode = "nearest">(f, , sizes)
            z = C(r)
            """,
            "float[4] sizes = {1.0, 1.0, 2.0, 2.0}",
        )
    )
    assert not reasons(graph)
    assert sorted(kinds_of(graph)) == ["Concat", "Lookup", "Lookup", "Resize"]


@pytest.mark.parametrize("order", ["a, t", "t, a"])
def test_a_factor_that_is_rounded_first_is_remembered(order: str) -> None:
    """ONNX Runtime's and TFLite's quantizers put a grid behind the Sigmoid of a SiLU: two kernels may do."""
    graph = agrees(
        net(
            "(float[1,1,4,4] x) => (float[1,1,4,4] y)",
            f"a = A(x)\ns = Sigmoid(a)\nt = B(s)\nm = Mul({order})\ny = A(m)",
        )
    )
    (table,) = (op for op in graph.ops if isinstance(op, Lookup))
    assert set(graph.factors) == {table.output}
    assert graph.factors[table.output].scale == (0.25,)


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(a)\nm = Mul(a, s)\ny = A(m)",  # nobody rounds it
        "s = Sigmoid(a)\nt = B(s)\nm = Add(a, t)\ny = A(m)",
        "s = Sigmoid(a)\nt = B(s)\nm = Mul(t, t)\ny = A(m)",
        "n = Neg(a)\ns = Sigmoid(a)\nt = B(s)\nm = Mul(n, t)\ny = A(m)",
    ],
)
def test_other_tables_are_no_products_with_a_rounded_factor(body: str) -> None:
    graph = agrees(net("(float[1,1,4,4] x) => (float[1,1,4,4] y)", f"a = A(x)\n{body}"))
    assert any(isinstance(op, Lookup) for op in graph.ops)
    assert not graph.factors


def test_no_values_are_worked_out_for_a_sum_of_two_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    dequantize = QuantParams.dequantize

    def watched(params: QuantParams, q: Integers) -> Floats:
        asked.append(q.size)
        return dequantize(params, q)

    monkeypatch.setattr(QuantParams, "dequantize", watched)
    lowered_net(
        "(float[1,1,2,2] x, float[1,1,2,2] z) => (float[1,1,2,2] y)",
        "a = A(x)\nb = B(z)\ns = Add(a, b)\ny = C(s)",
    )
    assert not asked
    lowered_net("(float[1,1,2,2] x) => (float[1,1,2,2] y)", "a = A(x)\ns = Sigmoid(a)\ny = C(s)")
    assert 256 in asked


def kinds(constants: str, body: str, shape: str = "1,2,2,3") -> list[str]:
    graph = lowered_net(f"(float[{shape}] x) => (float[1,2,2,3] y)", f"a = A(x)\n{body}\ny = A(s)", constants)
    graph.verify()
    return [getattr(op, "op_type", "") or op.kind for op in graph.ops if op.kind not in ("Quantize", "Dequantize")]


def test_a_vector_of_one_number_is_that_number() -> None:
    """The biases of a network that was not trained yet, say: quantized or not, the sum is a table or nothing at all."""
    shared = "float[3] k = {0.3, 0.3, 0.3}, float[2,1,3] u = {1, 1, 1, 1, 1, 1}, float[3] n = {0, 0, 0}"
    assert kinds(shared, "s = Add(a, k)") == ["Lookup"]
    assert kinds(shared, "b = B(k)\ns = Add(b, a)") == ["Lookup"]
    assert kinds(shared, "s = Mul(a, u)") == []
    assert kinds(shared, "b = A(n)\ns = Add(b, a)") == []


def test_a_vector_that_differs_or_widens_the_result_is_no_number() -> None:
    shared = "float[3] k = {0.3, 0.3, 0.4}, float[3] n = {0, 0, 0}"
    assert kinds(shared, "b = B(k)\ns = Add(a, b)") == ["Elementwise"]
    assert kinds(shared, "b = B(n)\ns = Add(a, b)", "1,2,2,1") == ["Elementwise"]
    assert kinds(shared, "s = Add(a, n)", "1,2,2,1") == ["Add"]


def test_a_single_number_plus_a_list_of_one_is_a_list() -> None:
    graph = lowered_net("(float x) => (float[1] y)", "a = A(x)\ns = Add(a, k)\ny = A(s)", "float[1] k = {0.3}")
    assert reasons(graph) == ["Add: Add has no exact integer form"]


@pytest.mark.parametrize(
    ("shape", "body", "constants"),
    [
        ("3", "s = Add(a, k)", "float[1,1] k = {0.3}"),  # the result has more dimensions
        ("3", "s = Mul(a, k)", "float[1,1,1] k = {-0.3}"),
        ("1", "s = Add(a, k)", "float[3] k = {0.3, 0.3, 0.3}"),  # and more elements
        ("2,3", "t = Sigmoid(a)\nu = Add(t, k)\ns = Sub(u, a)", "float[1,1] k = {0.3}"),
        ("2,3", "c = DequantizeLinear<axis = 0>(q, w, z)\ns = Add(a, c)",
         "int8[3] q = {4, 4, 4}, float[3] w = {0.5, 0.25, 0.125}, int8[3] z = {0, 0, 0}"),  # on three grids
        ("2,3", "s = Clip(a, , k)", "float k = {5.1}"),
    ],
)  # fmt: skip
def test_constants_keep_the_shape_that_they_give_the_result(shape: str, body: str, constants: str) -> None:
    agrees(net(f"(float[{shape}] x) => (float[] y)", f"a = A(x)\n{body}\ny = B(s)", constants))


@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_a_sum_of_grids_that_are_far_apart_stays_float(op: str) -> None:
    """QLinearAdd would add zero points of 128 thousands of steps to a code, in float32."""
    wide = "float v = {1}, uint8 m = {128}, float t = {1e-6}"
    body = f"q = QuantizeLinear(z, v, m)\nb = DequantizeLinear(q, v, m)\ns = {op}(a, b)\nr = QuantizeLinear(s, t, m)\n"
    graph = lowered_net(
        "(float[3] x, float[3] z) => (float[3] y)", f"a = A(x)\n{body}y = DequantizeLinear(r, t, m)", wide
    )
    (island,) = graph.islands()
    assert island.op_type == op
    assert "a step of an operand is more than its whole range" in island.reason


def test_a_chain_of_functions_is_one_table() -> None:
    graph = lowered_net(
        "(float[2] x) => (float[2] y)",
        "a = A(x)\ns = Sigmoid(a)\nm = Mul(a, s)\nn = Sub(m, one)\nq = Pow(n, two)\ny = B(q)",
        "float one = {1.0}, float two = {2.0}",
    )
    expect(
        graph,
        """
        input x<float32 2>
        constant y_table<uint8 256> #f17506a0
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.25 zero 0 2> = Lookup[function=Pow(Sub(Mul(x, Sigmoid(x)), 1), 2) hi=255
            lo=0](x_quantized, y_table)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_tables_follow_each_other_without_their_tensors_being_made() -> None:
    """A requantized tensor that only a table reads is never made: the next table starts at the root."""
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = A(x)\nt = Tanh(a)\nb = D(t)\nn = Neg(b)\ny = C(n)")
    expect(
        graph,
        """
        input x<float32 2>
        constant y_table<uint8 256> #bb188814
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.125 zero 131 2> = Lookup[function=Neg(Tanh(x)) hi=139 lo=123](x_quantized,
            y_table)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_a_function_with_holes_stays_float() -> None:
    """The logarithm of a negative number is none: no table can hold it."""
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = A(x)\nl = Log(a)\ny = B(l)")
    assert reasons(graph) == ["Log: Log has no exact integer form"]


def test_a_constant_vector_is_no_table() -> None:
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = A(x)\nm = Mul(a, k)\ny = B(m)", "float[2] k = {1.0, 2.0}")
    assert reasons(graph) == ["Mul: its constant operand is not quantized by the model"]


def test_a_quantized_divisor_is_a_real_number() -> None:
    """Its integers made the quotient one of integers, cut off towards zero (GELU's root of two in AIMET's exports)."""
    graph = agrees(
        net(
            "(float[4,8] x) => (float[4,8] y)",
            "a = A(x)\nr = D(k)\nd = Div(a, r)\ne = Tanh(d)\ny = C(e)",
            "float k = {1.4375}",
        )
    )
    assert [op.kind for op in graph.ops] == ["Quantize", "Lookup", "Dequantize"]
