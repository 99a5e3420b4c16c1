"""Affine chains behind products fold into weight scales and bias, exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc.compiler.graph import Constant, QuantGraph
from qatc.compiler.passes.affine import fold_affine, scaled_weight
from qatc.compiler.quant import QuantParams
from tests.graphs import expect, net, stripped

# One weight of two output channels for each operator; its scales are 0.5 and 0.25.
CONV = "int8[2,1,1,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
DENSE = "int8[1,2] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
NORM = "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}"
WEIGHT = "w = DequantizeLinear<axis = {axis}>(wq, ws, wz)\n"
X4, Y4 = "(float[1,1,2,2] x) => (float[1,2,2,2] y)", "y = A(n)"
X2 = "(float[3,1] x) => (float[3,2] y)"


def after_fold(signature: str, body: str, constants: str, *, axis: int = 0) -> QuantGraph:
    graph = stripped(net(signature, WEIGHT.format(axis=axis) + body, constants))
    fold_affine(graph)
    return graph


# -- what folds -------------------------------------------------------------------------------------------------------
def test_batch_norm() -> None:
    """The channel whose gamma is negative gets negated integers."""
    graph = after_fold(
        X4, f"c = Conv(x, w)\nn = BatchNormalization<epsilon = 0.0>(c, g, b, m, v)\n{Y4}", f"{CONV}, {NORM}"
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,20}, wq_bias_folded:float32[2]{-0.5,0.25})
        output y
        """,
    )
    assert graph.params["wq_scaled"].scale == (0.5, 0.25)


POOLED = "c = Conv(x, w)\np = MaxPool<kernel_shape = [2, 2], pads = [1, 0, 0, 1]>(c)\n"
RISING = "float[2] g = {2.0, 0.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}"


def test_a_rising_batch_norm_behind_the_largest_of_positions() -> None:
    graph = after_fold(X4, f"{POOLED}n = BatchNormalization<epsilon = 0.0>(p, g, b, m, v)\n{Y4}", f"{CONV}, {RISING}")
    assert [n.op for n in graph.nodes] == ["Conv", "MaxPool"]
    assert graph.params["wq_scaled"].scale[0] == 0.5
    bias = graph.nodes[0].inputs[2]
    assert isinstance(bias, Constant)
    assert bias.values.tolist() == [-0.5, 0.25]
    assert graph.nodes[0].outputs[0].name not in graph.known


def test_a_batch_norm_that_falls_in_a_channel_stays_behind_the_largest_of_positions() -> None:
    """The largest of what falls is where the smallest was."""
    graph = after_fold(X4, f"{POOLED}n = BatchNormalization<epsilon = 0.0>(p, g, b, m, v)\n{Y4}", f"{CONV}, {NORM}")
    assert [n.op for n in graph.nodes] == ["Conv", "MaxPool", "BatchNormalization"]


def test_batch_norm_with_a_bias() -> None:
    graph = after_fold(
        X4,
        f"c = Conv(x, w, k)\nn = BatchNormalization<epsilon = 0.0>(c, g, b, m, v)\n{Y4}",
        f"{CONV}, {NORM}, float[2] k = {{1.0, 2.0}}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,20}, k_folded:float32[2]{0.5,-1.75})
        output y
        """,
    )


def test_mul_div_add_sub_and_neg_in_any_order() -> None:
    graph = after_fold(
        X4,
        f"""
        c = Conv(x, w)
        d = Mul(k, c)
        e = Sub(one, d)
        f = Div(e, k)
        h = Neg(f)
        i = Sub(h, k)
        n = Add(k, i)
        {Y4}
        """,
        f"{CONV}, float[1,2,1,1] k = {{2.0, 4.0}}, float one = {{1.0}}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,-20}, wq_bias_folded:float32[2]{-0.5,-0.25})
        output y
        """,
    )


