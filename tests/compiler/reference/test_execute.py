"""The reference executor: element-wise operators against ONNX Runtime, tables, rounding, and what it says of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import (
    Concat,
    Conv,
    Dequantize,
    Elementwise,
    Float,
    Lookup,
    Move,
    Pool,
    Quantize,
    Rescale,
    raw_accumulator,
)
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference import evaluate_onnx
from tests.compiler.reference.nets import EXACT, MS, Net, conv_op, integers, random_params, related

# -- element-wise, concat ---------------------------------------------------------------------------------------------
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


def test_what_does_not_fit_together_is_told() -> None:
    """ONNX Runtime joins what has no elements, whatever its shape: nothing else says that the model is wrong."""
    net, grid = Net(), QuantParams.per_tensor(0.5, 3)
    names = (net.feed("a", np.zeros((1, 2), np.uint8), grid), net.feed("b", np.zeros((0, 2), np.uint8), grid))
    net.out("y", grid)
    net.add(Concat("c", names, ("y",), axis=1, lo=0, hi=255))
    with pytest.raises(CompileError, match=r"QAT403.*cannot join"):
        net.run()


# -- tables, quantization ---------------------------------------------------------------------------------------------
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


# -- the executor -----------------------------------------------------------------------------------------------------
def chain() -> Net:
    net = Net()
    grid = QuantParams.per_tensor(0.5, 10)
    net.feed("x", np.array([[1.0, 2.0, 30.0]], np.float32))
    net.constant("shape", np.array([3, 1], np.int64))
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

    def spy(op_type, domain, opset, inputs, attrs, n_outputs, *, fixed):
        seen.append(inputs[0])
        return evaluate_onnx(op_type, domain, opset, inputs, attrs, n_outputs, fixed=fixed)

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


@pytest.mark.filterwarnings("error")
def test_an_operator_that_makes_nan_is_not_said_to_be_the_input_data():
    """A linear attention divides by a sum that rounds to zero: what NaN becomes differs between processors."""
    net = Net()
    x = net.feed("x", np.asarray([0.0, 1.0], np.float32))
    real, y = net.out("real"), net.out("y", QuantParams.per_tensor(0.5, 3))
    net.add(Float("div", (x, x), (real,), op_type="Div", attrs={}, reason="a test"))
    net.add(Quantize("q", (real,), (y,), lo=0, hi=255))
    with pytest.raises(CompileError) as caught:
        net.run()
    (told,) = caught.value.diagnostics
    assert told.message.startswith("1 of 2 elements are NaN with this sample")
    assert told.hint is not None
    assert "0 / 0" in told.hint


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
