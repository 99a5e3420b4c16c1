"""The bias of an integer product, on the grid of its accumulator: a finer or a coarser one where that is needed."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.integer import Conv, MatMul
from qatc.compiler.lowering import lower
from qatc.compiler.shapes import infer_shapes
from tests.agreeing import lowered_net
from tests.graphs import net, stripped

DENSE = "int8[1,2] wq = {10, -20}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}"
WEIGHT = "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\n"
X2 = "(float[3,1] x) => (float[3,2] y)"


def test_few_bits_are_refined_for_an_exact_bias() -> None:
    """int4 integers times 15 and a scale divided by 15: the same weight, but the bias is rounded 15 times finer."""
    graph = lowered_net(
        X2,
        WEIGHT + "m = MatMul(a, w)\nn = Add(m, b)\ny = A(n)",
        "int8[1,2] wq = {8, -7}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2] b = {0.1, 0.3}",
    )
    assert graph.constants["wq"].tolist() == [[120, -105]]
    assert graph.params("wq").scale == pytest.approx((0.5 / 15, 0.25 / 15))


@pytest.mark.parametrize("weights", ["127, 0", "8, 0"])
def test_a_channel_without_weight_takes_the_scale_of_its_bias(weights: str) -> None:
    """Dead channels, with the scale 1 that exporters write there: their bias was rounded by as much as steps of 32."""
    graph = lowered_net(
        X2,
        WEIGHT + "m = MatMul(a, w)\nn = Add(m, b)\ny = A(n)",
        f"int8[1,2] wq = {{{weights}}}, float[2] ws = {{0.01, 64.0}}, int8[2] wz = {{0, 0}}, float[2] b = {{0.1, 9.7}}",
    )
    (product,) = [op for op in graph.ops if isinstance(op, MatMul)]
    bias = graph.constants[product.inputs[2]] * np.asarray(product.acc_scale)
    assert np.abs(bias - [0.1, 9.7]).max() <= 0.5 * 2**-8  # output steps of 0.5
    assert graph.params("wq").scale[0] == pytest.approx(0.01 / (127 // int(weights.split(",")[0])))


def test_a_bias_between_coarse_steps_gets_a_unit_for_each_channel_and_else_is_said_with_its_cost() -> None:
    """Depthwise weights with one scale for all: a unit is four output steps, and a channel of small ones has room."""
    text = net(
        "(float[1,2,1,2] x) => (float[1,2,1,2] y)",
        "a = A(x)\nw = DequantizeLinear(wq, ws, wz)\nm = Conv<group = 2>(a, w, b)\ny = A(m)",
        "int8[2,1,1,1] wq = {7, 127}, float ws = {4.0}, int8 wz = {0}, float[2] b = {0.8, 20.9}",
    )
    graph = stripped(text)
    infer_shapes(graph)
    result = lower(graph)
    result.verify()
    (conv,) = [op for op in result.ops if isinstance(op, Conv)]
    assert result.constants[conv.inputs[1]].reshape(-1).tolist() == [7 * 18, 127]
    assert conv.acc_scale == pytest.approx((2 / 18, 2.0))
    assert result.constants[conv.inputs[2]].tolist() == [7, 10]
    (said,) = graph.diagnostics
    assert said.code == "QAT303"
    assert "1 of 2 channels is rounded" in said.message
    assert "up to 1.8 output LSB" in said.message


def test_a_bias_beyond_32_bits_is_said_with_its_cost() -> None:
    graph = stripped(
        net(
            X2,
            WEIGHT + "m = MatMul(a, w)\nn = Add(m, b)\ny = A(n)",
            "int8[1,2] wq = {8, -7}, float[2] ws = {1e-9, 0.25}, int8[2] wz = {0, 0}, float[2] b = {100.0, 0.0}",
        )
    )
    result = lower(graph)
    result.verify()
    assert [d.code for d in graph.diagnostics] == ["QAT303"]
    assert "1 of 2 channels" in str(graph.diagnostics.items[0])
    bias = result.constants["y_bias"]
    scale = next(op.acc_scale for op in result.ops if op.kind == "MatMul")  # type: ignore[attr-defined]
    assert bias[0] * scale[0] == pytest.approx(100.0)


@pytest.mark.parametrize("scale", [1e-7, 1e-9])
def test_a_bias_and_the_widest_sum_fit_32_bits_together(scale: float) -> None:
    """The unit leaves room for 255 times every weight beside the bias, and what rounding the weight costs is said."""
    weight, bias = ", ".join(["127"] * 64), scale * 2**31 / 4
    graph = stripped(
        net(
            "(float[1,64] x) => (float[1,1] y)",
            "a = B(x)\nw = DequantizeLinear(wq, ws, wz)\nm = MatMul(a, w)\nn = Add(m, b)\ny = B(n)",
            f"int8[64,1] wq = {{{weight}}}, float ws = {{{scale}}}, int8 wz = {{0}}, float[1] b = {{{bias}}}",
        )
    )
    result = lower(graph)
    (product,) = [op for op in result.ops if isinstance(op, MatMul)]
    values, (stored,) = result.constants[product.inputs[1]], result.constants[product.inputs[2]]
    assert 0 < 255 * int(np.abs(values.astype(np.int64)).sum()) + int(stored) < 2**31
    assert stored * product.acc_scale[0] == pytest.approx(bias, rel=1e-6)
    (found,) = graph.diagnostics.items
    exact = 127 * scale * 0.25 / product.acc_scale[0]
    lost = 64 * 255 * abs(round(exact) - exact) * product.acc_scale[0] / 0.25
    assert f"costs at most {lost:.3g} output LSB" in found.message


@pytest.mark.parametrize("scales", ["1e-7", "1e-7, 2e-7, 3e-7"])
@pytest.mark.parametrize("zero", [0, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_coarser_grid_holds_the_nearest_weights(scales: str, zero: int, *, transposed: bool) -> None:
    """Only the channel whose bias is too large changes: its integers are the nearest on the grid that has room."""
    integers = np.random.default_rng(0).integers(-100, 100, (4, 3))
    stored = (integers.T if transposed else integers).reshape(-1).tolist()
    count = scales.count(",") + 1
    axis = f"<axis = {0 if transposed else 1}>" if count > 1 else ""
    vector = f"[{count}]" if count > 1 else ""
    text = net(
        "(float[1,4] x) => (float[1,3] y)",
        f"a = A(x)\nw = DequantizeLinear{axis}(wq, ws, wz)\ng = Gemm<transB = {int(transposed)}>(a, w, b)\ny = A(g)",
        f"int8[{'3,4' if transposed else '4,3'}] wq = {{{', '.join(map(str, stored))}}}, float[3] b = {{200, 0, 1}}, "
        f"float{vector} ws = {{{scales}}}, int8{vector} wz = {{{', '.join([str(zero)] * count)}}}",
    )
    graph = stripped(text)
    result = lower(graph)
    result.verify()
    (product,) = [op for op in result.ops if isinstance(op, MatMul)]
    values, params = result.constants[product.inputs[1]], result.params(product.inputs[1])
    was = np.broadcast_to(np.asarray([float(s) for s in scales.split(",")], np.float32), 3)
    scale = np.broadcast_to(np.asarray(params.scale), 3)
    assert scale[0] > 1.5 * was[0]
    np.testing.assert_array_equal(scale[1:], was[1:])
    np.testing.assert_array_equal(values[:, 1:], integers[:, 1:])
    centered = values - params.zero_array(2)
    np.testing.assert_array_equal(centered[:, 0], np.rint((integers[:, 0] - zero) * (was[0] / scale[0])))


def test_the_groups_of_a_transposed_convolution_share_the_room_for_a_bias() -> None:
    """Output channel 0 of both groups has the same weights' scale: the fuller group decides."""
    weight = ", ".join(["127"] * 36 + ["1"] * 36)
    graph = stripped(
        net(
            "(float[1,8,3,3] x) => (float[1,2,5,5] y)",
            "a = B(x)\nw = DequantizeLinear(wq, ws, wz)\nc = ConvTranspose<group = 2>(a, w, b)\ny = B(c)",
            f"int8[8,1,3,3] wq = {{{weight}}}, float ws = {{1e-7}}, int8 wz = {{0}}, float[2] b = {{53.685, 53.685}}",
        )
    )
    result = lower(graph)
    (conv,) = [op for op in result.ops if isinstance(op, Conv)]
    values = result.constants[conv.inputs[1]].astype(np.int64)
    fullest = int(np.abs(values).reshape(2, -1).sum(axis=1).max())
    assert int(result.constants[conv.inputs[2]].max()) + 255 * fullest < 2**31