def test_pytorch_conv_bn_cancels() -> None:
    """Conv -> Div(scale) -> Add(bias) -> BatchNormalization: what is divided by is multiplied again."""
    graph = after_fold(
        X4,
        f"""
        c = Conv(x, w)
        d = Div(c, k)
        n = BatchNormalization<epsilon = 0.0>(d, g, b, m, v)
        {Y4}
        """,
        f"{CONV}, {NORM}, float[1,2,1,1] k = {{1.0, -1.0}}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,-20}, wq_bias_folded:float32[2]{-0.5,0.25})
        output y
        """,
    )


def test_a_dead_gamma_takes_the_limit_and_says_so() -> None:
    """Conv -> Div(0) -> BatchNormalization(gamma = 0): 0/0 in the file, beta in the limit."""
    graph = after_fold(
        X4,
        f"c = Conv(x, w)\nd = Div(c, k)\nn = BatchNormalization<epsilon = 0.0>(d, g, b, m, v)\n{Y4}",
        f"{CONV}, float[1,2,1,1] k = {{0.0, 2.0}}, float[2] g = {{0.0, 2.0}}, float[2] b = {{0.5, 0.25}}, "
        "float[2] m = {1.0, 0.0}, float[2] v = {1.0, 1.0}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{0,-20}, wq_bias_folded:float32[2]{0.5,0.25})
        output y
        """,
    )
    assert [d.code for d in graph.diagnostics] == ["QAT210"]
    assert "1 of 2 channels" in str(graph.diagnostics.items[0])


def test_a_zero_factor_makes_a_constant_channel_without_a_word() -> None:
    graph = after_fold(X4, f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}", f"{CONV}, float[1,2,1,1] k = {{0.0, 2.0}}")
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.5 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{0,-20})
        output y
        """,
    )
    assert not graph.diagnostics.items


def test_minus_128_is_mirrored_onto_another_zero_point() -> None:
    graph = after_fold(
        X4,
        f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}",
        "int8[2,1,1,1] wq = {-128, -127}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, "
        "float[2,1,1] k = {-1.0, -1.0}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.25..0.5 zero -1..0 axis 0 x2>:int8[2, 1,
            1, 1]{127,127})
        output y
        """,
    )
    real = graph.params["wq_scaled"].dequantize(graph.nodes[0].inputs[1].values)  # type: ignore[union-attr]
    assert real.reshape(-1).tolist() == [64.0, 31.75]


def test_a_per_tensor_weight_is_spread_to_channels() -> None:
    graph = after_fold(
        X4,
        f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}",
        "int8[2,1,1,1] wq = {10, -20}, float ws = {0.5}, int8 wz = {3}, float[2,1,1] k = {2.0, -1.0}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.5..1 zero 3 axis 0 x2>:int8[2, 1, 1,
            1]{10,26})
        output y
        """,
    )


def test_one_factor_for_all_channels_keeps_one_scale() -> None:
    graph = after_fold(
        X4,
        f"c = Conv(x, w)\nn = Mul(c, k)\n{Y4}",
        "int8[2,1,1,1] wq = {10, -20}, float ws = {0.5}, int8 wz = {3}, float k = {2.0}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 1 zero 3>:int8[2, 1, 1, 1]{10,-20})
        output y
        """,
    )


