"""Lowering: the integer graph of one small model for each fusion, and for each operator that must stay in float."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.graph import infer_shapes
from qatc.compiler.integer import Conv, Float, IntegerGraph, Move, Pool, Quantize, Rescale
from qatc.compiler.lowering import LoweringOptions, lower
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.reference import execute
from tests.graphs import expect, net, stripped

CONV = "int8[2,1,1,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
DENSE = "int8[1,2] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
WEIGHT = "a = A(x)\nw = DequantizeLinear<axis = {axis}>(wq, ws, wz)\n"
X4, X2 = "(float[1,1,2,2] x) => (float[1,2,2,2] y)", "(float[3,1] x) => (float[3,2] y)"


def lowered(signature: str, body: str, constants: str = "", *, opset: int = 17, **options: str) -> IntegerGraph:
    graph = stripped(net(signature, body, constants, opset=opset))
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    propagate(graph)
    result = lower(graph, LoweringOptions(**options))
    graph.diagnostics.check()
    return result


def reasons(graph: IntegerGraph) -> list[str]:
    graph.verify()
    return [f"{op.op_type}: {op.reason}" for op in graph.islands()]


# -- products ---------------------------------------------------------------------------------------------------------
def test_a_clamped_convolution_is_one_operator() -> None:
    graph = lowered(
        X4,
        WEIGHT.format(axis=0) + "c = Conv(a, w, b)\nr = Relu(c)\nm = Clip(r, , six)\ny = B(m)",
        f"{CONV}, float[2] b = {{0.5, 1.0}}, float six = {{6.0}}",
    )
    expect(
        graph,
        """
        input x<float32 1x1x2x2>
        constant wq<int8 scale 0.25..0.5 zero 0 axis 0 x2 2x1x1x1> {10,-20}
        constant y_bias<int32 2> {2,8}
        x_quantized<uint8 scale 0.5 zero 128 1x1x2x2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.25 zero 0 1x2x2x2> = Conv[acc_scale=0.125..0.25 hi=24 lo=0](x_quantized, wq,
            y_bias)
        y<float32 1x2x2x2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_bias_and_factor_behind_a_matmul_are_one_operator() -> None:
    """The factor is positive and one number: it changes what a unit of the accumulator is worth."""
    graph = lowered(
        "(float[3,2] x, float[2,3] u) => (float[3,3] y)",
        "a = A(x)\nb = B(u)\nm = MatMul(a, b)\nh = Mul(m, k)\ny = D(h)",
        "float k = {0.125}",
    )
    expect(
        graph,
        """
        input x<float32 3x2>
        input u<float32 2x3>
        x_quantized<uint8 scale 0.5 zero 128 3x2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 2x3> = Quantize[hi=255 lo=0](u)
        y_quantized<uint8 scale 0.0625 zero 128 3x3> = MatMul[acc_scale=0.015625..0.015625 hi=255
            lo=0](x_quantized, u_quantized)
        y<float32 3x3> = Dequantize(y_quantized)
        output y
        """,
    )


