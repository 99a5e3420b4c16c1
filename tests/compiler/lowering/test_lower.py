"""Lowering as a whole: clamps, types and ports, and why an operator stays in float."""

from __future__ import annotations

import pytest

from qatc.compiler.integer import Float, Quantize, Rescale
from tests.agreeing import lowered_net, reasons
from tests.graphs import expect


# -- clamps --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "span"),
    [
        ("r = Relu(s)\ny = A(r)", (128, 255)),
        ("r = Clip(s, one, six)\ny = A(r)", (130, 140)),
        ("r = Clip(s, odd, )\ny = A(r)", (131, 255)),  # 1.3 rounds to 1.5
        ("p = Relu(s)\nr = Clip(p, , six)\ny = A(r)", (128, 140)),
        ("p = Clip(s, , one)\nr = Clip(p, six, )\ny = A(r)", (140, 140)),  # the outer one decides
        ("p = Clip(s, six, )\nr = Clip(p, , one)\ny = A(r)", (130, 130)),
        ("r = Clip(s, , far)\ny = A(r)", (0, 0)),  # everything is beyond the grid
    ],
)
def test_every_clamp_folds(body: str, span: tuple[int, int]) -> None:
    """Design rule 4.2: Q(clip(x, a, b)) = clamp(Q(x), Q(a), Q(b)), for any a and b."""
    graph = lowered_net(
        "(float[2] x, float[2] u) => (float[2] y)",
        f"a = A(x)\nb = B(u)\ns = Add(a, b)\n{body}",
        "float one = {1.0}, float six = {6.0}, float odd = {1.3}, float far = {-1000.0}",
    )
    sums = [op for op in graph.ops if op.kind == "Elementwise"]
    assert [(op.lo, op.hi) for op in sums] == [span]  # type: ignore[attr-defined]
    assert not reasons(graph)


