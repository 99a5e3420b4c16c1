"""Products in integers: what fuses into one operator, raw accumulators, weights and scales of channels."""

from __future__ import annotations

import pytest

from qatc.compiler.integer import Conv, MatMul
from tests.agreeing import agrees, lowered_net, reasons
from tests.graphs import expect, net

CONV = "int8[2,1,1,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
DENSE = "int8[1,2] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
WEIGHT = "a = A(x)\nw = DequantizeLinear<axis = {axis}>(wq, ws, wz)\n"
X4, X2 = "(float[1,1,2,2] x) => (float[1,2,2,2] y)", "(float[3,1] x) => (float[3,2] y)"


def test_a_clamped_convolution_is_one_operator() -> None:
    graph = lowered_net(
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
    graph = lowered_net(
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
    graph = lowered_net(
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


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_a_constant_on_the_left(transposed: int) -> None:
    """Its integers meet those of an activation, in their type; so do they when they are transposed."""
    shape = "3,2" if transposed else "2,3"
    text = net(
        "(float[3,4] x) => (float[2,4] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\ng = Gemm<transA = {transposed}>(w, a)\ny = A(g)",
        f"int8[{shape}] wq = {{1, -2, 3, 4, -127, 6}}",
    )
    graph = agrees(text)
    (product,) = (op for op in graph.ops if op.kind == "MatMul")
    assert graph.params(product.inputs[0]).dtype == "uint8"


def test_a_constant_of_two_bytes_on_the_left_stays_float() -> None:
    """No kernel has such integers for its first operand, however small they are."""
    graph = lowered_net(
        "(float[1,3,4] x) => (float[1,2,4] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zW)\ng = MatMul(w, a)\ny = A(g)",
        "int16[2,3] wq = {1, -2, 3, 4, -127, 6}, int16 zW = {0}",
        opset=21,
    )
    assert reasons(graph) == ["MatMul: its input has int16 values, which have no integer kernel"]


def test_gemm_of_two_activations() -> None:
    graph = lowered_net(
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
    graph = lowered_net(
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
        y<float32 1x2x2x2> = Float[axis=1 op_type=Softmax reason=the target has no integer form of it](c)
        output y
        """,
    )


def test_a_raw_result_that_is_also_rounded_is_made_once() -> None:
    graph = lowered_net(
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
        y<float32 1x2x2x2> = Float[axis=1 op_type=Softmax reason=the target has no integer form of it](c)
        z<float32 1x2x2x2> = Dequantize(z_quantized)
        output y
        output z
        """,
    )


def test_two_roundings_of_one_product_are_made_from_its_accumulator() -> None:
    graph = lowered_net(
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
    graph = lowered_net(
        "(float[2,2] x) => (float[2,2] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nm = MatMul(a, w)\nb = A(m)\nn = MatMul(b, w)\ny = A(n)",
        "int8[2,2] wq = {1, 2, 3, 127}",
    )
    assert [op.inputs[1] for op in graph.ops if op.kind == "MatMul"] == ["wq", "wq"]


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
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,4,4,4] y)",
        DEPTHWISE,
        f"float[2] s = {{0.5, 0.25}}, uint8[2] z = {{{zeros}}}, int8[4,1,1,1] wq = {{1, 2, 3, 4}}, "
        "float[4] ws = {0.5, 1.0, 0.25, 0.5}, int8[4] wz = {0, 0, 0, 0}",
    )
    assert reasons(graph) == ([reason] if reason else [])
    assert [op.acc_scale for op in graph.ops if isinstance(op, Conv)] == ([scale] if scale else [])


def test_a_gemm_of_more_than_matrices_stays_float() -> None:
    """ONNX Runtime does not run it at all (found by a fuzzer: the channels of its result were on no axis)."""
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\nc = Gemm(a, w)\ny = B(c)",
        "int8[2,2] wq = {1, 2, 3, 4}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}",
    )
    assert [r for r in reasons(graph) if "dimensions" in r] == ["Gemm: it multiplies 4 dimensions"]


@pytest.mark.parametrize("attribute", ["output_padding = [1]", "output_shape = [5]", "output_shape = [1, 5, 5]"])
def test_lists_for_another_rank_stay_float(attribute: str) -> None:
    graph = lowered_net(
        "(float[1,1,4,4] x) => (float[N,C,H,W] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = ConvTranspose<{attribute}>(a, w)\ny = B(c)",
        "int8[1,1,2,2] wq = {1, 2, 3, 4}",
    )
    assert reasons(graph) == [f"ConvTranspose: its {attribute.split()[0]} is not for a weight of 4 dimensions"]


def test_a_kernel_that_is_not_the_weights_stays_float() -> None:
    """ONNX Runtime refuses it; the weight alone must not decide."""
    graph = lowered_net(
        "(float[1,1,4,4] x) => (float[1,1,2,2] y)",
        "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\nc = Conv<kernel_shape = [3, 3]>(a, w)\ny = B(c)",
        "int8[1,1,2,3] wq = {1, 2, 3, 4, 5, 6}",
    )
    assert reasons(graph) == ["Conv: its kernel_shape is [3, 3], but its weight's [2, 3]"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions_along_four_axes_stay_float(op: str) -> None:
    """ONNX Runtime runs them in float; integer ones end at three axes (found by a fuzzer: the reference refused it)."""
    graph = lowered_net(
        "(float[1,1,2,2,2,2] x) => (float[1,1,2,2,2,2] y)",
        f"a = A(x)\nw = DequantizeLinear(wq, ws, wz)\nc = {op}(a, w)\ny = B(c)",
        "int8[1,1,1,1,1,1] wq = {10}, float ws = {0.5}, int8 wz = {0}",
    )
    assert [r for r in reasons(graph) if "dimensions" in r] == [
        f"{op}: its weight has 6 dimensions: it moves along 4 axes, integer ones along three"
    ]


@pytest.mark.parametrize(
    ("axis", "product"),
    [
        (1, "Conv(a, w)"),  # each filter reads both channels
        (1, "ConvTranspose<group = 2>(a, v)"),
        (1, "Conv<group = 2>(a, u)"),  # a weight of run time
        (2, "Conv<group = 2>(a, v)"),
        (2, "MatMul(a, e)"),
    ],
)
def test_scales_of_channels_that_meet_stay_float(axis: int, product: str) -> None:
    """What is summed has several scales, or no scale of its own for each output channel."""
    graph = lowered_net(
        "(float[1,2,2,2] x, float[2,1,1,1] k) => (float[1,n,2,2] y)",
        f"q = QuantizeLinear<axis = {axis}>(x, s, z)\na = DequantizeLinear<axis = {axis}>(q, s, z)\n"
        "w = DequantizeLinear(wq, sD, zD)\nv = DequantizeLinear(vq, sD, zD)\ne = DequantizeLinear(eq, sD, zD)\n"
        f"u = D(k)\nc = {product}\ny = B(c)",
        "float[2] s = {0.5, 0.25}, uint8[2] z = {3, 3}, int8[2,2,1,1] wq = {1, 2, 3, 4}, int8[2,1,1,1] vq = {5, 6}, "
        "int8[2,2] eq = {1, 2, 3, 4}",
    )
    assert [op.op_type for op in graph.islands()] == [product.split("<")[0].split("(")[0]]


@pytest.mark.parametrize("line", ["n = Mul(m, v)", "n = Mul(v, m)", "n = Div(m, v)", "n = Div(k, m)", "n = Mul(m, g)"])
def test_what_is_no_positive_factor_of_a_product_is_none(line: str) -> None:
    """One number for each column of a product of activations, a product that divides, and a negative number."""
    agrees(
        net(
            "(float[3,4] x, float[4,2] u) => (float[3,2] y)",
            f"a = D(x)\nb = D(u)\nm = MatMul(a, b)\n{line}\ny = A(n)",
            "float[2] v = {0.125, 0.25}, float k = {64}, float g = {-0.125}",
        )
    )


@pytest.mark.parametrize(
    ("groups", "shape", "axis", "scales", "want"),
    [
        (2, "4,2,1,2", 1, "0.5, 0.25", (0.25, 0.125) * 2),  # the channels of every group
        (2, "2,2,1,2", 0, "0.5, 0.25", (0.25, 0.25, 0.125, 0.125)),  # the one input channel of each group
        (2, "2,1,1,4", 0, "0.5, 0.25", (0.25, 0.125)),
    ],
)
def test_scales_of_a_grouped_transposed_weight(
    groups: int, shape: str, axis: int, scales: str, want: tuple[float, ...]
) -> None:
    sizes = [int(n) for n in shape.split(",")]
    weight = ", ".join(str(7 * i % 31 - 15) for i in range(sizes[0] * sizes[1] * sizes[2] * sizes[3]))
    graph = agrees(
        net(
            f"(float[1,{sizes[0]},3,3] x) => (float[] y)",
            f"a = A(x)\nw = DequantizeLinear<axis = {axis}>(wq, ws, wz)\n"
            f"c = ConvTranspose<group = {groups}, strides = [2, 1]>(a, w, b)\ny = B(c)",
            f"int8[{shape}] wq = {{{weight}}}, float[2] ws = {{{scales}}}, int8[2] wz = {{0, 0}}, "
            f"float[{sizes[1] * groups}] b = {{{', '.join(['0.5', '-3.0', '8.0', '1.25'][: sizes[1] * groups])}}}",
        )
    )
    assert not reasons(graph)
    assert [op.acc_scale for op in graph.ops if isinstance(op, Conv)] == [want]


def test_scales_of_inputs_that_a_group_adds_stay_apart() -> None:
    """Two input channels of one group have their own scales: no accumulator has both as its unit."""
    graph = lowered_net(
        "(float[1,4,3,3] x) => (float[] y)",
        "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, ws, wz)\nc = ConvTranspose<group = 2>(a, w)\ny = B(c)",
        "int8[4,1,1,1] wq = {1, 2, 3, 4}, float[4] ws = {0.5, 0.25, 0.5, 1.0}, int8[4] wz = {0, 0, 0, 0}",
    )
    assert reasons(graph) == ["Add: the weight takes 16 bits: two products of 8 bits are added"]


@pytest.mark.parametrize("shape", ["float[1,3] x, int64[2] s", "float[1,3] x, int64[r] s"])
def test_channels_of_an_unrounded_product_need_its_rank(shape: str) -> None:
    """Scales per output channel lie along the last axis, and a reshape to computed sizes does not tell which it is."""
    graph = lowered_net(
        f"({shape}) => (float[] y)",
        "r = Reshape(x, s)\n" + WEIGHT.format(axis=1).replace("A(x)", "A(r)") + "y = MatMul(a, w)",
        DENSE,
    )
    known = "[2]" in shape
    wanted = [] if known else ["MatMul: how many dimensions its result has is not known"]
    assert [r for r in reasons(graph) if r.startswith("MatMul")] == wanted
    assert any(isinstance(op, MatMul) for op in graph.ops) == known


@pytest.mark.parametrize(
    ("scales", "weights"),
    [("0.5, 0.25, 1.2e-38", [[10, -20, 0]]), ("1.2e-38, 0.25, 0.5", [[0, -20, 30]]), ("0.5, 1.2e-38, 1.2e-38", None),
     ("1e-30, 1e-30, 1.2e-38", None)],
)  # fmt: skip
def test_channels_that_float32_holds_no_product_of_are_zeros(scales: str, weights: list[list[int]] | None) -> None:
    """Channels that training let die leave such scales; most are alive, or the product stays in float."""
    graph = agrees(
        net(
            "(float[3,1] x) => (float[3,3] y)",
            WEIGHT.format(axis=1) + "m = MatMul(a, w)\nh = Add(m, b)\ny = B(h)",
            f"int8[1,3] wq = {{10, -20, 30}}, float[3] ws = {{{scales}}}, int8[3] wz = {{0, 0, 0}}, "
            "float[3] b = {0.5, 4.0, 2.25}",
        )
    )
    products = [op for op in graph.ops if isinstance(op, MatMul)]
    assert len(products) == (weights is not None)
    for op in products:
        assert graph.constants[op.inputs[1]].tolist() == weights
        assert min(op.acc_scale) >= 0.125
