"""Convolutions and matrix products against ONNX Runtime, and plain Python where that is no witness."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES, ort_weight_scales
from qatc.compiler.integer import (
    MatMul,
    raw_accumulator,
)
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference.accumulate import matmul
from tests.compiler.reference.nets import EXACT, MS, Net, conv_op, integers, random_params, related

# -- convolutions -----------------------------------------------------------------------------------------------------
CONVS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    # name: input shape, weight shape, attributes
    "pointwise": ((2, 12, 9, 7), (10, 12, 1, 1), {}),
    "square": ((1, 8, 13, 11), (6, 8, 3, 3), {"pads": (1, 1, 1, 1)}),
    "stem": ((1, 3, 32, 32), (16, 3, 7, 7), {"pads": (3, 3, 3, 3), "strides": (2, 2)}),
    "uneven": ((2, 4, 10, 9), (5, 4, 3, 2), {"pads": (0, 1, 2, 0), "strides": (2, 1)}),
    "dilated": ((1, 4, 14, 14), (8, 4, 3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
    "depthwise": ((2, 16, 12, 12), (16, 1, 3, 3), {"pads": (1, 1, 1, 1), "groups": 16}),
    "depthwise stride": ((1, 32, 15, 15), (32, 1, 5, 5), {"pads": (2, 2, 2, 2), "strides": (2, 2), "groups": 32}),
    "multiplier": ((1, 4, 9, 9), (12, 1, 3, 3), {"groups": 4}),
    "grouped": ((2, 8, 9, 9), (12, 2, 3, 3), {"pads": (1, 1, 1, 1), "groups": 4}),
    "one axis": ((2, 6, 40), (7, 6, 5), {"pads": (2, 2), "strides": (2,)}),
    "one axis depthwise": ((2, 6, 40), (6, 1, 5), {"pads": (2, 2), "groups": 6}),
    "three axes": ((1, 3, 6, 7, 8), (4, 3, 2, 3, 2), {"pads": (1, 1, 0, 0, 1, 1)}),
    "fully connected": ((3, 16, 1, 1), (10, 16, 1, 1), {}),
}


def onnx_conv_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {("group" if k == "groups" else k): v for k, v in attrs.items()}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("kind", ["uint8 per channel", "int8 per channel", "uint8 per tensor"])
def test_conv_is_qlinearconv_bit_for_bit(run_op, exact_runtime, case, kind):
    x_shape, w_shape, attrs = CONVS[case]
    rng = np.random.default_rng([len(case), len(kind)])
    dtype, per_channel = kind.split()[0], kind.endswith("channel")
    for trial in range(3):
        x_params, out = random_params(rng, dtype), random_params(rng, dtype, 0.5, 4.0)
        channels = w_shape[0] if per_channel else 1
        w_scales = rng.uniform(0.001, 0.02, channels).astype(np.float32)
        if trial == 2:  # ties
            w_scales[:] = related(out.scale[0], 1) / x_params.scale[0]
        w_params = (
            QuantParams.per_channel(w_scales, 0) if per_channel else QuantParams.per_tensor(w_scales[0], 0, "int8")
        )
        x, w = integers(rng, dtype, x_shape), integers(rng, "int8", w_shape)
        bias = rng.integers(-30000, 30000, w_shape[0]).astype(np.int32) if trial else None
        lo, hi = (out.qmin, out.qmax) if trial < 2 else (max(out.zero_point[0] - 5, out.qmin), out.qmax - 3)
        acc_scale = tuple(x_params.scale[0] * s for s in w_params.scale) * (1 if per_channel else w_shape[0])
        net = Net()
        names = [net.feed("x", x, x_params), net.constant("w", w, w_params)]
        names += [] if bias is None else [net.constant("b", bias)]
        net.out("y", out)
        net.add(conv_op("c", tuple(names), len(x_shape) - 2, attrs, acc_scale=acc_scale, lo=lo, hi=hi))
        y_scale, y_zero = np.float32(out.scale[0]), np.dtype(dtype).type(out.zero_point[0])
        x_zero = np.dtype(dtype).type(x_params.zero_point[0])
        weight_scales = ort_weight_scales(acc_scale, x_params.scale[0]) if per_channel else w_scales[0]
        w_zero = np.zeros(w_shape[0], np.int8) if per_channel else np.int8(0)
        (expected,) = run_op(
            "QLinearConv",
            [x, np.float32(x_params.scale[0]), x_zero, w, weight_scales, w_zero, y_scale, y_zero, bias],
            [dtype],
            onnx_conv_attrs(attrs),
        )
        np.testing.assert_array_equal(net.run()["y"], expected.clip(lo, hi))


def test_a_folded_factor_keeps_conv_bit_exact(run_op, exact_runtime):
    rng = np.random.default_rng(5)
    x_params, out = random_params(rng, "uint8"), random_params(rng, "uint8", 0.5, 1.0)
    x, w = integers(rng, "uint8", (1, 16, 20, 20)), integers(rng, "int8", (64, 16, 3, 3))
    acc_scale = tuple(rng.uniform(1e-5, 1e-3, 64).tolist())  # no product of two float32
    net = Net()
    net.add(
        conv_op(
            "c",
            (net.feed("x", x, x_params), net.constant("w", w, QuantParams.per_channel([0.01] * 64, 0))),
            2,
            {},
            acc_scale=acc_scale,
            lo=0,
            hi=255,
        )
    )
    net.out("y", out)
    scales = ort_weight_scales(acc_scale, x_params.scale[0])
    zero, y_zero = np.uint8(x_params.zero_point[0]), np.uint8(out.zero_point[0])
    inputs = [
        x,
        np.float32(x_params.scale[0]),
        zero,
        w,
        scales,
        np.zeros(64, np.int8),
        np.float32(out.scale[0]),
        y_zero,
    ]
    (expected,) = run_op("QLinearConv", inputs, [np.uint8])
    np.testing.assert_array_equal(net.run()["y"], expected)


@pytest.mark.parametrize("case", ["square", "grouped", "depthwise", "one axis", "three axes"])
def test_a_raw_conv_is_convinteger(run_op, exact_runtime, case):
    x_shape, w_shape, attrs = CONVS[case]
    rng = np.random.default_rng(3)
    x_params = random_params(rng, "uint8")
    x, w = integers(rng, "uint8", x_shape), integers(rng, "int8", w_shape)
    w_params = QuantParams.per_channel(rng.uniform(0.01, 0.02, w_shape[0]), 0)
    acc_scale = tuple(x_params.scale[0] * s for s in w_params.scale)
    net = Net()
    names = (net.feed("x", x, x_params), net.constant("w", w, w_params))
    net.out("y", raw_accumulator(acc_scale, 1))
    net.add(conv_op("c", names, len(x_shape) - 2, attrs, acc_scale=acc_scale, lo=-(2**31), hi=2**31 - 1))
    # As uint8, which means the same (rule 7): releases up to 1.20 have no kernel for int8 weights.
    inputs = [x, w.view(np.uint8) ^ 128, np.uint8(x_params.zero_point[0]), np.uint8(128)]
    (expected,) = run_op("ConvInteger", inputs, [np.int32], onnx_conv_attrs(attrs))
    for profile in PROFILES.values():
        np.testing.assert_array_equal(net.run(profile)["y"], expected)


TRANSPOSED: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "upsample": ((2, 6, 5, 7), (6, 4, 2, 2), {"strides": (2, 2)}),
    "overlap": ((1, 6, 5, 7), (6, 4, 4, 3), {"strides": (2, 1), "pads": (1, 0, 1, 2)}),
    "output padding": ((1, 4, 6, 6), (4, 3, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    "grouped": ((2, 6, 5, 5), (6, 2, 3, 3), {"groups": 3, "dilations": (2, 1)}),
    "depthwise": ((1, 5, 6, 6), (5, 1, 4, 4), {"groups": 5, "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "one axis": ((2, 3, 9), (3, 5, 4), {"strides": (3,), "output_padding": (2,)}),
    "three axes": ((1, 2, 3, 4, 3), (2, 3, 2, 2, 3), {"strides": (2, 1, 2)}),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_conv_is_convtranspose_of_the_integers(run_op, case):
    x_shape, w_shape, attrs = TRANSPOSED[case]
    rng = np.random.default_rng(4)
    x_params = random_params(rng, "int8")
    x, w = integers(rng, "int8", x_shape), integers(rng, "int8", w_shape)
    channels = w_shape[1] * attrs.get("groups", 1)
    w_params = QuantParams.per_tensor(0.01, 3, "int8")
    acc_scale = tuple(rng.uniform(1e-4, 1e-3, channels).tolist())
    bias = rng.integers(-1000, 1000, channels).astype(np.int32)
    net = Net()
    names = (net.feed("x", x, x_params), net.constant("w", w, w_params), net.constant("b", bias))
    net.out("y", QuantParams.per_tensor(1e-4, 0, "int16"))
    net.add(
        conv_op("c", names, len(x_shape) - 2, attrs, transposed=True, acc_scale=acc_scale, lo=-(2**15), hi=2**15 - 1)
    )
    centered = (x.astype(np.float32) - x_params.zero_point[0], w.astype(np.float32) - 3)
    inputs = [*centered, bias.astype(np.float32)]
    (acc,) = run_op("ConvTranspose", inputs, [np.float32], onnx_conv_attrs(attrs))  # exact: small integers
    expected = EXACT.requantize(acc.astype(np.int64), acc_scale, net.graph.params("y"), -(2**15), 2**15 - 1, 1)
    np.testing.assert_array_equal(net.run(EXACT)["y"], expected)


def naive_conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Valid 2-D convolution in Python integers."""
    (_, channels, height, width), (filters, _, kh, kw) = x.shape, w.shape
    acc = np.empty((filters, height - kh + 1, width - kw + 1), object)
    for m, i, j in np.ndindex(acc.shape):
        window = itertools.product(range(channels), range(kh), range(kw))
        acc[m, i, j] = sum(int(x[0, c, i + a, j + b]) * int(w[m, c, a, b]) for c, a, b in window)
    return acc