def test_gemm_in_every_transposition() -> None:
    graph = lowered(
        "(float[1,3] x) => (float[3,2] y)",
        WEIGHT.format(axis=0) + "g = Gemm<transA = 1, transB = 1>(a, w, b)\ny = A(g)",
        "int8[2,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2] b = {0.5, 1.0}",
    )
    expect(
        graph,
        """
        input x<float32 1x3>
        constant wq<int8 scale 0.25..0.5 zero 0 axis 1 x2 1x2> {10,-20}
        constant y_bias<int32 2> {2,8}
        x_quantized<uint8 scale 0.5 zero 128 1x3> = Quantize[hi=255 lo=0](x)
        x_transposed<uint8 scale 0.5 zero 128 3x1> = Move[perm=[1, 0] op_type=Transpose](x_quantized)
        y_quantized<uint8 scale 0.5 zero 128 3x2> = MatMul[acc_scale=0.125..0.25 hi=255 lo=0](x_transposed, wq,
            y_bias)
        y<float32 3x2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_gemm_of_two_activations() -> None:
    graph = lowered(
        "(float[3,2] x, float[4,2] u) => (float[3,4] y)", "a = A(x)\nb = B(u)\ng = Gemm<transB = 1>(a, b)\ny = A(g)"
    )
    expect(
        graph,
        """
        input x<float32 3x2>
        input u<float32 4x2>
        x_quantized<uint8 scale 0.5 zero 128 3x2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 4x2> = Quantize[hi=255 lo=0](u)
        u_transposed<uint8 scale 0.25 zero 0 2x4> = Move[perm=[1, 0] op_type=Transpose](u_quantized)
        y_quantized<uint8 scale 0.5 zero 128 3x4> = MatMul[acc_scale=0.125..0.125 hi=255 lo=0](x_quantized,
            u_transposed)
        y<float32 3x4> = Dequantize(y_quantized)
        output y
        """,
    )


def test_a_raw_result_is_an_accumulator_on_its_own_grid() -> None:
    """It is read before any rounding: exact integers, then real numbers with their bias."""
    graph = lowered(
        "(float[1,1,2,2] x) => (float[1,2,2,2] y)",
        WEIGHT.format(axis=0) + "c = Conv(a, w, b)\ny = Softmax<axis = 1>(c)",
        f"{CONV}, float[2] b = {{0.5, 1.0}}",
    )
    expect(
        graph,
        """
        input x<float32 1x1x2x2>
        constant wq<int8 scale 0.25..0.5 zero 0 axis 0 x2 2x1x1x1> {10,-20}
        constant c_bias<float32 2> {0.5,1}
        x_quantized<uint8 scale 0.5 zero 128 1x1x2x2> = Quantize[hi=255 lo=0](x)
        c_accumulator<int32 scale 0.125..0.25 zero 0 axis 1 x2 1x2x2x2> = Conv[acc_scale=0.125..0.25
            hi=2147483647 lo=-2147483648](x_quantized, wq)
        c<float32 1x2x2x2> = Dequantize(c_accumulator, c_bias)
        y<float32 1x2x2x2> = Float[axis=1 op_type=Softmax reason=its input is not quantized by the model
            tensor=c](c)
        output y
        """,
    )


def test_a_raw_result_that_is_also_rounded_is_made_once() -> None:
    graph = lowered(
        "(float[1,1,2,2] x) => (float[1,2,2,2] y, float[1,2,2,2] z)",
        WEIGHT.format(axis=0) + "c = Conv(a, w)\ny = Softmax<axis = 1>(c)\nz = A(c)",
        CONV,
    )
    expect(
        graph,
        """
        input x<float32 1x1x2x2>
        constant wq<int8 scale 0.25..0.5 zero 0 axis 0 x2 2x1x1x1> {10,-20}
        x_quantized<uint8 scale 0.5 zero 128 1x1x2x2> = Quantize[hi=255 lo=0](x)
        c_accumulator<int32 scale 0.125..0.25 zero 0 axis 1 x2 1x2x2x2> = Conv[acc_scale=0.125..0.25
            hi=2147483647 lo=-2147483648](x_quantized, wq)
        c<float32 1x2x2x2> = Dequantize(c_accumulator)
        z_quantized<uint8 scale 0.5 zero 128 1x2x2x2> = Quantize[hi=255 lo=0](c)
        y<float32 1x2x2x2> = Float[axis=1 op_type=Softmax reason=its input is not quantized by the model
            tensor=c](c)
        z<float32 1x2x2x2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_two_roundings_of_one_product_are_made_from_its_accumulator() -> None:
    graph = lowered(
        "(float[3,1] x) => (float[3,2] y, float[3,2] z)",
        WEIGHT.format(axis=1) + "m = MatMul(a, w)\ny = A(m)\nz = B(m)",
        DENSE,
    )
    expect(
        graph,
        """
        input x<float32 3x1>
        constant wq<int8 scale 0.25..0.5 zero 0 axis 1 x2 1x2> {10,-20}
        x_quantized<uint8 scale 0.5 zero 128 3x1> = Quantize[hi=255 lo=0](x)
        m_accumulator<int32 scale 0.125..0.25 zero 0 axis 1 x2 3x2> = MatMul[acc_scale=0.125..0.25
            hi=2147483647 lo=-2147483648](x_quantized, wq)
        m<float32 3x2> = Dequantize(m_accumulator)
        y_quantized<uint8 scale 0.5 zero 128 3x2> = Quantize[hi=255 lo=0](m)
        z_quantized<uint8 scale 0.25 zero 0 3x2> = Quantize[hi=255 lo=0](m)
        y<float32 3x2> = Dequantize(y_quantized)
        z<float32 3x2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_tied_weights_are_one_constant() -> None:
    graph = lowered(
        "(float[2,2] x) => (float[2,2] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\nb = A(m)\nn = MatMul(b, w)\ny = A(n)",
        "int8[2,2] wq = {1, 2, 3, 127}",
    )
    assert [op.inputs[1] for op in graph.ops if op.kind == "MatMul"] == ["wq", "wq"]


@pytest.mark.parametrize(
    ("call", "pads"),
    [
        ("Conv<pads = [1, 2, 3, 4]>(a, w)", (1, 2, 3, 4)),
        ('Conv<auto_pad = "VALID">(a, w)', (0, 0, 0, 0)),
        ('Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(a, w)', (0, 0, 1, 1)),
        ('Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(a, w)', (1, 1, 0, 0)),
        ('Conv<auto_pad = "SAME_UPPER", dilations = [2, 2]>(a, w)', (2, 2, 2, 2)),
        ("ConvTranspose<strides = [2, 2], output_shape = [8, 8]>(a, w)", (1, 1, 0, 0)),
        ('ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(a, w)', (0, 0, 1, 1)),
    ],
)
def test_paddings_of_every_form(call: str, pads: tuple[int, ...]) -> None:
    graph = lowered(
        "(float[1,1,4,4] x) => (float[1,1,P,Q] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = {call}\ny = A(c)",
        "int8[1,1,3,3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9}",
    )
    assert [op.pads for op in graph.ops if op.kind == "Conv"] == [pads]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("sizes", "added"), [("[9, 8]", (1, 0)), ("[8, 11]", (0, 3))])
def test_an_output_that_is_larger_than_the_input_makes(sizes: str, added: tuple[int, int]) -> None:
    """A kernel of 2 and a stride of 2 make 8 of 4; what is missing is nothing, at the end."""
    graph = lowered(
        "(float[1,1,4,4] x) => (float[1,1,P,Q] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\n"
        f"c = ConvTranspose<strides = [2, 2], output_shape = {sizes}>(a, w)\ny = A(c)",
        "int8[1,1,2,2] wq = {16, 32, 48, 64}",
    )
    (op,) = (op for op in graph.ops if isinstance(op, Conv))
    assert (op.pads, op.output_padding) == ((0, 0, 0, 0), added)
    made = execute(graph, {"x": np.ones((1, 1, 4, 4), np.float32)}, get_profile("onnx"))["y"]
    assert made.shape == (1, 1, 8 + added[0], 8 + added[1])
    np.testing.assert_array_equal(made[0, 0, :8, :8], np.tile([[1, 2], [3, 4]], (4, 4)))
    assert not made[0, 0, 8:].any()
    assert not made[0, 0, :, 8:].any()


@pytest.mark.parametrize(
    "call",
    [
        'Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(a, w)',
        'MaxPool<auto_pad = "SAME_LOWER", strides = [2, 2], kernel_shape = [3, 3]>(a)',
    ],
)
def test_padding_that_needs_an_unknown_size(call: str) -> None:
    graph = stripped(
        net(
            "(float[1,1,H,4] x) => (float[1,1,P,Q] y)",
            f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = {call}\ny = A(c)",
            "int8[1,1,3,3] wq = {1, 2, 3, 4, 5, 6, 7, 8, 9}",
        )
    )
    lower(graph)
    assert [d.code for d in graph.diagnostics.errors] == ["QAT009"]


# -- clamps -----------------------------------------------------------------------------------------------------------
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
    graph = lowered(
        "(float[2] x, float[2] u) => (float[2] y)",
        f"a = A(x)\nb = B(u)\ns = Add(a, b)\n{body}",
        "float one = {1.0}, float six = {6.0}, float odd = {1.3}, float far = {-1000.0}",
    )
    sums = [op for op in graph.ops if op.kind == "Elementwise"]
    assert [(op.lo, op.hi) for op in sums] == [span]  # type: ignore[attr-defined]
    assert not reasons(graph)


def test_a_clamp_of_a_rounded_tensor_is_a_clip_of_integers() -> None:
    graph = lowered("(float[2] x) => (float[2] y)", "a = A(x)\nr = Relu(a)\ny = A(r)")
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
    graph = lowered("(float[2] x) => (float[2] y)", "b = B(x)\nr = Relu(b)\ny = B(r)")
    expect(
        graph,
        """
        input x<float32 2>
        x_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](x)
        y<float32 2> = Dequantize(x_quantized)
        output y
        """,
    )


# -- tables -----------------------------------------------------------------------------------------------------------
def test_a_chain_of_functions_is_one_table() -> None:
    graph = lowered(
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
    graph = lowered("(float[2] x) => (float[2] y)", "a = A(x)\nt = Tanh(a)\nb = D(t)\nn = Neg(b)\ny = C(n)")
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
    graph = lowered("(float[2] x) => (float[2] y)", "a = A(x)\nl = Log(a)\ny = B(l)")
    assert reasons(graph) == ["Log: Log has no exact integer form"]


def test_a_constant_vector_is_no_table() -> None:
    graph = lowered("(float[2] x) => (float[2] y)", "a = A(x)\nm = Mul(a, k)\ny = B(m)", "float[2] k = {1.0, 2.0}")
    assert reasons(graph) == ["Mul: its constant operand is not quantized by the model"]


# -- pairs, pools, concatenation --------------------------------------------------------------------------------------
def test_sums_and_products_of_two_tensors() -> None:
    graph = lowered(
        "(float[2] x, float[2] u) => (float[2] y)",
        "a = A(x)\nb = B(u)\ns = Sub(a, b)\nd = C(s)\nk = D(c)\nm = Mul(d, k)\ny = B(m)",
        "float[2] c = {0.5, 1.0}",
    )
    expect(
        graph,
        """
        input x<float32 2>
        input u<float32 2>
        constant c_int8<uint8 scale 0.0625 zero 128 2> {136,144}
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](u)
        s_quantized<uint8 scale 0.125 zero 131 2> = Elementwise[hi=255 lo=0 op=Sub](x_quantized, u_quantized)
        y_quantized<uint8 scale 0.25 zero 0 2> = Elementwise[hi=255 lo=0 op=Mul](s_quantized, c_int8)
        y<float32 2> = Dequantize(y_quantized)
        output y
        """,
    )


@pytest.mark.parametrize(
    ("call", "mode", "kernel", "pads", "keepdims"),
    [
        ("AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(a)", "average", (2, 2), (0, 0, 0, 0), True),
        ('AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_UPPER">(a)', "average", (2, 2), (0, 0, 1, 1), True),
        ("AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(a)", "average", (2, 2), (0, 0, 0, 0), True),
        ("GlobalAveragePool(a)", "average", (), (), True),
        ("ReduceMean<axes = [2, 3], keepdims = 1>(a)", "average", (), (), True),
        ("ReduceMean<axes = [-1, -2], keepdims = 0>(a)", "average", (), (), False),
        ("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)", "max", (3, 3), (1, 1, 1, 1), True),
        ("GlobalMaxPool(a)", "max", (), (), True),
    ],
)
def test_pools(call: str, mode: str, kernel: tuple[int, ...], pads: tuple[int, ...], keepdims: bool) -> None:
    graph = lowered("(float[1,2,4,4] x) => (float[M] y)", f"a = A(x)\np = {call}\ny = A(p)")
    (pool,) = [op for op in graph.ops if isinstance(op, Pool)]
    assert (pool.mode, pool.kernel, pool.pads, pool.keepdims) == (mode, kernel, pads, keepdims)
    assert not reasons(graph)


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "moves"),
    [
        ("1,4,3", "2", 0, 0),
        ("1,4,3", "1", 0, 1),  # the tokens of a transformer, [N, T, C]
        ("1,4,3", "1", 1, 2),
        ("1,4,4,3", "1, 2", 0, 1),  # the positions of an image, [N, H, W, C]
        ("1,4,4,3", "-3, -2", 1, 2),
    ],
)
def test_means_over_other_dimensions(shape: str, axes: str, keepdims: int, moves: int) -> None:
    """The averaged dimensions go behind the other two first, and back where they are kept."""
    graph = lowered(
        f"(float[{shape}] x) => (float[M] y)",
        f"a = A(x)\np = ReduceMean<axes = [{axes}], keepdims = {keepdims}>(a)\ny = A(p)",
    )
    assert not reasons(graph)
    assert len([op for op in graph.ops if isinstance(op, Move)]) == moves


def test_concat_rescales_each_input() -> None:
    graph = lowered(
        "(float[2] x, float[2] u) => (float[4] y)",
        "a = A(x)\nb = B(u)\nc = Concat<axis = -1>(a, b)\nr = Relu(c)\ny = C(r)",
    )
    expect(
        graph,
        """
        input x<float32 2>
        input u<float32 2>
        x_quantized<uint8 scale 0.5 zero 128 2> = Quantize[hi=255 lo=0](x)
        u_quantized<uint8 scale 0.25 zero 0 2> = Quantize[hi=255 lo=0](u)
        y_quantized<uint8 scale 0.125 zero 131 4> = Concat[axis=0 hi=255 lo=131](x_quantized, u_quantized)
        y<float32 4> = Dequantize(y_quantized)
        output y
        """,
    )


def test_batch_norm_alone_is_a_depthwise_product() -> None:
    graph = lowered(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\nr = Relu(n)\ny = B(r)",
        "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}",
    )
    expect(
        graph,
        """
        input x<float32 1x2x2x2>
        constant y_weight<int8 scale 0.015625 zero 0 axis 0 x2 2x1x1x1> {64,-64}
        constant y_bias<int32 2> {-64,32}
        x_quantized<uint8 scale 0.5 zero 128 1x2x2x2> = Quantize[hi=255 lo=0](x)
        y_quantized<uint8 scale 0.25 zero 0 1x2x2x2> = Conv[acc_scale=0.0078125..0.0078125 groups=2 hi=255
            lo=0](x_quantized, y_weight, y_bias)
        y<float32 1x2x2x2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_batch_norm_alone_whose_offset_dwarfs_its_factor_keeps_its_bias_in_32_bits() -> None:
    graph = lowered(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\ny = B(n)",
        "float[2] g = {1e-9, 1.0}, float[2] b = {20.0, 0.25}, float[2] m = {0.0, 0.0}, float[2] v = {1.0, 1.0}",
    )
    (conv,) = [op for op in graph.ops if isinstance(op, Conv)]
    assert graph.constants[conv.inputs[2]] * np.asarray(conv.acc_scale) == pytest.approx([20.0, 0.25], rel=1e-6)