def test_scales_too_small_for_an_accumulator_stay_float() -> None:
    graph = lowered_net(
        X2,
        WEIGHT + "m = MatMul(a, w)\ny = A(m)",
        "int8[1,2] wq = {10, -20}, float[2] ws = {1.5e-38, 1.25e-38}, int8[2] wz = {0, 0}",
    )
    assert [op.op_type for op in graph.islands()] == ["MatMul"]


@pytest.mark.parametrize("transposed", [False, True])
def test_alpha_beta_and_a_factor_behind_scale_the_bias_as_they_should(*, transposed: bool) -> None:
    """Also where no pass has folded them before: 2 * (0.5 * x W + 4 * b), 2 * (x W + b)."""
    if transposed:
        text = net(
            "(float[1,4,2,2] x) => (float[1,2,2,2] y)",
            "a = A(x)\nw = DequantizeLinear(wq, ws, wz)\n"
            "c = ConvTranspose<group = 2>(a, w, b)\nm = Mul(c, k)\ny = A(m)",
            "int8[4,1,1,1] wq = {10, -20, 30, 7}, float ws = {0.5}, int8 wz = {0}, float[2] b = {8.0, 16.0}, "
            "float k = {2.0}",
        )
        unit, bias = 0.5, [16.0, 32.0]
    else:
        text = net(
            X2,
            WEIGHT + "g = Gemm<alpha = 0.5, beta = 4.0>(a, w, b)\nm = Mul(g, k)\ny = A(m)",
            DENSE + ", float[2] b = {8.0, 16.0}, float k = {2.0}",
        )
        unit, bias = 0.25, [64.0, 128.0]
    graph = stripped(text)
    infer_shapes(graph)
    result = lower(graph)
    (product,) = [op for op in result.ops if isinstance(op, (Conv, MatMul))]
    assert product.acc_scale[0] == pytest.approx(unit)
    real = result.constants[product.inputs[2]] * np.broadcast_to(product.acc_scale, 2)
    assert real.tolist() == bias


@pytest.mark.parametrize(
    "bias", ["float c = {0.5}", "float[1] c = {0.5}", "float[1,1] c = {0.5}", "float[3] c = {1, 2, 3}"]
)
@pytest.mark.parametrize("end", ["y = D(g)", "y = Identity(g)"])
def test_a_product_of_two_activations_and_a_bias_stay_float(bias: str, end: str) -> None:
    graph = lowered_net(
        "(float[3,2] x, float[2,3] u) => (float[3,3] y)", f"a = A(x)\nb = B(u)\ng = Gemm(a, b, c)\n{end}", bias
    )
    assert [op.reason for op in graph.islands()] == ["it adds a bias to a product of two activations"]


def test_a_product_of_two_activations_and_a_bias_of_zeros_are_one_operator() -> None:
    graph = lowered_net(
        "(float[3,2] x, float[2,3] u) => (float[3,3] y)",
        "a = A(x)\nb = B(u)\ng = Gemm(a, b, c)\ny = D(g)",
        "float[3] c = {0.0, 0.0, 0.0}",
    )
    assert [op.kind for op in graph.ops] == ["Quantize", "Quantize", "MatMul", "Dequantize"]