@pytest.mark.parametrize(
    ("x_dtype", "x_value", "w_dtype", "w_value"),
    [
        ("uint8", 255, "int8", -128),  # float32 is exact
        ("uint8", 255, "int16", 3001),  # float32 would round
        ("uint16", 65535, "int8", 127),  # float64, just within int32 or not
        ("uint16", 65535, "int16", -32768),  # wraps
    ],
)
def test_extreme_sums_are_exact_and_wrap_as_hardware_does(x_dtype, x_value, w_dtype, w_value):
    rng = np.random.default_rng(1)
    x = np.where(rng.random((1, 32, 3, 4)) < 0.9, x_value, integers(rng, x_dtype, (1, 32, 3, 4))).astype(x_dtype)
    w = np.where(rng.random((2, 32, 3, 3)) < 0.9, w_value, integers(rng, w_dtype, (2, 32, 3, 3))).astype(w_dtype)
    acc_scale = (1e-9, 2e-9)
    net = Net()
    params = (QuantParams.per_tensor(0.1, 0, x_dtype), QuantParams.per_tensor(0.1, 0, w_dtype))
    names = (net.feed("x", x, params[0]), net.constant("w", w, params[1]))
    net.out("y", raw_accumulator(acc_scale, 1))
    net.add(conv_op("c", names, 2, {}, acc_scale=acc_scale, lo=-(2**31), hi=2**31 - 1))
    true = naive_conv(x, w)
    wrapped = (true + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(net.run()["y"][0], wrapped.astype(np.int64))
    assert bool((true != wrapped).any()) == (w_value == -32768)


def test_a_bias_can_overflow_too():
    net = Net()
    x = np.full((1, 1, 1, 2), 200, np.uint8)
    names = (
        net.feed("x", x, QuantParams.per_tensor(0.1)),
        net.constant("w", np.full((1, 1, 1, 1), 100, np.int8), QuantParams.per_tensor(0.1, 0, "int8")),
        net.constant("b", np.array([2**31 - 1], np.int32)),
    )
    net.out("y", QuantParams.per_tensor(1.0, 0, "int8"))
    net.add(conv_op("c", names, 2, {}, acc_scale=(0.01,), lo=-128, hi=127))
    assert net.run()["y"].tolist() == [[[[-128, -128]]]]


def test_a_sum_just_beyond_32_bits_wraps_however_long_it_is():
    """The sum of so many weights is 0.2 % short in float32: the bound of the accumulators was, too."""
    depth, x, w = 212_700, 100, 101
    a, b = np.full((1, depth), x, np.uint8), np.full((depth, 2), w, np.int8)
    acc = matmul(a, QuantParams.per_tensor(1.0), b, QuantParams.per_tensor(1.0, 0, "int8"), None)
    assert 2**31 < depth * x * w < 2**31 * 1.001
    assert acc.tolist() == [[depth * x * w - 2**32] * 2]


def test_weight_zero_points_per_channel():
    rng = np.random.default_rng(2)
    x, w = integers(rng, "uint8", (1, 3, 5, 5)), integers(rng, "uint8", (4, 3, 2, 2))
    zeros = np.array([0, 7, 128, 255])
    net = Net()
    params = QuantParams.per_channel([0.1] * 4, 0, zeros, "uint8")
    names = (net.feed("x", x, QuantParams.per_tensor(0.1, 9)), net.constant("w", w, params))
    net.out("y", raw_accumulator((0.01,) * 4, 1))
    net.add(conv_op("c", names, 2, {}, acc_scale=(0.01,) * 4, lo=-(2**31), hi=2**31 - 1))
    expected = naive_conv(x.astype(np.int64) - 9, w.astype(np.int64) - zeros.reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(net.run()["y"][0], expected.astype(np.int64))


def test_unrolled_input_is_bounded(monkeypatch):
    from qatc.compiler.reference import accumulate

    x_shape, w_shape, attrs = CONVS["uneven"]
    rng = np.random.default_rng(0)
    net = Net()
    names = (
        net.feed("x", integers(rng, "uint8", x_shape), QuantParams.per_tensor(0.1, 3)),
        net.constant("w", integers(rng, "int8", w_shape), QuantParams.per_tensor(0.1, 0, "int8")),
    )
    net.out("y", raw_accumulator((0.01,) * 5, 1))
    net.add(conv_op("c", names, 2, attrs, acc_scale=(0.01,) * 5, lo=-(2**31), hi=2**31 - 1))
    whole = net.run()["y"]
    for limit in (1, 300, 700, 5000):
        monkeypatch.setattr(accumulate, "_PATCHES", limit)
        np.testing.assert_array_equal(net.run()["y"], whole)


@settings(max_examples=60)
@given(st.data())
def test_any_conv_is_its_definition(data):
    draw = data.draw
    groups = draw(st.integers(1, 3))
    per_group, filters = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    dilations = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    size = tuple((k - 1) * d + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilations, strict=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, w = integers(rng, "uint8", (2, groups * per_group, *size)), integers(rng, "int8", (filters, per_group, *kernel))
    net = Net()
    names = (
        net.feed("x", x, QuantParams.per_tensor(0.1, 100)),
        net.constant("w", w, QuantParams.per_tensor(0.1, 0, "int8")),
    )
    net.out("y", raw_accumulator((0.01,) * filters, 1))
    attrs = {"strides": strides, "dilations": dilations, "pads": pads, "groups": groups}
    net.add(conv_op("c", names, 2, attrs, acc_scale=(0.01,) * filters, lo=-(2**31), hi=2**31 - 1))
    result = net.run()["y"]
    padded = np.pad(x.astype(np.int64) - 100, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    for n, m, i, j in np.ndindex(result.shape):
        start = m // (filters // groups) * per_group
        rows, columns = (np.arange(k) * d for k, d in zip(kernel, dilations, strict=True))
        window = padded[n, start : start + per_group][:, i * strides[0] + rows][:, :, j * strides[1] + columns]
        assert result[n, m, i, j] == (window * w[m]).sum()


# -- matrix products --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(7, 33), (2, 3, 5, 33), (1, 33)])
def test_matmul_is_qlinearmatmul_and_qgemm_bit_for_bit(run_op, exact_runtime, dtype, per_channel, shape):
    rng = np.random.default_rng(len(shape))
    a_params, out = random_params(rng, dtype), random_params(rng, dtype, 0.2, 1.0)
    a, b = integers(rng, dtype, shape), integers(rng, "int8", (33, 19))
    scales = rng.uniform(0.001, 0.02, 19 if per_channel else 1)
    b_params = QuantParams.per_channel(scales, 1) if per_channel else QuantParams.per_tensor(scales[0], 0, "int8")
    bias = rng.integers(-9000, 9000, 19).astype(np.int32)
    acc_scale = tuple(a_params.scale[0] * s for s in b_params.scale)
    factor = ort_weight_scales(acc_scale, a_params.scale[0])
    b_scale, b_zero = (factor, np.zeros(19, np.int8)) if per_channel else (factor[0], np.int8(0))
    zero, y_zero = np.dtype(dtype).type(a_params.zero_point[0]), np.dtype(dtype).type(out.zero_point[0])
    left, right = [a, np.float32(a_params.scale[0]), zero], [b, b_scale, b_zero]
    for with_bias in (False, True):
        net = Net()
        names = [net.feed("a", a, a_params), net.constant("b", b, b_params)]
        names += [net.constant("bias", bias)] if with_bias else []
        net.out("y", out)
        net.add(MatMul("m", tuple(names), ("y",), acc_scale=acc_scale, lo=out.qmin, hi=out.qmax))
        result = net.run()["y"]
        if not with_bias:
            (expected,) = run_op("QLinearMatMul", [*left, *right, np.float32(out.scale[0]), y_zero], [dtype], opset=17)
            np.testing.assert_array_equal(result, expected)
        if len(shape) == 2:
            inputs = [*left, *right, bias if with_bias else None, np.float32(out.scale[0]), y_zero]
            (expected,) = run_op("QGemm", inputs, [dtype], domain=MS)
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_product_of_activations_is_bit_exact(run_op, exact_runtime, dtype):
    rng = np.random.default_rng(9)
    a_params, b_params, out = (random_params(rng, dtype) for _ in range(3))
    a, b = integers(rng, dtype, (2, 3, 6, 16)), integers(rng, dtype, (2, 3, 16, 5))
    net = Net()
    names = (net.feed("a", a, a_params), net.feed("b", b, b_params))
    net.out("y", out)
    acc_scale = (a_params.scale[0] * b_params.scale[0],)
    net.add(MatMul("m", names, ("y",), acc_scale=acc_scale, lo=out.qmin, hi=out.qmax))
    kind = np.dtype(dtype).type
    sides = [(q, np.float32(p.scale[0]), kind(p.zero_point[0])) for q, p in ((a, a_params), (b, b_params))]
    inputs = [*sides[0], *sides[1], np.float32(out.scale[0]), kind(out.zero_point[0])]
    (expected,) = run_op("QLinearMatMul", inputs, [dtype], fed=(0, 3), opset=17)
    np.testing.assert_array_equal(net.run()["y"], expected)
    raw = Net()
    names = (raw.feed("a", a, a_params), raw.feed("b", b, b_params))
    raw.out("y", raw_accumulator(acc_scale, 3))
    raw.add(MatMul("m", names, ("y",), acc_scale=acc_scale, lo=-(2**31), hi=2**31 - 1))
    if dtype == "uint8":
        inputs = [a, b, kind(a_params.zero_point[0]), kind(b_params.zero_point[0])]
        (expected,) = run_op("MatMulInteger", inputs, [np.int32], fed=(0, 1))
        np.testing.assert_array_equal(raw.run()["y"], expected)