def test_batch_norm_of_vectors_is_one_position() -> None:
    graph = lowered(
        "(float[3,2] x) => (float[3,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\ny = B(n)",
        "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}",
    )
    assert reasons(graph) == []
    assert [op.kind for op in graph.ops] == ["Quantize", "Move", "Conv", "Move", "Dequantize"]
    x = np.asarray([[1.0, 2.0], [-3.0, 0.5], [4.0, -1.0]], np.float32)
    y = execute(graph, {"x": x}, get_profile("exact"))["y"]
    assert np.array_equal(y, np.maximum((x - [1, 0]) * [1, -1] + [0.5, 0.25], 0))


# -- movement ---------------------------------------------------------------------------------------------------------
def test_movement_and_shape_arithmetic() -> None:
    graph = lowered(
        "(float[N,2,3] x) => (float[N,M] y)",
        """
        a = A(x)
        s = Shape(a)
        n = Gather(s, zero)
        d = Concat<axis = 0>(n, rest)
        r = Reshape(a, d)
        y = A(r)
        """,
        "int64[1] zero = {0}, int64[1] rest = {-1}",
    )
    expect(
        graph,
        """
        input x<float32 Nx2x3>
        constant zero<int64 1> {0}
        constant rest<int64 1> {-1}
        x_quantized<uint8 scale 0.5 zero 128 Nx2x3> = Quantize[hi=255 lo=0](x)
        s<int64 3> = Float[op_type=Shape](x_quantized)
        n<int64 1> = Move[op_type=Gather](s, zero)
        d<int64 2> = Move[axis=0 op_type=Concat](n, rest)
        y_quantized<uint8 scale 0.5 zero 128 Nxunk__0> = Move[op_type=Reshape](x_quantized, d)
        y<float32 Nxunk__0> = Dequantize(y_quantized)
        output y
        """,
    )