def test_a_clamp_of_a_rounded_tensor_is_a_clip_of_integers() -> None:
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = A(x)\nr = Relu(a)\ny = A(r)")
    expect(
        graph,
        """
        input x<float32 2>
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.5 zero 128 2> = Rescale[hi=255 lo=128](x_quantized)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_a_clamp_that_does_nothing_disappears() -> None:
    graph = lowered_net("(float[2] x) => (float[2] y)", "b = B(x)\nr = Relu(b)\ny = B(r)")
    expect(
        graph,
        """
        input x<float32 2>
        x_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](x)
        y<float32 2> = Dequantize(x_quantized)
        output y
        """,
    )


def test_a_constant_of_32_bits_is_the_reason_only_where_a_kernel_would_read_it() -> None:
    """Exporters quantize the bias of a normalization in int32: the operator has no kernel either way."""
    constants = "int8[2] sq = {64, 100}, int8 sz = {0}, float ss = {0.01}, "
    constants += "int32[2] bq = {5, 9}, int32 bz = {0}, float bs = {0.01}"
    body = "a = A(x)\ns = DequantizeLinear(sq, ss, sz)\nb = DequantizeLinear(bq, bs, bz)\n"
    signature = "(float[1,2,4] x) => (float[1,2,4] y)"
    graph = lowered_net(signature, body + "n = InstanceNormalization(a, s, b)\ny = A(n)", constants)
    assert reasons(graph) == ["InstanceNormalization: InstanceNormalization has no exact integer form"]
    graph = lowered_net("(float[1,4,2] x) => (float[1,4,2] y)", body + "n = Add(a, b)\ny = A(n)", constants)
    assert reasons(graph) == ["Add: its constant operand has int32 values, which have no integer kernel"]


def test_a_16_bit_tensor_is_rounded_onto_another_grid_without_an_operator_of_ours() -> None:
    """Requantize is no ONNX operator: where no integer operator does it, it is a Quantize of the rounded floats."""
    graph = lowered_net("(float[4] x) => (float[4] y, float[4] u)", "w = W(x)\nu = Neg(w)\ny = A(w)")
    assert reasons(graph) == ["Neg: int16 tensors have no integer kernel"]
    assert [type(op).__name__ for op in graph.ops] == ["Quantize", "Dequantize", "Quantize", "Dequantize", "Float"]
    rounded = graph.ops[2]
    assert rounded.inputs == graph.ops[1].outputs
    assert graph.params(rounded.output).dtype == "uint8"


@pytest.mark.parametrize(
    ("clamp", "grid", "bounds"),
    [
        ("Relu(w)", "W", (0, 32767)),
        ("Clip(w, low, high)", "W", (-3, 12)),
        ("Clip(w, low, high)", "C", (119, 179)),  # onto 8 bits: scale 0.125, zero point 3 + 128
        ("Clip(w, odd, high)\nr = Relu(s)", "W", (0, 12)),
        ("Clip(w, odd, high)\nr = Clip(s, , odd)", "W", (-3, -3)),
        ("Clip(w, odd, high)\nr = Clip(s, huge, )", "W", (32767, 32767)),  # the outer one decides
    ],
)
def test_a_clamp_of_16_bits(clamp: str, grid: str, bounds: tuple[int, int]) -> None:
    """Integers of 16 bits are clamped as they are: no table, and no float."""
    body = f"w = W(x)\n{'s' if 's' in clamp else 'r'} = {clamp}\ny = {grid}(r)"
    constants = "float low = {-1.5}, float odd = {-1.6}, float high = {6}, float huge = {1e9}"
    graph = lowered_net("(float[4] x) => (float[4] y)", body, constants, opset=21)
    assert reasons(graph) == []
    (clamped,) = (op for op in graph.ops if isinstance(op, Rescale))
    assert (clamped.lo, clamped.hi) == bounds


@pytest.mark.parametrize(("zeros", "clamped"), [("3, 3", 3), ("3, 5", 0)])
def test_a_relu_before_a_grid_per_channel(zeros: str, clamped: int) -> None:
    """The clamp is one pair of integers only where zero is the same integer in every channel."""
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "r = Relu(x)\nq = QuantizeLinear<axis = 1>(r, s, z)\ny = DequantizeLinear<axis = 1>(q, s, z)",
        f"float[2] s = {{0.5, 0.25}}, uint8[2] z = {{{zeros}}}",
    )
    graph.verify()
    (rounding,) = (op for op in graph.ops if isinstance(op, Quantize))
    assert (rounding.lo, rounding.hi) == (clamped, 255)
    assert [op.op_type for op in graph.islands()] == ([] if clamped else ["Relu"])


# -- types and ports -----------------------------------------------------------------------------------------------
def test_int8_activations_become_uint8() -> None:
    """Design rule 4.7: the zero point is shifted by 128, the range with it."""
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = C(x)\ns = Add(a, a)\nt = Tanh(s)\ny = D(t)")
    expect(
        graph,
        """
        input x<float32 2>
        constant y_table<uint8 256> #681c772d
        x_quantized<uint8 scale 0.125 zero 131 2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.0625 zero 128 2> = Lookup[function=Tanh(Add(x, x)) hi=144
            lo=112](x_quantized, y_table)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_types_are_kept_where_the_target_says_so() -> None:
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = C(x)\nt = Tanh(a)\ny = B(t)", activations="keep")
    expect(
        graph,
        """
        input x<float32 2>
        constant y_table<uint8 256> #7f70fb97
        x_quantized<int8 scale 0.125 zero 3 2> = Quantize[hi=127 lo=-128](x)
        y_quantized<uint8 scale 0.25 zero 0 2> = Lookup[function=Tanh(x) hi=4 lo=0](x_quantized, y_table)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_constants_among_activations_have_their_type() -> None:
    for activations, dtype in (("keep", "int8"), ("uint8", "uint8")):
        graph = lowered_net(
            "(int64[1] i, float[2] x) => (float[2] y)",
            "t = C(c)\ng = Gather(t, i)\nb = C(x)\ns = Add(g, b)\ny = C(s)",
            "float[2,2] c = {0.5, 1.0, 1.5, 2.0}",
            activations=activations,
        )
        graph.verify()
        assert {t.dtype for n, t in graph.tensors.items() if n.startswith(("c", "g")) and t.params} == {dtype}


def test_integer_ports_of_the_file() -> None:
    graph = lowered_net(
        "(int8[2] x) => (int8[2] y)",
        "a = DequantizeLinear(x, sC, zC)\nt = Tanh(a)\ny = QuantizeLinear(t, sD, zD)",
    )
    expect(
        graph,
        """
        input x<int8 scale 0.125 zero 3 2>
        constant y_table<uint8 256> #17c73ac0
        x_quantized<uint8 scale 0.125 zero 131 2> = Rescale[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.0625 zero 128 2> = Lookup[function=Tanh(x) hi=144 lo=112](x_quantized,
            y_table)
        y<int8 scale 0.0625 zero 0 2> = Rescale[hi=127 lo=-128](y_quantized)
        output y
        """,
    )


def test_a_port_keeps_its_type_where_its_grid_is_that_of_another() -> None:
    """Of int8 and uint8 with the same scale and zero point, both within 0 and 127, the numbers are the same."""
    graph = lowered_net(
        "(float[2] x) => (uint8[2] y, float[2] z)",
        "q = QuantizeLinear(x, sD, zD)\nc = Clip(q, low, high)\na = DequantizeLinear(c, sD, zD)\n"
        "y = QuantizeLinear(a, sD, zero)\nz = Identity(a)",
        "int8 low = {0}, int8 high = {127}, uint8 zero = {0}",
    )
    y = graph.tensors["y"]
    assert y.dtype == "uint8"
    assert y.params is not None
    assert y.params.zero_point == (0,)


def test_integer_ports_on_demand() -> None:
    graph = lowered_net("(float[2] x) => (float[2] y)", "a = C(x)\nt = Tanh(a)\ny = D(t)", io="integer")
    expect(
        graph,
        """
        input x<uint8 scale 0.125 zero 131 2>
        constant y_table<uint8 256> #17c73ac0
        y<uint8 scale 0.0625 zero 128 2> = Lookup[function=Tanh(x) hi=144 lo=112](x, y_table)
        output y
        """,
    )


def test_an_integer_output_that_an_island_reads_too() -> None:
    graph = lowered_net(
        "(float[2] x) => (float[2] y, float[2] z)", "a = C(x)\nt = Tanh(a)\ny = D(t)\nz = Softmax(y)", io="integer"
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.125 zero 131 2>
        constant y_table<uint8 256> #17c73ac0
        y<uint8 scale 0.0625 zero 128 2> = Lookup[function=Tanh(x) hi=144 lo=112](x, y_table)
        y_dequantized<float32 2> = Dequantize(y)
        z<float32 2> = Float[op_type=Softmax reason=the target has no integer form of it](y_dequantized)
        output y
        output z
        """,
    )


def test_outputs_that_are_inputs_or_constants() -> None:
    graph = lowered_net(
        "(float[2] x) => (float[2] y, float[2] x, float[2] w, float[2] k)",
        "a = A(x)\ny = Relu(a)\nw = DequantizeLinear(wq, sD, zD)",
        "int8[2] wq = {1, 2}, float[2] k = {1.0, 2.0}",
    )
    expect(
        graph,
        """
        input x<float32 2>
        constant wq<uint8 scale 0.0625 zero 128 2> {129,130}
        constant k_1<float32 2> {1,2}
        a_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        w_quantized<uint8 scale 0.0625 zero 128 2> = Move[op_type=Identity](wq)
        y_quantized<uint8[128,255] scale 0.5 zero 128 2> = Rescale[hi=255 lo=128](a_quantized)
        y<float32 2> = Dequantize(y_quantized)
        w<float32 2> = Dequantize(w_quantized)
        k<float32 2> = Move[op_type=Identity](k_1)
        output y
        output x
        output w
        output k
        """,
    )


# -- islands -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("signature", "body", "constants", "opset", "want"),
    [
        (
            "(float[2,4] x) => (float[2,4] y)", "a = A(x)\ns = Softmax(a)\ny = B(s)",
            "", 17, ["Softmax: the target has no integer form of it"],
        ),
        (
            "(float[3,1] x) => (float[3,2] y)", "w = DequantizeLinear(wq, sD, zD)\nm = MatMul(x, w)\ny = A(m)",
            "int8[1,2] wq = {1, 2}", 17, ["MatMul: its input is not quantized by the model"],
        ),
        (
            "(float[3,1] x) => (float[3,2] y)", "a = A(x)\nm = MatMul(a, w)\ny = A(m)",
            "float[1,2] w = {1.0, 2.0}", 17, ["MatMul: its weight is not quantized by the model"],
        ),
        (
            "(float[3,2] x, float[2,3] v) => (float[3,3] y)", "a = A(x)\nm = MatMul(a, v)\ny = A(m)",
            "", 17, ["MatMul: its input is not quantized by the model"],
        ),
        (
            "(float[3,1] x, float[2] b) => (float[3,2] y)",
            "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = Gemm(a, w, b)\ny = A(m)",
            "int8[1,2] wq = {1, 2}", 17, ["Gemm: its bias is computed at run time"],
        ),
        (
            "(float[3,1] x) => (float[3,2] y)",
            "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = Gemm(a, w, b)\ny = A(m)",
            "int8[1,2] wq = {1, 2}, float[3,1] b = {1.0, 2.0, 3.0}", 17,
            ["Gemm: its bias is not one number per channel"],
        ),
        (
            "(float[1,2,4,4] x, float[2,2,1,1] v) => (float[1,2,4,4] y)",
            "a = A(x)\nw = B(v)\nc = ConvTranspose(a, w)\ny = A(c)", "", 17,
            ["ConvTranspose: a transposed convolution needs a constant weight"],
        ),
        (
            "(float[1,2,4,4] x, float[2,2,k,k] v) => (float[1,2,n,n] y)",
            "a = A(x)\nw = B(v)\nc = Conv(a, w)\ny = A(c)", "", 17, ["Conv: the size of its weight is not known"],
        ),
        (
            "(float[3,2] x) => (float[3,2] y)",
            "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, s, z)\nm = MatMul(a, w)\ny = A(m)",
            "int8[2,2] wq = {1, 2, 3, 4}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}", 17,
            ["Add: the weight takes 16 bits: two products of 8 bits are added"],
        ),
        (
            "(float[3,2] x) => (float[3] y)",
            "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, s, z)\nm = MatMul(a, w)\ny = A(m)",
            "int8[2] wq = {1, 2}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}", 17,
            ["MatMul: its weight is quantized along axis 0, not its output channels"],
        ),
        (  # NNCF's quantizers in front of depthwise convolutions
            "(float[1,2,3] x) => (float[1,2,1] y)",
            "a = A(x)\nm = ReduceMean<axes = [2]>(a)\nq = QuantizeLinear<axis = 1>(m, s, z)\n"
            "y = DequantizeLinear<axis = 1>(q, s, z)",
            "float[2] s = {0.5, 0.25}, uint8[2] z = {128, 128}", 17,
            ["ReduceMean: its result is quantized per channel"],
        ),
        (
            "(float[2] x) => (float[2] y)", "a = W(x)\nt = Tanh(a)\ny = W(t)",
            "", 21, ["Tanh: int16 tensors have no integer kernel"],
        ),
        (
            "(float[2,2] x) => (float[2,2] y)", "a = W(x)\nm = MatMul(a, a)\ny = W(m)", "", 21,
            ["MatMul: its input has int16 values, which have no integer kernel"],
        ),
        (
            "(float[2] x) => (float[2] y)", "a = A(x)\ny = Sigmoid(a)",
            "", 17, ["Sigmoid: its result is not quantized by the model"],
        ),
        (
            "(float[2] x, bool c) => (float[2] y)",
            "a = A(x)\nn = If(c) <then_branch = p () => (float[2] t) { t = Abs(a) }, "
            "else_branch = q () => (float[2] e) { e = Neg(a) }>\ny = A(n)",
            "", 17, ["If: If runs graphs of its own"],
        ),
        (
            "(float[3,1,2] x, float[1,1,2] s) => (float[3,1,1,2] y)",  # a state without a grid
            'a = A(x)\nw = D(k)\nr = D(l)\nu, h, c = LSTM<hidden_size = 2>(a, w, r, "", "", s)\ny = D(u)',
            "float[1,8,2] k = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, "
            "float[1,8,2] l = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}", 17,
            ["LSTM: LSTM has no exact integer form"],
        ),
    ],
)  # fmt: skip
def test_what_stays_in_float_says_why(signature: str, body: str, constants: str, opset: int, want: list[str]) -> None:
    graph = lowered_net(signature, body, constants, opset=opset)
    assert [line.split(" (")[0] for line in reasons(graph)] == want


