"""The reference executor against ONNX Runtime, operator by operator, and plain Python where that is no witness."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import PROFILES, ort_weight_scales
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    IntegerGraph,
    Lookup,
    MatMul,
    Move,
    Op,
    Pool,
    Quantize,
    Rescale,
    Tensor,
    integer_tensor,
    raw_accumulator,
)
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference import Overflow, evaluate_onnx, execute
from qatc.compiler.reference.resize import resize_nearest

ONNX, EXACT = PROFILES["onnx"], PROFILES["exact"]
MS = "com.microsoft"


# -- small graphs -----------------------------------------------------------------------------------------------
class Net:
    """A graph of a few operators, built by hand."""

    def __init__(self) -> None:
        self.graph = IntegerGraph("net", [], [], [], {}, {}, 21)
        self.feeds: dict[str, np.ndarray] = {}

    def feed(self, name: str, value: np.ndarray, params: QuantParams | None = None) -> str:
        self.graph.inputs.append(name)
        self.graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        self.feeds[name] = value
        return name

    def constant(self, name: str, value: np.ndarray, params: QuantParams | None = None) -> str:
        self.graph.constants[name] = value
        self.graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        return name

    def out(self, name: str, params: QuantParams | None = None, dtype: str = "float32") -> str:
        self.graph.tensors[name] = integer_tensor(name, params) if params else Tensor(name, dtype)
        self.graph.outputs = [name]
        return name

    def add(self, op: Op) -> None:
        self.graph.ops.append(op)

    def run(self, profile=ONNX, **options: Any) -> dict[str, np.ndarray]:
        self.graph.verify()
        return execute(self.graph, self.feeds, profile, **options)


def random_params(rng: np.random.Generator, dtype: str, low: float = 0.01, high: float = 0.1) -> QuantParams:
    lowest, highest = dtype_range(dtype)
    return QuantParams.per_tensor(rng.uniform(low, high), int(rng.integers(lowest, highest + 1)), dtype)


def integers(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> np.ndarray:
    lowest, highest = dtype_range(dtype)
    return rng.integers(lowest, highest + 1, shape).astype(dtype)


def related(scale: float, count: int) -> float:
    """A scale that is a simple multiple of another: exact ties occur."""
    return float(np.float32(scale * count / 4))


# -- convolutions -------------------------------------------------------------------------------------------------
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


def conv_op(name: str, inputs: tuple[str, ...], rank: int, attrs: Mapping[str, Any], **more: Any) -> Conv:
    defaults = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "groups": 1}
    return Conv(name, inputs, ("y",), **{**defaults, **attrs, **more})


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
    overflows: list[Overflow] = []
    np.testing.assert_array_equal(net.run(overflows=overflows)["y"][0], wrapped.astype(np.int64))
    count = int((true != wrapped).sum())
    assert overflows == ([Overflow("c", count)] if count else [])
    assert (count > 0) == (w_value == -32768)


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
    overflows: list[Overflow] = []
    assert net.run(overflows=overflows)["y"].tolist() == [[[[-128, -128]]]]
    assert overflows == [Overflow("c", 2)]


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


# -- matrix products ----------------------------------------------------------------------------------------------
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


# -- element-wise, concat, pooling ----------------------------------------------------------------------------------
SHAPES = [
    ((3, 5, 40), (3, 5, 40)),
    ((3, 5, 40), (5, 1)),
    ((5, 1), (3, 5, 40)),
    ((40,), (3, 5, 40)),
    ((), (7,)),
    ((1,), (1,)),
]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_elementwise_is_qlinearadd_and_qlinearmul_bit_for_bit(run_op, exact_runtime, dtype, shapes, op):
    rng = np.random.default_rng(11)
    kind = np.dtype(dtype).type
    for trial in range(25):
        out, a_params, b_params = (random_params(rng, dtype, 0.01, 1.0) for _ in range(3))
        if trial % 2:  # ratios with small denominators: many exact values lie on a rounding boundary
            base = float(np.float32(rng.uniform(0.01, 1.0)) / np.float32(rng.integers(3, 30)))
            multiples = [float(np.float32(base * k)) for k in rng.integers(1, 40, 2)]
            a_params, b_params = (
                QuantParams.per_tensor(s, p.zero_point[0], dtype)
                for s, p in zip(multiples, (a_params, b_params), strict=True)
            )
            ratio = base * float(rng.integers(3, 30)) * (multiples[0] * 64 if op == "Mul" else 1.0)
            out = QuantParams.per_tensor(ratio, out.zero_point[0], dtype)
        a, b = integers(rng, dtype, shapes[0]), integers(rng, dtype, shapes[1])
        net = Net()
        names = (net.feed("a", a, a_params), net.feed("b", b, b_params))
        net.out("y", out)
        net.add(Elementwise("e", names, ("y",), op=op, lo=out.qmin, hi=out.qmax))
        b_zero = kind(b_params.zero_point[0])
        if op == "Sub":  # minus b is not(b) around not(zero point)
            b, b_zero = ~b, ~b_zero
        inputs = [a, np.float32(a_params.scale[0]), kind(a_params.zero_point[0])]
        inputs += [b, np.float32(b_params.scale[0]), b_zero, np.float32(out.scale[0]), kind(out.zero_point[0])]
        operator = "QLinearMul" if op == "Mul" else "QLinearAdd"
        (expected,) = run_op(operator, inputs, [dtype], domain=MS, fed=(0, 3))
        np.testing.assert_array_equal(net.run()["y"], expected)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_sixteen_bit_elementwise_is_float_arithmetic(run_op, dtype):
    rng = np.random.default_rng(12)
    out, a_params, b_params = (random_params(rng, dtype, 0.01, 1.0) for _ in range(3))
    a, b = integers(rng, dtype, (500,)), integers(rng, dtype, (500,))
    net = Net()
    names = (net.feed("a", a, a_params), net.feed("b", b, b_params))
    net.out("y", out)
    net.add(Elementwise("e", names, ("y",), op="Add", lo=out.qmin, hi=out.qmax))
    kind = np.dtype(dtype).type
    reals = [
        run_op("DequantizeLinear", [q, np.float32(p.scale[0]), kind(p.zero_point[0])], [np.float32])[0]
        for q, p in ((a, a_params), (b, b_params))
    ]
    inputs = [reals[0] + reals[1], np.float32(out.scale[0]), kind(out.zero_point[0])]
    np.testing.assert_array_equal(net.run()["y"], run_op("QuantizeLinear", inputs, [dtype])[0])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_concat_and_rescale_are_qlinearconcat_bit_for_bit(run_op, exact_runtime, dtype):
    rng = np.random.default_rng(13)
    kind = np.dtype(dtype).type
    for trial in range(30):
        params = [random_params(rng, dtype) for _ in range(3)]
        out = params[1] if trial % 2 else random_params(rng, dtype)
        if trial % 3 == 0:
            params[0] = QuantParams.per_tensor(related(out.scale[0], 1 + trial), 3, dtype)
        xs = [integers(rng, dtype, (2, n, 97)) for n in (1, 3, 2)]
        net = Net()
        names = tuple(net.feed(f"x{i}", x, p) for i, (x, p) in enumerate(zip(xs, params, strict=True)))
        net.out("y", out)
        net.add(Concat("c", names, ("y",), axis=-2, lo=out.qmin, hi=out.qmax))
        net.out("r", out)
        net.add(Rescale("r", ("x0",), ("r",), lo=out.qmin, hi=out.qmax))
        inputs: list[Any] = [np.float32(out.scale[0]), kind(out.zero_point[0])]
        for x, p in zip(xs, params, strict=True):
            inputs += [x, np.float32(p.scale[0]), kind(p.zero_point[0])]
        (expected,) = run_op("QLinearConcat", inputs, [dtype], {"axis": 1}, domain=MS, fed=(2, 5, 8))
        result = net.run()
        np.testing.assert_array_equal(result["y"], expected)
        np.testing.assert_array_equal(result["r"], expected[:, :1])


CEIL = "ceil padded"
POOLS: Mapping[str, dict[str, Any]] = {
    "plain": {"kernel": (3, 3)},
    "stride": {"kernel": (2, 2), "strides": (2, 2)},
    "padded": {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    "uneven": {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 0, 1)},
    "include padding": {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "count_include_pad": True},
    "ceil": {"kernel": (3, 3), "strides": (2, 2), "ceil_mode": True},
    CEIL: {"kernel": (4, 3), "strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": True},
    "whole": {"kernel": (9, 11)},
}


def pool_net(x: np.ndarray, params: QuantParams, out: QuantParams, **attrs: Any) -> Net:
    net = Net()
    net.feed("x", x, params)
    net.out("y", out)
    net.add(Pool("p", ("x",), ("y",), lo=out.qmin, hi=out.qmax, **attrs))
    return net


def skip_unless_runtime_pools_as_onnx(case: str) -> None:
    if case == CEIL and tuple(int(n) for n in onnxruntime.__version__.split(".")[:2]) <= (1, 20):
        pytest.skip("this ONNX Runtime keeps windows that begin in the padding after the input")


def onnx_pool_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    names = {"kernel": "kernel_shape"}
    return {names.get(k, k): int(v) if isinstance(v, bool) else v for k, v in attrs.items()}


def averaged(dtype: str) -> Iterator[tuple[np.ndarray, QuantParams, QuantParams]]:
    """Random tensors and grids; every fourth time exact values lie on rounding boundaries."""
    rng = np.random.default_rng(14)
    for trial in range(12):
        params = random_params(rng, dtype)
        # The last: every odd sum over the whole input is a tie but for float32 errors.
        halves = QuantParams.per_tensor(float(np.float32(params.scale[0] * 2 / 99)), 7, dtype)
        tied = QuantParams.per_tensor(related(params.scale[0], 1 + trial), 7, dtype)
        out = [params, random_params(rng, dtype), tied, halves][trial % 4]
        x = integers(rng, dtype, (2, 5, 9, 11))
        if out is halves:
            x = (params.zero_point[0] + rng.integers(-1, 2, x.shape)).clip(*dtype_range(dtype)).astype(dtype)
        yield x, params, out


def scalars(params: QuantParams) -> list[Any]:
    return [np.float32(params.scale[0]), np.dtype(params.dtype).type(params.zero_point[0])]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", ["plain", "stride", "include padding"])
def test_average_pooling_is_a_convolution_with_ones_bit_for_bit(run_op, exact_runtime, dtype, case):
    """What the `onnx` backend writes: weights of one, each worth 1 / count."""
    kernel = POOLS[case]["kernel"]
    for x, params, out in averaged(dtype):
        ones, weight = (
            np.ones((5, 1, *kernel), np.int8),
            np.float32(params.scale[0] / np.prod(kernel) / params.scale[0]),
        )
        inputs = [x, *scalars(params), ones, weight, np.int8(0), *scalars(out)]
        attrs = {k: v for k, v in onnx_pool_attrs(POOLS[case]).items() if k != "count_include_pad"}
        (expected,) = run_op("QLinearConv", inputs, [dtype], {**attrs, "group": 5})
        net = pool_net(x, params, out, mode="average", **POOLS[case])
        np.testing.assert_array_equal(net.run()["y"], expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", POOLS)
def test_average_pooling_is_qlinearaveragepool_but_for_ties(run_op, exact_runtime, dtype, case):
    """That operator sums floats: one LSB apart, and only where the exact value is within float error of a boundary."""
    skip_unless_runtime_pools_as_onnx(case)
    for x, params, out in averaged(dtype):
        inputs = [x, *scalars(params), *scalars(out)]
        (found,) = run_op("QLinearAveragePool", inputs, [dtype], onnx_pool_attrs(POOLS[case]), domain=MS)
        net = pool_net(x, params, out, mode="average", **POOLS[case])
        ours = net.run()["y"].astype(np.int64)
        apart = np.flatnonzero(ours != found)
        assert np.abs(ours - found).max() <= 1
        fine = QuantParams.per_tensor(out.scale[0] / 256, 0, "int32")
        exact = pool_net(x, params, fine, mode="average", **POOLS[case]).run(EXACT)["y"].reshape(-1)[apart]
        np.testing.assert_allclose(np.abs(exact % 256 - 128), 0, atol=1)  # half an LSB, in units of 1 / 256


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(2, 70, 7, 7), (1, 50, 83), (1, 3, 2, 5, 9), (1, 40, 11, 15), (1, 1, 300, 301)])
def test_global_pooling_is_qlinearglobalaveragepool_bit_for_bit(run_op, exact_runtime, dtype, shape):
    rng = np.random.default_rng(15)
    kind = np.dtype(dtype).type
    for trial in range(12):
        params = random_params(rng, dtype)
        out = params if trial % 3 else random_params(rng, dtype, 0.005, 0.02)
        x = integers(rng, dtype, shape)
        if trial % 3 == 2:  # small odd sums are ties but for float32 errors
            size = np.prod(shape[2:])
            out = QuantParams.per_tensor(float(np.float32(params.scale[0] * 2 / size)), 7, dtype)
            x = (params.zero_point[0] + (rng.random(shape) < 2 / size)).clip(*dtype_range(dtype)).astype(dtype)
        inputs = [
            x,
            np.float32(params.scale[0]),
            kind(params.zero_point[0]),
            np.float32(out.scale[0]),
            kind(out.zero_point[0]),
        ]
        (expected,) = run_op("QLinearGlobalAveragePool", inputs, [dtype], {"channels_last": 0}, domain=MS)
        np.testing.assert_array_equal(pool_net(x, params, out, mode="average").run()["y"], expected)
        flat = pool_net(x, params, out, mode="average", keepdims=False).run()["y"]
        np.testing.assert_array_equal(flat, expected.reshape(shape[:2]))


@pytest.mark.parametrize("case", [*POOLS, "dilated", "one axis", "three axes"])
def test_max_pooling_is_maxpool(run_op, case):
    skip_unless_runtime_pools_as_onnx(case)
    more: Mapping[str, dict[str, Any]] = {
        "dilated": {"kernel": (2, 3), "dilations": (3, 2), "pads": (1, 2, 1, 2)},
        "one axis": {"kernel": (3,), "strides": (2,), "pads": (1, 1), "ceil_mode": True},
        "three axes": {"kernel": (2, 2, 2), "strides": (1, 2, 2), "ceil_mode": True},
    }
    attrs = {k: v for k, v in {**POOLS, **more}[case].items() if k != "count_include_pad"}
    rng = np.random.default_rng(16)
    shape = {"one axis": (2, 3, 20), "three axes": (1, 2, 5, 6, 7)}.get(case, (2, 5, 9, 11))
    for dtype in ("uint8", "int8"):
        x = integers(rng, dtype, shape)
        params = QuantParams.per_tensor(0.1, 5, dtype)
        (expected,) = run_op("MaxPool", [x], [dtype], onnx_pool_attrs(attrs))
        np.testing.assert_array_equal(pool_net(x, params, params, mode="max", **attrs).run()["y"], expected)
    everything = pool_net(x, params, params, mode="max", keepdims=False).run()["y"]
    np.testing.assert_array_equal(everything, x.reshape(*x.shape[:2], -1).max(axis=-1))


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("case", ["padded", "uneven", "ceil", CEIL])
def test_window_means_divide_by_what_onnx_says(run_op, case, include):
    skip_unless_runtime_pools_as_onnx(case)
    rng = np.random.default_rng(17)
    x, params = integers(rng, "uint8", (1, 2, 9, 11)), QuantParams.per_tensor(1.0, 20)
    attrs = {**POOLS[case], "count_include_pad": include}
    out = QuantParams.per_tensor(2.0**-6, 0, "int16")
    result = pool_net(x, params, out, mode="average", **attrs).run(EXACT)["y"]
    names = onnx_pool_attrs(attrs)
    (expected,) = run_op("AveragePool", [x.astype(np.float32) - 20], [np.float32], names)
    np.testing.assert_allclose(result / 64, expected, atol=1 / 64)


# -- tables, quantization -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_lookup_reads_every_entry(dtype):
    table = np.random.default_rng(18).permutation(256).astype(np.uint8)
    q = np.arange(*[dtype_range(dtype)[0], dtype_range(dtype)[1] + 1]).astype(dtype).reshape(16, 16)
    net = Net()
    names = (net.feed("x", q, QuantParams.per_tensor(0.1, 0, dtype)), net.constant("t", table))
    net.out("y", QuantParams.per_tensor(0.1))
    net.add(Lookup("l", names, ("y",), function="f", lo=0, hi=255))
    np.testing.assert_array_equal(net.run()["y"], table.reshape(16, 16))


def test_quantize_and_dequantize_are_those_of_onnx(run_op):
    rng = np.random.default_rng(19)
    x = rng.normal(0, 4, (2, 3, 50)).astype(np.float32)
    params = QuantParams.per_tensor(0.05, 120)
    raw = raw_accumulator((0.1, 0.2, 0.3), 1)
    bias = rng.normal(size=3).astype(np.float32)
    net = Net()
    net.feed("x", x)
    net.feed("acc", rng.integers(-(2**31), 2**31, (2, 3, 50)).astype(np.int32), raw)
    net.constant("bias", bias)
    net.out("q", params)
    net.add(Quantize("q", ("x",), ("q",), lo=100, hi=200))
    net.out("y")
    net.add(Dequantize("d", ("q",), ("y",)))
    net.out("z")
    net.add(Dequantize("e", ("acc", "bias"), ("z",)))
    result = net.run()
    (q,) = run_op("QuantizeLinear", [x, np.float32(0.05), np.uint8(120)], [np.uint8])
    np.testing.assert_array_equal(result["q"], q.clip(100, 200))
    (y,) = run_op("DequantizeLinear", [result["q"], np.float32(0.05), np.uint8(120)], [np.float32])
    np.testing.assert_array_equal(result["y"], y)
    scales = np.array(raw.scale, np.float32)
    inputs = [net.feeds["acc"], scales, np.zeros(3, np.int32)]
    (z,) = run_op("DequantizeLinear", inputs, [np.float32], {"axis": 1})
    np.testing.assert_array_equal(result["z"], z + bias.reshape(1, 3, 1))


# -- movement -------------------------------------------------------------------------------------------------------
X = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
I64 = np.int64
MOVES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Reshape", [X, np.array([0, -1, 5], I64)], {}, 1),
    ("Reshape", [X[:0], np.array([0, 60], I64)], {"allowzero": 1}, 1),
    ("Transpose", [X], {"perm": [3, 1, 0, 2]}, 1),
    ("Transpose", [X], {}, 1),
    ("Flatten", [X], {"axis": -2}, 1),
    ("Flatten", [X], {}, 1),
    ("Flatten", [X], {"axis": 0}, 1),
    ("Squeeze", [X[:1, :, :1], np.array([0, 2], I64)], {}, 1),
    ("Squeeze", [X[:1, :, :1]], {}, 1),
    ("Unsqueeze", [X, np.array([0, -1], I64)], {}, 1),
    ("Slice", [X, np.array([1, 0], I64), np.array([3, 99], I64), np.array([1, -1], I64), np.array([1, 2], I64)], {}, 1),
    ("Slice", [X, np.array([-1], I64), np.array([-(2**40)], I64), np.array([3], I64), np.array([-2], I64)], {}, 1),
    ("Slice", [X, np.array([1], I64), np.array([2], I64)], {}, 1),
    ("Gather", [X, np.array([[2, -1], [0, 0]], I64)], {"axis": 1}, 1),
    ("Gather", [X, np.array(1, I64)], {"axis": -1}, 1),
    ("GatherElements", [X, np.array([[[[3, -1, 0]]]], I64)], {"axis": -1}, 1),
    ("GatherElements", [X[:1], np.zeros((70, 1, 2, 5), I64)], {}, 1),
    ("Concat", [X, X[:, :1], X[:, 1:]], {"axis": -3}, 1),
    ("Split", [X, np.array([1, 4], I64)], {"axis": -1}, 2),
    ("Split", [X], {"axis": 3, "num_outputs": 3}, 3),
    ("Shape", [X], {"start": 1, "end": -1}, 1),
    ("Shape", [X], {}, 1),
    ("Expand", [X[:, :1], np.array([3, 1, 1], I64)], {}, 1),
    ("Cast", [X.astype(np.float32) / 3], {"to": 6}, 1),
    ("Pad", [X, np.array([1, 0, 2, 0, 0, 1, 0, 3], I64), np.array(7, np.uint8)], {}, 1),
    ("Pad", [X, np.array([1, 2, 0, 1], I64), None, np.array([2, -1], I64)], {"mode": "reflect"}, 1),
    ("Pad", [X, np.array([1, 0, 0, 0, 0, 1, 0, 2], I64)], {"mode": "edge"}, 1),
    ("Pad", [X, np.array([0, -1, 0, 0, 0, 0, 0, -2], I64)], {}, 1),
    ("Identity", [X], {}, 1),
    ("Relu", [X.astype(np.float32) - 60], {}, 1),
    ("Add", [X.astype(np.float32), np.float32(0.1)], {}, 1),
    ("DepthToSpace", [X.reshape(1, 24, 1, 5).astype(np.float32)], {"blocksize": 2, "mode": "CRD"}, 1),
    ("Softmax", [X.astype(np.float32)], {"axis": 1}, 1),
    ("Gelu", [X.astype(np.float32) / 50 - 1], {"approximate": "tanh"}, 1),
]


@pytest.mark.parametrize("index", range(len(MOVES)), ids=[f"{m[0]}{i}" for i, m in enumerate(MOVES)])
def test_movement_is_that_of_onnx(run_op, index):
    op_type, inputs, attrs, outputs = MOVES[index]
    results = evaluate_onnx(op_type, "", 21, inputs, attrs, outputs)
    expected = run_op(op_type, inputs, [r.dtype for r in results], attrs)
    assert len(results) == outputs
    for ours, theirs in zip(results, expected, strict=True):
        if op_type in ("Softmax", "Gelu"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_older_opsets_hold_their_arguments_in_attributes():
    for op_type, attrs, expected in [
        ("Squeeze", {"axes": [0]}, X[:1][0]),
        ("Unsqueeze", {"axes": [0]}, X[None, :1]),
        ("Slice", {"starts": [1], "ends": [3], "axes": [2]}, X[:1, :, 1:3]),
        (
            "Pad",
            {"pads": [0, 0, 0, 0, 0, 0, 0, 1], "value": 2.0},
            np.pad(X[:1], [(0, 0)] * 3 + [(0, 1)], constant_values=2),
        ),
    ]:
        (result,) = evaluate_onnx(op_type, "", 9, [X[:1]], attrs, 1)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("sizes", [None, (2, 3, 8, 10), (2, 3, 7, 3), (2, 3, 1, 12)])
def test_nearest_resize_is_that_of_onnx(run_op, transformation, nearest, sizes):
    scales = np.array([1, 1, 2, 3], np.float32) if sizes is None else None
    wanted = None if sizes is None else np.array(sizes, I64)
    attrs = {"coordinate_transformation_mode": transformation, "nearest_mode": nearest}
    (expected,) = run_op("Resize", [X, None, scales, wanted], [np.uint8], {**attrs, "mode": "nearest"})
    result = evaluate_onnx("Resize", "", 21, [X, None, scales, wanted], attrs, 1)
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "floor"])
def test_the_resize_that_old_tensorflow_exports_use(run_op, nearest):
    scales = np.array([1, 1, 2, 3], np.float32)
    attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": nearest}
    (expected,) = run_op(
        "Resize", [X, np.zeros(0, np.float32), scales], [np.uint8], {**attrs, "mode": "nearest"}, opset=11
    )
    (result,) = evaluate_onnx("Resize", "", 11, [X, None, scales], attrs, 1)
    np.testing.assert_array_equal(result, expected)


def test_resize_leaves_what_it_does_not_know_to_onnx():
    assert resize_nearest(X, None, None, "half_pixel", "floor") is None
    assert resize_nearest(X, np.array([1, 1, 2, 2.0]), None, "tf_crop_and_resize", "floor") is None
    assert resize_nearest(X, np.array([1, 1, 2, 2.0]), None, "half_pixel", "up") is None


def test_an_operator_that_nothing_can_run_is_a_diagnostic():
    with pytest.raises(CompileError, match=r"QAT302.*Unheard"):
        evaluate_onnx("Unheard", "", 21, [X], {}, 1)
    with pytest.raises(CompileError, match=r"QAT302.*com\.example\.Unheard"):
        evaluate_onnx("Unheard", "com.example", 1, [X], {"table": np.arange(3), "n": np.int64(3)}, 1)
    with pytest.raises(CompileError, match=r"QAT302.*MatMul"):
        evaluate_onnx("MatMul", "", 21, [X, X[..., :1]], {}, 1)


# -- the executor -----------------------------------------------------------------------------------------------------
def chain() -> Net:
    net = Net()
    grid = QuantParams.per_tensor(0.5, 10)
    net.feed("x", np.array([[1.0, 2.0, 30.0]], np.float32))
    net.constant("shape", np.array([3, 1], I64))
    net.out("q", grid)
    net.add(Quantize("quantize", ("x",), ("q",), lo=0, hi=255))
    net.out("moved", grid)
    net.add(Move("reshape", ("q", "shape"), ("moved",), op_type="Reshape", attrs={}))
    net.out("r", QuantParams.per_tensor(1.0, 0))
    net.add(Rescale("rescale", ("moved",), ("r",), lo=0, hi=20))
    net.out("back")
    net.add(Dequantize("dequantize", ("r",), ("back",)))
    net.out("y")
    net.add(Float("exp", ("back",), ("y",), op_type="Neg", attrs={}, reason="a test"))
    return net


def test_every_tensor_is_returned_by_name():
    result = chain().run()
    assert set(result) == {"x", "q", "moved", "r", "back", "y"}
    assert result["q"].tolist() == [[12, 14, 70]]
    assert result["moved"].tolist() == [[12], [14], [70]]
    assert result["r"].tolist() == [[1], [2], [20]]
    assert result["y"].tolist() == [[-1.0], [-2.0], [-20.0]]


def test_forced_tensors_reach_consumers_only():
    seen: list[np.ndarray] = []

    def spy(op_type, domain, opset, inputs, attrs, n_outputs):
        seen.append(inputs[0])
        return evaluate_onnx(op_type, domain, opset, inputs, attrs, n_outputs)

    forced = {"q": np.array([[10, 12, 14]], np.uint8), "back": np.array([[7.0]], np.float32)}
    result = chain().run(EXACT, forced=forced, evaluate=spy)
    assert result["q"].tolist() == [[12, 14, 70]]  # computed from x
    assert result["r"].tolist() == [[0], [1], [2]]  # computed from the forced q
    assert result["back"].tolist() == [[0.0], [1.0], [2.0]]
    assert result["y"].tolist() == [[-7.0]]
    assert [s.size for s in seen] == [3, 1]


def test_inputs_are_checked():
    net = chain()
    good = net.feeds["x"]
    for feeds, message in [
        ({}, "no value"),
        ({"x": good.astype(np.float64)}, "float32, its value float64"),
        ({"x": good * np.nan}, "NaN"),
    ]:
        net.feeds = feeds
        with pytest.raises(CompileError, match=rf"(?s)QAT008.*{message}"):
            net.run()


def test_shapes_that_do_not_fit_are_refused():
    net = Net()
    x = net.feed("x", np.zeros((1, 3, 4, 4), np.uint8), QuantParams.per_tensor(0.1))
    w = net.constant("w", np.zeros((2, 4, 3, 3), np.int8), QuantParams.per_tensor(0.1, 0, "int8"))
    net.out("y", QuantParams.per_tensor(0.1))
    net.add(conv_op("c", (x, w), 2, {}, acc_scale=(0.01, 0.01), lo=0, hi=255))
    with pytest.raises(ValueError, match="3 channels"):
        net.run()
    net.graph.constants["w"] = np.zeros((2, 3, 5, 5), np.int8)
    with pytest.raises(ValueError, match="kernel"):
        net.run()


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_agree_within_one_lsb_operator_by_operator(name):
    """Rule 8 on whole operators: exact against each profile, on power-of-two scales that all of them can express."""
    rng = np.random.default_rng(20)
    net = Net()
    x_params, out = QuantParams.per_tensor(2.0**-5, 100), QuantParams.per_tensor(2.0**-3, 30)
    x = net.feed("x", integers(rng, "uint8", (2, 8, 12, 12)), x_params)
    w = net.constant("w", integers(rng, "int8", (8, 8, 3, 3)), QuantParams.per_tensor(2.0**-8, 0, "int8"))
    net.out("c", out)
    pads = {"pads": (1, 1, 1, 1)}
    conv = conv_op("conv", (x, w), 2, pads, acc_scale=(2.0**-13,) * 8, lo=0, hi=255)
    net.add(Conv(**{**vars(conv), "outputs": ("c",)}))
    net.out("a", out)
    net.add(Elementwise("add", ("c", x), ("a",), op="Add", lo=0, hi=255))
    net.out("m", out)
    net.add(Elementwise("mul", ("c", x), ("m",), op="Mul", lo=0, hi=255))
    net.out("p", out)
    net.add(Pool("pool", ("x",), ("p",), mode="average", kernel=(3, 3), strides=(1, 1), lo=0, hi=255))
    exact = net.run(EXACT)
    result = net.run(PROFILES[name], forced=exact)
    for tensor in ("c", "a", "m", "p"):
        assert np.abs(result[tensor].astype(int) - exact[tensor].astype(int)).max() <= 1