def test_movement_onto_another_grid_rescales_behind_it() -> None:
    graph = lowered("(float[4] x) => (float[2] y, float[2] z)", "a = A(x)\nb, c = Split(a)\ny = Relu(b)\nz = B(c)")
    expect(
        graph,
        """
        input x<float32 4>
        x_quantized<uint8 scale 0.5 zero 128 4> = Quantize[hi=255 lo=0](x)
        b_quantized<uint8 scale 0.5 zero 128 2>, z_moved<uint8 scale 0.5 zero 128 2> =
            Move[op_type=Split](x_quantized)
        z_quantized<uint8 scale 0.25 zero 0 2> = Rescale[hi=255 lo=0](z_moved)
        y_quantized<uint8[128,255] scale 0.5 zero 128 2> = Rescale[hi=255 lo=128](b_quantized)
        y<float32 2> = Dequantize(y_quantized)
        z<float32 2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_movement_into_a_narrower_range_clamps() -> None:
    graph = lowered(
        "(float[2,3] x) => (float[3,2] y)",
        "a = A(x)\nt = Transpose(a)\nq = QuantizeLinear(t, sA, zA)\nc = Clip(q, l, h)\ny = DequantizeLinear(c, sA, zA)",
        "uint8 l = {100}, uint8 h = {200}",
    )
    expect(
        graph,
        """
        input x<float32 2x3>
        x_quantized<uint8 scale 0.5 zero 128 2x3> = Quantize[hi=255 lo=0](x)
        y_moved<uint8 scale 0.5 zero 128 3x2> = Move[op_type=Transpose](x_quantized)
        y_quantized<uint8[100,200] scale 0.5 zero 128 3x2> = Rescale[hi=200 lo=100](y_moved)
        y<float32 3x2> = Dequantize(y_quantized)
        output y
        """,
    )


def test_pad_values_are_integers_of_the_grid() -> None:
    graph = lowered(
        "(float[2] x) => (float[3] y)", "a = A(x)\np = Pad(a, i, v)\ny = A(p)", "int64[2] i = {0, 1}, float v = {-2.5}"
    )
    assert graph.constants["pad_value"].item() == 123


@pytest.mark.parametrize("value", ["", "v"])
def test_the_axes_of_a_pad_without_a_constant_stay_its_fourth_operand(value: str) -> None:
    """In reflect mode nothing is filled in, whether the file states a value or not."""
    graph = lowered(
        "(float[2,3] x) => (float[2,4] y)",
        f'a = A(x)\np = Pad<mode = "reflect">(a, i, {value}, k)\ny = A(p)',
        "int64[2] i = {0, 1}, int64[1] k = {1}" + (", float v = {0.0}" if value else ""),
        opset=18,
    )
    (pad,) = (op for op in graph.ops if isinstance(op, Move))
    assert [graph.constants[name].tolist() if name else None for name in pad.inputs[1:]] == [[0, 1], None, [1]]
    x = np.asarray([[0, 1, 2], [3, 4, 5]], np.float32)
    padded = execute(graph, {"x": x}, get_profile("onnx"))["y"]
    np.testing.assert_array_equal(padded, np.pad(x, [(0, 0), (0, 1)], mode="reflect"))


# -- types and ports --------------------------------------------------------------------------------------------------
def test_int8_activations_become_uint8() -> None:
    """Design rule 4.7: the zero point is shifted by 128, the range with it."""
    graph = lowered("(float[2] x) => (float[2] y)", "a = C(x)\ns = Add(a, a)\nt = Tanh(s)\ny = D(t)")
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
    graph = lowered("(float[2] x) => (float[2] y)", "a = C(x)\nt = Tanh(a)\ny = B(t)", activations="keep")
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
        graph = lowered(
            "(int64[1] i, float[2] x) => (float[2] y)",
            "t = C(c)\ng = Gather(t, i)\nb = C(x)\ns = Add(g, b)\ny = C(s)",
            "float[2,2] c = {0.5, 1.0, 1.5, 2.0}",
            activations=activations,
        )
        graph.verify()
        assert {t.dtype for n, t in graph.tensors.items() if n.startswith(("c", "g")) and t.params} == {dtype}


def test_integer_ports_of_the_file() -> None:
    graph = lowered(
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


def test_integer_ports_on_demand() -> None:
    graph = lowered("(float[2] x) => (float[2] y)", "a = C(x)\nt = Tanh(a)\ny = D(t)", io="integer")
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
    graph = lowered(
        "(float[2] x) => (float[2] y, float[2] z)", "a = C(x)\nt = Tanh(a)\ny = D(t)\nz = Softmax(y)", io="integer"
    )
    expect(
        graph,
        """
        input x<uint8 scale 0.125 zero 131 2>
        constant y_table<uint8 256> #17c73ac0
        y<uint8 scale 0.0625 zero 128 2> = Lookup[function=Tanh(x) hi=144 lo=112](x, y_table)
        y_dequantized<float32 2> = Dequantize(y)
        z<float32 2> = Float[op_type=Softmax reason=its result is not quantized by the model
            tensor=z](y_dequantized)
        output y
        output z
        """,
    )


def test_outputs_that_are_inputs_or_constants() -> None:
    graph = lowered(
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


# -- islands ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("signature", "body", "constants", "opset", "want"),
    [
        (
            "(float[2,4] x) => (float[2,4] y)", "a = A(x)\ns = Softmax(a)\ny = B(s)",
            "", 17, ["Softmax: Softmax has no exact integer form"],
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
            "(float[3,1,2] x) => (float[3,1,1,2] y)",
            "a = A(x)\nw = D(k)\nr = D(l)\nu, h, c = LSTM<hidden_size = 2>(a, w, r)\ny = D(u)",
            "float[1,8,2] k = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, "
            "float[1,8,2] l = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}", 17,
            ["LSTM: LSTM has no exact integer form"],
        ),
    ],
)  # fmt: skip
def test_what_stays_in_float_says_why(signature: str, body: str, constants: str, opset: int, want: list[str]) -> None:
    graph = lowered(signature, body, constants, opset=opset)
    assert [line.split(" (")[0] for line in reasons(graph)] == want


def test_an_island_of_several_results_rounds_each() -> None:
    graph = lowered(
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
    graph = lowered("(float[N,2] x) => (int64[2] y)", "a = A(x)\nt = Tanh(a)\nb = B(t)\ny = Shape(b)")
    assert not [op for op in graph.ops if isinstance(op, Float) and op.reason]


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("opset", [13, 20])
def test_largest_and_smallest_are_taken_of_integers(op: str, opset: int) -> None:
    call = f"m = {op}<axes = [1]>(a)" if opset < 18 else f"m = {op}(a, axis)"
    graph = lowered(
        "(float[2,3] x) => (float[2,1] y)", f"a = A(x)\n{call}\ny = A(m)", "int64[1] axis = {1}", opset=opset
    )
    assert reasons(graph) == []
    moves = [op for op in graph.ops if isinstance(op, Move)]
    assert [(m.op_type, graph.tensors[m.output].dtype) for m in moves] == [(op, "uint8")]


def test_a_16_bit_tensor_is_rounded_onto_another_grid_without_an_operator_of_ours() -> None:
    """Requantize is no ONNX operator: where no integer operator does it, it is a Quantize of the rounded floats."""
    graph = lowered("(float[4] x) => (float[4] y, float[4] u)", "w = W(x)\nu = Neg(w)\ny = A(w)")
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
    ],
)
def test_a_clamp_of_16_bits(clamp: str, grid: str, bounds: tuple[int, int]) -> None:
    """Integers of 16 bits are clamped as they are: no table, and no float."""
    body = f"w = W(x)\nr = {clamp}\ny = {grid}(r)"
    graph = lowered("(float[4] x) => (float[4] y)", body, "float low = {-1.5}, float high = {6}", opset=21)
    assert reasons(graph) == []
    (clamped,) = (op for op in graph.ops if isinstance(op, Rescale))
    assert (clamped.lo, clamped.hi) == bounds


@pytest.mark.parametrize(("zeros", "clamped"), [("3, 3", 3), ("3, 5", 0)])
def test_a_relu_before_a_grid_per_channel(zeros: str, clamped: int) -> None:
    """The clamp is one pair of integers only where zero is the same integer in every channel."""
    graph = lowered(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "r = Relu(x)\nq = QuantizeLinear<axis = 1>(r, s, z)\ny = DequantizeLinear<axis = 1>(q, s, z)",
        f"float[2] s = {{0.5, 0.25}}, uint8[2] z = {{{zeros}}}",
    )
    graph.verify()
    (rounding,) = (op for op in graph.ops if isinstance(op, Quantize))
    assert (rounding.lo, rounding.hi) == (clamped, 255)
    assert [op.op_type for op in graph.islands()] == ([] if clamped else ["Relu"])


DEPTHWISE = """
    q = QuantizeLinear<axis = 1>(x, s, z)
    a = DequantizeLinear<axis = 1>(q, s, z)
    w = DequantizeLinear<axis = 0>(wq, ws, wz)
    c = Conv<group = 2, pads = [1, 1, 1, 1], kernel_shape = [1, 1]>(a, w)
    y = B(c)"""


@pytest.mark.parametrize(
    ("zeros", "scale", "reason"),
    [("3, 3", (0.25, 0.5, 0.0625, 0.125), None), ("3, 5", (), "Conv: its input is quantized per channel")],
)
def test_scales_of_channels_that_stay_apart(zeros: str, scale: tuple[float, ...], reason: str | None) -> None:
    """Each filter of a depthwise convolution reads one channel: that channel's scale is a factor of its accumulator."""
    graph = lowered(
        "(float[1,2,2,2] x) => (float[1,4,4,4] y)",
        DEPTHWISE,
        f"float[2] s = {{0.5, 0.25}}, uint8[2] z = {{{zeros}}}, int8[4,1,1,1] wq = {{1, 2, 3, 4}}, "
        "float[4] ws = {0.5, 1.0, 0.25, 0.5}, int8[4] wz = {0, 0, 0, 0}",
    )
    assert reasons(graph) == ([reason] if reason else [])
    assert [op.acc_scale for op in graph.ops if isinstance(op, Conv)] == ([scale] if scale else [])
