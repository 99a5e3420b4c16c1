"""Weights far from their zero points: what two eight-bit numbers can say is integer, the rest an island."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Float
from qatc.compiler.lowering.operands import sixteen_bits
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from tests import pipeline
from tests.agreeing import agrees, kinds, lowered_net, reasons
from tests.graphs import net
from tests.pipeline import simulate

X2 = "(float[3,2] x) => (float[3,2] y)"
BODY = "a = A(x)\nw = DequantizeLinear<axis = 1>(wq, ws, wz)\nm = MatMul(a, w)\ny = B(m)"


@pytest.mark.parametrize(
    ("values", "zeros", "dtype", "integer"),
    [
        ("0, 255, 255, 0", "128, 128", "uint8", True),
        ("0, 255, 255, 3", "0, 255", "uint8", True),
        ("0, 255, 255, 0", "0, 255", "uint8", False),
        ("-128, 100, 7, -100", "127, 0", "int8", True),
        ("-255, 254, 7, -100", "0, 0", "int16", True),
        ("-256, 254, 7, -100", "0, 0", "int16", False),
        ("-300, 200, 7, -100", "0, 0", "int16", False),
    ],
)
def test_distances_from_the_zero_point(values: str, zeros: str, dtype: str, *, integer: bool) -> None:
    constants = f"{dtype}[2,2] wq = {{{values}}}, float[2] ws = {{0.5, 0.25}}, {dtype}[2] wz = {{{zeros}}}"
    graph = lowered_net(X2, BODY, constants, opset=21)
    cause = "its weight has zero points at both ends of 8 bits" if dtype == "uint8" else "the weight takes 16 bits"
    said = [] if integer else [f"Add: {cause}: two products of 8 bits are added"]
    assert reasons(graph) == said
    assert not [op for op in graph.ops if isinstance(op, Float) and op.op_type == "MatMul"]


@pytest.mark.parametrize(
    ("op", "shape", "axis", "attrs"),
    [
        ("Conv", (4, 3, 3, 3), 1, {}),
        ("Conv", (4, 1, 3), 2, {"group": 4}),
        ("ConvTranspose", (3, 4, 3, 3), 0, {"strides": [2, 2]}),
        ("ConvTranspose", (4, 1, 3, 3), 0, {"group": 2}),
        ("ConvTranspose", (4, 2, 3), 0, {"group": 2}),
        ("Gemm", (5, 3), 1, {"transB": 1, "alpha": 0.5}),
        ("Gemm", (3, 5), 0, {"transA": 1}),
        ("MatMul", (3, 5), 0, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_two_products_are_the_product(
    op: str, shape: tuple[int, ...], axis: int, attrs: dict[str, Any], dtype: str
) -> None:
    """Whatever the channels' scales are, the sum is off by less than 2**-16 of a channel's largest weight a term."""
    rng = np.random.default_rng(3)
    limit = int(np.iinfo(dtype).max)
    weight = rng.integers(-limit, limit + 1, shape).astype(dtype)
    scale = rng.uniform(0.1, 1, shape[axis]).astype(np.float32) / limit
    spread = [-1 if i == axis else 1 for i in range(len(shape))]
    real = weight * scale.reshape(spread)
    channels = shape[0] if op == "ConvTranspose" or attrs.get("group", 1) > 1 else shape[1]
    rows = [2, 3] if op in ("MatMul", "Gemm") and not attrs.get("transA") else [3, 2]
    x = rng.uniform(0, 1, rows if len(shape) == 2 else [1, channels, *[6] * (len(shape) - 2)]).astype(np.float32)
    model = product(op, x, weight, scale, axis, attrs)
    graph = pipeline.integer(model)
    assert {o.op_type for o in graph.islands()} == {"Add"}
    got = execute(graph, {"x": x}, get_profile("onnx"))["y"]
    want = simulate(pipeline.folded(model), {"x": x})["y"]
    terms = real.size / min(real.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=terms * np.abs(real).max() * 2.0**-15)


@pytest.mark.parametrize(
    ("op", "shape", "axis", "attrs"),
    [
        ("Conv", (4, 3, 3, 3), 0, {}),
        ("ConvTranspose", (3, 4, 3, 3), 1, {"strides": [2, 2]}),
        ("Gemm", (5, 3), 0, {"transB": 1, "alpha": 0.5}),
        ("MatMul", (3, 5), 1, {}),
    ],
    ids=str,
)
def test_a_weight_of_sixteen_bits_keeps_its_integers(
    op: str, shape: tuple[int, ...], axis: int, attrs: dict[str, Any]
) -> None:
    """With a scale per output channel nothing is rounded: float32's last bits are all that differs."""
    rng = np.random.default_rng(5)
    weight = rng.integers(-32768, 32768, shape).astype(np.int16)
    weight.flat[:6] = [-32768, 32767, 32640, -32640, 127, -128]
    scale = (rng.uniform(0.1, 1, shape[axis]) / 32767).astype(np.float32)
    x = np.float32([[1, 0, 0], [0, 1, 0.2]]) if len(shape) == 2 else rng.uniform(0, 1, (1, 3, 6, 6)).astype(np.float32)
    model = product(op, x, weight, scale, axis, attrs)
    graph = pipeline.integer(model)
    assert reasons(graph) == ["Add: the weight takes 16 bits: two products of 8 bits are added"]
    got = execute(graph, {"x": x}, get_profile("onnx"))["y"]
    want = simulate(pipeline.folded(model), {"x": x})["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-21 * float(np.abs(want).max()))


@given(
    hnp.arrays(np.uint16, (3, 4), elements=st.integers(0, 65535)),
    st.sampled_from([0, 1, 255, 32768, 40000, 65535]),
    st.sampled_from([None, 0, 1]),
)
def test_sixteen_bits_of_any_weight(values: np.ndarray, zero: int, axis: int | None) -> None:
    """Its own integers wherever they fit, else no further off than half a step of the finest grid that holds it."""
    count = 1 if axis is None else values.shape[axis]
    scale = np.linspace(0.25, 1, count).tolist()
    params = (
        QuantParams.per_tensor(0.25, zero, "uint16")
        if axis is None
        else QuantParams.per_channel(scale, axis, zero, "uint16")
    )
    real = params.dequantize(values)
    whole, step = sixteen_bits(values, real, params, axis)
    assert int(whole.min()) >= -32768
    assert int(whole.max()) <= 32767
    spread = step if axis is None else step.reshape([-1 if i == axis else 1 for i in range(2)])
    own = values.astype(np.int64) - zero
    if own.min() >= -32768 and own.max() <= 32767:
        np.testing.assert_array_equal(whole, own)
        assert tuple(step) == params.scale
    assert np.all(np.abs(whole * spread - real) <= spread * 0.5000001)


def test_equal_scales_are_one_scale() -> None:
    """Along whichever axis they are written."""
    constants = "int8[2,2] wq = {1, 2, 3, 4}, float[2] ws = {0.5, 0.5}, int8[2] wz = {0, 0}"
    graph = lowered_net(X2, BODY.replace("axis = 1", "axis = 0"), constants)
    assert reasons(graph) == []


def product(
    op: str, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, axis: int, attrs: dict[str, Any]
) -> onnx.ModelProto:
    """X rounded onto 8 bits, times a weight that is quantized along `axis`."""
    values = {
        "s": np.asarray(1 / 255, np.float32),
        "z": np.asarray(0, np.uint8),
        "wq": weight,
        "ws": scale,
        "wz": np.zeros(scale.shape, weight.dtype),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=axis),
        helper.make_node(op, ["xd", "w"], ["y"], **attrs),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("c = Conv(a, w)\ny = A(c)", ["Conv"]),
        ("c = Conv<pads = [1, 0, 1, 2], strides = [2, 1]>(a, w)\nr = Relu(c)\ny = C(r)", ["Conv"]),
        ('c = Conv<auto_pad = "SAME_UPPER">(a, w)\nm = Mul(c, f)\ny = C(m)', ["Conv"]),
        ("c = Conv(a, w, b)\ny = A(c)", ["Conv"]),
        ("c = Conv(a, w)\nd = Add(c, d0)\ny = A(d)", ["Conv"]),
        ("y = Conv(a, w)", ["Conv"]),
        ("c = Conv(a, w, huge)\ny = A(c)", ["Conv"]),
    ],
    ids=["plain", "clamped", "scaled", "bias", "bias behind it", "unrounded", "a bias that is too large"],
)
@pytest.mark.parametrize("grid", ["A", "B", "C", "D"])
def test_a_convolution_with_a_weight_of_run_time(body: str, want: list[str], grid: str) -> None:
    constants = (
        "float f = {0.25}, float[3] b = {1, -2, 3.5}, float[3,1,1] d0 = {1, -2, 3.5}, float[3] huge = {1e9, 0, 0}"
    )
    text = net(
        "(float[1,2,5,5] x, float[3,2,2,2] u) => (float[1,3,m,n] y)", f"a = A(x)\nw = {grid}(u)\n{body}", constants
    )
    assert kinds(agrees(text)) == want