def test_transposed_convolution() -> None:
    graph = after_fold(
        X4,
        f"c = ConvTranspose(x, w)\nn = Mul(c, k)\n{Y4}",
        "int8[1,2,1,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2,1,1] k = {2.0, -1.0}",
        axis=1,
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = ConvTranspose(x, wq_scaled<int8 scale 0.25..1 zero 0 axis 1 x2>:int8[1,
            2, 1, 1]{10,20})
        output y
        """,
    )


def test_matmul_keeps_its_bias_as_one_add() -> None:
    graph = after_fold(
        X2,
        "c = MatMul(x, w)\nd = Add(c, k)\ne = Mul(d, k)\nn = Add(e, k)\ny = A(n)",
        f"{DENSE}, float[2] k = {{2.0, -1.0}}",
        axis=1,
    )
    expect(
        graph,
        """
        input x
        c_product = MatMul(x, wq_scaled<int8 scale 0.25..1 zero 0 axis 1 x2>:int8[1, 2]{10,20})
        y<uint8 scale 0.5 zero 128> = Add(c_product, c_bias:float32[2]{6,0})
        output y
        """,
    )


def test_what_is_told_of_a_result_stays_told_of_it() -> None:
    """By how much the file's tensor is larger than the one that is rounded (LSQ+ learns such offsets)."""
    body = WEIGHT.format(axis=1) + "c = MatMul(x, w)\nd = Mul(c, k)\nn = Add(d, k)\ny = A(n)"
    graph = stripped(net(X2, body, f"{DENSE}, float[2] k = {{2.0, -1.0}}"))
    graph.shifted["y"] = ("shown", 0.125)
    fold_affine(graph)
    assert graph.shifted == {"y": ("shown", 0.125)}


def test_matmul_without_an_offset_keeps_no_add() -> None:
    graph = after_fold(X2, "c = MatMul(x, w)\nn = Mul(c, k)\ny = A(n)", f"{DENSE}, float[2] k = {{2.0, -1.0}}", axis=1)
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = MatMul(x, wq_scaled<int8 scale 0.25..1 zero 0 axis 1 x2>:int8[1,
            2]{10,20})
        output y
        """,
    )


def test_a_bias_alone_behind_a_matmul_stays_where_it_is() -> None:
    body, constants = "c = MatMul(x, w)\nn = Add(c, k)\ny = A(n)", f"{DENSE}, float[2] k = {{2.0, -1.0}}"
    graph = stripped(net(X2, WEIGHT.format(axis=1) + body, constants))
    before = graph.dump()
    fold_affine(graph)
    assert graph.dump() == before


@pytest.mark.parametrize(("bias", "value"), [("float[2]", "1.0, 2.0"), ("float[1,2]", "1.0, 2.0"), ("float", "3.0")])
def test_gemm_alpha_and_beta(bias: str, value: str) -> None:
    graph = after_fold(
        X2, "n = Gemm<alpha = -0.5, beta = 2.0>(x, w, k)\ny = A(n)", f"{DENSE}, {bias} k = {{{value}}}", axis=1
    )
    params, node = graph.params["wq_scaled"], graph.nodes[0]
    assert params.scale == (0.25, 0.125)
    assert node.inputs[1].values.tolist() == [[-10, 20]]  # type: ignore[union-attr]
    assert (node.attr("alpha"), node.attr("beta")) == (1.0, 1.0)
    assert node.inputs[2].values.reshape(-1).tolist() == [2 * float(v) for v in value.split(",")]  # type: ignore[union-attr]


def test_nothing_is_folded_into_a_bias_that_has_a_factor() -> None:
    """A weight with scales along the summed axis takes no alpha below zero; what was added was multiplied by beta."""
    body = """
        w = DequantizeLinear<axis = 0>(wq, ws, wz)
        n = Gemm<alpha = -1.0, beta = 0.0>(x, w, k)
        m = Mul(n, t)
        b = Add(m, k)
        y = A(b)
    """
    weight = "int8[2,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
    constants = f"{weight}, float[1] k = {{1.0}}, float t = {{2.0}}"
    graph = stripped(net("(float[3,2] x) => (float[3,1] y)", body, constants))
    fold_affine(graph)
    assert [n.op for n in graph.nodes] == ["Gemm", "Mul", "Add"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_gemm_whose_factor_is_no_number_stays(name: str, number: float) -> None:
    body = WEIGHT.format(axis=1) + "n = Gemm<alpha = 0.5, beta = 2.0>(x, w, k)\ny = A(n)"
    graph = stripped(net(X2, body, f"{DENSE}, float[2] k = {{1.0, 2.0}}"))
    node = next(n for n in graph.nodes if n.op == "Gemm")
    node.attrs[name] = number
    fold_affine(graph)
    assert node.attr(name) is number


def test_gemm_with_a_transposed_weight() -> None:
    graph = after_fold(
        X2,
        "c = Gemm<transB = 1>(x, w, k)\nn = Mul(c, k)\ny = A(n)",
        "int8[2,1] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2] k = {2.0, -1.0}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Gemm[transB=1](x, wq_scaled<int8 scale 0.25..1 zero 0 axis 0 x2>:int8[2,
            1]{10,20}, k_folded:float32[2]{4,1})
        output y
        """,
    )


def test_through_a_reshape_to_one_dimension_less() -> None:
    """PyTorch's BatchNorm1d behind Conv2d exports; the names of changed tensors are given up."""
    graph = after_fold(
        "(float[1,1,2,2] x) => (float[1,2,4] y)",
        "c = Conv(x, w)\nr = Reshape(c, s)\nn = BatchNormalization<epsilon = 0.0>(r, g, b, m, v)\ny = A(n)",
        f"{CONV}, {NORM}, int64[3] s = {{1, 2, 4}}",
    )
    expect(
        graph,
        """
        input x
        c_folded = Conv(x, wq_scaled<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1, 1]{10,20},
            wq_bias_folded:float32[2]{-0.5,0.25})
        y<uint8 scale 0.5 zero 128> = Reshape(c_folded, s:int64[3]{1,2,4})
        output y
        """,
    )