def test_an_island_of_several_results_rounds_each() -> None:
    graph = lowered_net(
        "(float[2,4] x) => (float[2,2] y, float[2,2] z)",
        "a = A(x)\nb = Sigmoid(x)\nu, v = Split<axis = 1>(b)\ny = B(u)\nz = D(v)",
    )
    expect(
        graph,
        """
        input x<float32 2x4>
        b<float32 2x4> = Float[op_type=Sigmoid reason=its input is not quantized by the model tensor=x](x)
        y_unrounded<float32 2x2>, z_unrounded<float32 2x2> = Move[axis=1 op_type=Split](b)
        y_quantized<uint8 scale 0.25 zero 0 2x2> = Quantize[hi=255 lo=0](y_unrounded)
        z_quantized<uint8 scale 0.0625 zero 128 2x2> = Quantize[hi=255 lo=0](z_unrounded)
        y<float32 2x2> = Dequantize(y_quantized)
        z<float32 2x2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_an_island_that_nothing_reads_is_not_made() -> None:
    """Readers of a shape read the integers'."""
    graph = lowered_net("(float[N,2] x) => (int64[2] y)", "a = A(x)\nt = Tanh(a)\nb = B(t)\ny = Shape(b)")
    assert not [op for op in graph.ops if isinstance(op, Float) and op.reason]