def test_batch_norm_behind_a_transposed_matmul() -> None:
    """BatchNorm1d over [N, C, T] of a Linear layer: the bias goes in front of the transposition."""
    graph = after_fold(
        "(float[1,3,1] x) => (float[1,2,3] y)",
        """
        c = MatMul(x, w)
        t = Transpose<perm = [0, 2, 1]>(c)
        n = BatchNormalization<epsilon = 0.0>(t, g, b, m, v)
        y = A(n)
        """,
        f"{DENSE}, {NORM}",
        axis=1,
    )
    expect(
        graph,
        """
        input x
        c_product = MatMul(x, wq_scaled<int8 scale 0.25..0.5 zero 0 axis 1 x2>:int8[1, 2]{10,20})
        c_folded = Add(c_product, c_bias:float32[2]{-0.5,0.25})
        y<uint8 scale 0.5 zero 128> = Transpose[perm=[0,2,1]](c_folded)
        output y
        """,
    )


def test_a_shared_weight_folds_differently_for_each_reader() -> None:
    graph = after_fold(
        "(float[1,1,2,2] x) => (float[1,2,2,2] y, float[1,2,2,2] z)",
        """
        c = Conv(x, w)
        d = Conv(x, w)
        e = Conv(x, w)
        n = Mul(c, k)
        o = Mul(d, l)
        y = A(n)
        p = Add(o, e)
        z = A(p)
        """,
        f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}, float[2,1,1] l = {{-2.0, 1.0}}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.75..1 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,-20})
        o = Conv(x, wq_scaled_1<int8 scale 0.25..1 zero 0 axis 0 x2>:int8[2, 1, 1, 1]{-10,-20})
        e = Conv(x, wq<int8 scale 0.25..0.5 zero 0 axis 0 x2>:int8[2, 1, 1, 1]{10,-20})
        z<uint8 scale 0.5 zero 128> = Add(o, e)
        output y
        output z
        """,
    )


def test_a_reader_of_the_shape_does_not_matter() -> None:
    graph = after_fold(
        "(float[1,1,2,2] x) => (float[1,2,2,2] y, int64[4] z)",
        "c = Conv(x, w)\nz = Shape(c)\nn = Mul(c, k)\ny = A(n)",
        f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}",
    )
    expect(
        graph,
        """
        input x
        y<uint8 scale 0.5 zero 128> = Conv(x, wq_scaled<int8 scale 0.75..1 zero 0 axis 0 x2>:int8[2, 1, 1,
            1]{10,-20})
        z = Shape(y)
        output y
        output z
        """,
    )


def test_up_to_a_graph_output() -> None:
    graph = after_fold(X4, "c = Conv(x, w)\ny = Mul(c, k)", f"{CONV}, float[2,1,1] k = {{2.0, 3.0}}")
    expect(
        graph,
        """
        input x
        y = Conv(x, wq_scaled<int8 scale 0.75..1 zero 0 axis 0 x2>:int8[2, 1, 1, 1]{10,-20})
        output y
        """,
    )


# -- the weight, as a property ----------------------------------------------------------------------------------------
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["int8", "uint8", "int4", "int16"]),
    st.booleans(),
    st.lists(st.sampled_from([1.0, -1.0, 0.0, 0.5, -2.0, 1e-3, -3.7]), min_size=3, max_size=3),
)
def test_scaled_weights_are_exact(seed: int, dtype: str, per_channel: bool, factors: list[float]) -> None:
    """What the new integers stand for is factor * what the old ones stood for; they move in sign or to zero alone."""
    rng = np.random.default_rng(seed)
    narrow = bool(rng.integers(2))
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "int16": (-32768, 32767)}[dtype]
    low += narrow
    integers = rng.integers(low, high + 1, (2, 3)).astype({"int4": "int8"}.get(dtype, dtype))
    count = 3 if per_channel else 1
    scale, zero = tuple(2.0 ** rng.integers(-9, 3, count)), tuple(int(z) for z in rng.integers(low, high + 1, count))
    params = QuantParams(scale, zero, dtype, 1 if per_channel else None, low, high)
    found = scaled_weight(integers, params, 1, np.asarray(factors))
    assert found is not None
    changed, new = found
    assert new.dtype == dtype
    assert new.qmin <= changed.min() <= changed.max() <= new.qmax
    want = params.dequantize(integers).astype(np.float64) * factors
    np.testing.assert_allclose(new.dequantize(changed), want, rtol=1e-6, atol=0)
    new.check_shape(changed.shape)
