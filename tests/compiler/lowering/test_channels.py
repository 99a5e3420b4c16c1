"""Functions that differ from channel to channel, in integers: batch norm and PRelu."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qatc.backends.onnx import BACKEND
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Conv, Elementwise, IntegerGraph, Rescale
from qatc.compiler.lowering import lower
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.agreeing import lowered_net, reasons
from tests.graphs import expect, stripped

SHAPE = "(float[1,3,16,16] x) => (float[1,3,16,16] y)"


def lowered(slopes: str, have: tuple[float, int], want: tuple[float, int], shape: str = "3,1,1") -> IntegerGraph:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net {SHAPE} <float s = {{{have[0]!r}}}, uint8 z = {{{have[1]}}}, float t = {{{want[0]!r}}}, uint8 k = {{{want[1]}}},
        float[{shape}] slope = {{{slopes}}}> {{
        q = QuantizeLinear(x, s, z)
        a = DequantizeLinear(q, s, z)
        p = PRelu(a, slope)
        r = QuantizeLinear(p, t, k)
        y = DequantizeLinear(r, t, k)
    }}"""
    return integers_of(text)


def integers_of(text: str) -> IntegerGraph:
    graph = stripped(text)
    infer_shapes(graph)
    propagate(graph)
    integer = lower(graph)
    integer.verify()
    return integer


@given(
    slopes=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    have=st.tuples(st.floats(2**-6, 1, width=32), st.integers(0, 255)),
    want=st.tuples(st.floats(2**-6, 1, width=32), st.integers(0, 255)),
)
@settings(max_examples=60, deadline=None)
def test_a_slope_per_channel(slopes: list[float], have: tuple[float, int], want: tuple[float, int]) -> None:
    """For every code of every channel, but for exact ties."""
    assume(len(set(slopes)) > 1)  # one slope for all is a table
    graph = lowered(", ".join(repr(s) for s in slopes), have, want)
    assert not list(graph.islands())
    kinds = [type(op) for op in graph.ops if not op.kind.endswith("ize")]
    assert kinds == [Rescale, Rescale, Conv, Elementwise]
    codes = np.broadcast_to(np.arange(256).reshape(16, 16), (1, 3, 16, 16))
    x = (codes - have[1]) * np.float64(have[0])
    found = execute(graph, {"x": x.astype(np.float32)}, get_profile("exact"))["y"]
    exact = np.where(x < 0, np.float64(slopes).reshape(3, 1, 1) * x, x) / want[0] + want[1]
    steps = found / want[0] + want[1]
    assert (np.abs(steps - np.clip(exact, 0, 255)) <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("images", [1, 3])
def test_a_slope_per_feature_of_vectors(images: int) -> None:
    """Dense layers with PRelu, as those of MTCNN: vectors are one position."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]> net (float[{images},3] x) => (float[{images},3] y)
        <float s = {{0.5}}, uint8 z = {{100}}, float[3] slope = {{0.5, 0.25, -1}}> {{
        q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
        p = PRelu(a, slope) r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }}"""
    graph = integers_of(text)
    assert not list(graph.islands())
    x = np.random.default_rng(0).integers(-100, 156, (images, 3)).astype(np.float32) / 2
    found = execute(graph, {"x": x}, get_profile("exact"))["y"]
    exact = np.where(x < 0, x * [0.5, 0.25, -1], x)
    np.testing.assert_array_equal(found, np.rint(exact * 2) / 2)


@pytest.mark.parametrize(("shape", "slopes"), [("1,16,1", "1, " * 15 + "0.5"), ("16", "1, " * 15 + "0.5")])
def test_a_slope_along_another_axis_stays_float(shape: str, slopes: str) -> None:
    (island,) = lowered(slopes, (0.5, 100), (0.5, 100), shape).islands()
    assert island.op_type == "PRelu"


@pytest.mark.parametrize(
    ("slopes", "clip"),
    [
        ("0.5, inf, 1", ""),
        ("0.5, 0.25, 1", "i = Clip(q, high, )"),  # no integer of `a` is zero
    ],
    ids=["infinite", "no zero"],
)
def test_slopes_that_no_depthwise_convolution_applies(slopes: str, clip: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> net (float[1,3,4] x) => (float[1,3,4] y)
        <float s = {{0.5}}, uint8 z = {{100}}, uint8 high = {{120}}, float[3,1] slope = {{{slopes}}}> {{
        q = QuantizeLinear(x, s, z) {clip} a = DequantizeLinear({"i" if clip else "q"}, s, z)
        p = PRelu(a, slope) r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }}"""
    (island,) = integers_of(text).islands()
    assert island.op_type == "PRelu"


def test_batch_norm_alone_is_a_depthwise_product() -> None:
    graph = lowered_net(
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
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\ny = B(n)",
        "float[2] g = {1e-9, 1.0}, float[2] b = {20.0, 0.25}, float[2] m = {0.0, 0.0}, float[2] v = {1.0, 1.0}",
    )
    (conv,) = [op for op in graph.ops if isinstance(op, Conv)]
    assert graph.constants[conv.inputs[2]] * np.asarray(conv.acc_scale) == pytest.approx([20.0, 0.25], rel=1e-6)


def test_batch_norm_of_vectors_is_one_position() -> None:
    graph = lowered_net(
        "(float[3,2] x) => (float[3,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\ny = B(n)",
        "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}",
    )
    assert reasons(graph) == []
    assert [op.kind for op in graph.ops] == ["Quantize", "Move", "Conv", "Move", "Dequantize"]
    x = np.asarray([[1.0, 2.0], [-3.0, 0.5], [4.0, -1.0]], np.float32)
    y = execute(graph, {"x": x}, get_profile("exact"))["y"]
    assert np.array_equal(y, np.maximum((x - [1, 0]) * [1, -1] + [0.5, 0.25], 0))


def test_numbers_of_channels_that_contradict_each_other_stay_float() -> None:
    """Found by a fuzzer; ONNX Runtime does not run it."""
    graph = lowered_net(
        "(float[1,3,2,2] x) => (float[1,3,2,2] y)",
        "a = A(x)\ns = Mul(a, c)\nn = BatchNormalization<epsilon = 0.0>(s, g, b, m, v)\ny = B(n)",
        "float[3,1,1] c = {1.0, 2.0, 3.0}, "
        "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, float[2] v = {4.0, 1.0}",
    )
    assert not any(isinstance(op, Conv) for op in graph.ops)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variance", ["0.0", "-1.0"])
def test_batch_norm_alone_with_damaged_statistics_stays_in_float_without_a_warning(variance: str) -> None:
    graph = lowered_net(
        "(float[1,2,2,2] x) => (float[1,2,2,2] y)",
        "a = A(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, b, m, v)\ny = B(n)",
        "float[2] g = {2.0, -1.0}, float[2] b = {0.5, 0.25}, float[2] m = {1.0, 0.0}, "
        f"float[2] v = {{4.0, {variance}}}",
    )
    assert reasons(graph) == ["BatchNormalization: BatchNormalization has no exact integer form"]


IMAGES: dict[str, str] = {
    "before a convolution": "{lines} q = QuantizeLinear(p, t, k) d = DequantizeLinear(q, t, k) y = MaxPool"
    "<kernel_shape = [1, 1]>(d)",
    "behind one": "c = MaxPool<kernel_shape = [1, 1]>(a) {lines} q = QuantizeLinear(p, t, k)"
    " y = DequantizeLinear(q, t, k)",
}


def affine_text(
    lines: str, place: str, have: tuple[float, int], want: tuple[float, int], vectors: tuple[Any, Any]
) -> str:
    """An affine per channel of the tensor `a`, or of `c` behind pooling, in ONNX text."""
    listed = [", ".join(repr(float(v)) for v in vector) for vector in vectors]
    body = IMAGES[place].format(lines=re.sub(r"\ba\b", "c" if "behind" in place else "a", lines))
    return f"""<ir_version: 8, opset_import: ["" : 17]> net (float[1,16,16,16] x) => (float[1,16,16,16] y)
        <float s = {{{have[0]!r}}}, uint8 z = {{{have[1]}}}, float t = {{{want[0]!r}}}, uint8 k = {{{want[1]}}},
         float[16,1,1] u = {{{listed[0]}}}, float[1,16,1,1] v = {{{listed[1]}}}, float two = {{2.0}}> {{
        i = QuantizeLinear(x, s, z) a = DequantizeLinear(i, s, z) {body} }}"""


AFFINES: dict[str, tuple[str, Callable[[Any, Any, Any], Any]]] = {
    "Mul": ("p = Mul(a, u)", lambda x, u, v: x * u),
    "Div": ("p = Div(a, u)", lambda x, u, v: x / u),
    "normalized": ("m = Sub(a, v) p = Div(m, u)", lambda x, u, v: (x - v) / u),
    "mirrored": ("m = Sub(v, a) n = Mul(two, m) p = Add(u, n)", lambda x, u, v: u + 2 * (v - x)),
    "Add": ("p = Add(v, a)", lambda x, u, v: x + v),
}


@pytest.mark.parametrize("place", IMAGES)
@pytest.mark.parametrize("name", AFFINES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    have=st.tuples(st.floats(2**-6, 1, width=32), st.integers(0, 255)),
    want=st.tuples(st.floats(2**-6, 1, width=32), st.integers(0, 255)),
)
def test_constants_per_channel(
    name: str, place: str, seed: int, have: tuple[float, int], want: tuple[float, int]
) -> None:
    """For every code of every channel, but for the rounding of the bias; and in the emitted model."""
    rng = np.random.default_rng(seed)
    u, v = (rng.uniform(0.1, 4, 16).astype(np.float32) * rng.choice([-1, 1], 16).astype(np.float32) for _ in range(2))
    lines, meaning = AFFINES[name]
    graph = integers_of(affine_text(lines, place, have, want, (u, v)))
    assume(not any("grows so much" in reason for reason in reasons(graph)))
    assert not list(graph.islands())
    assert [type(op) for op in graph.ops if isinstance(op, Conv)] == [Conv]
    codes = np.broadcast_to(np.arange(256).reshape(16, 16), (1, 16, 16, 16))
    x = ((codes - have[1]) * np.float64(have[0])).astype(np.float32)
    found = {p: execute(graph, {"x": x}, get_profile(p))["y"] for p in ("exact", "onnx")}
    emission = BACKEND.emit(graph, BACKEND.checked({}))
    np.testing.assert_array_equal(RunnableModel(emission.complete()).run({"x": x})["y"], found["onnx"])
    u, v = (vector.astype(np.float64).reshape(16, 1, 1) for vector in (u, v))
    exact = meaning((codes - have[1]) * np.float64(have[0]), u, v) / want[0] + want[1]
    steps = found["exact"].astype(np.float64) / want[0] + want[1]
    factor = np.abs(meaning(1.0, u, v) - meaning(0.0, u, v))
    moved = factor * have[0] / 128 / want[0] if np.any(meaning(0.0, u, v)) else 0.0  # half a unit of the bias
    assert (np.abs(steps - np.clip(exact, 0, 255)) <= 0.5 + moved + 1e-3).all()


@pytest.mark.parametrize(
    ("lines", "shape"),
    [("p = Mul(a, u)", "16,1,1"), ("p = Mul(c, u)", "3,1,1"), ("p = Mul(c, u)", "8"), ("p = Mul(c, u)", "16,8,1")],
    ids=["of heads: nothing around it is of images", "few channels", "along another axis", "along two axes"],
)
def test_other_constants_stay_float(lines: str, shape: str) -> None:
    sizes = [int(d) for d in shape.split(",")]
    numbers = ", ".join(str(1 + i / 64) for i in range(int(np.prod(sizes))))
    pooling = "c = MaxPool<kernel_shape = [1, 1]>(a)" if "c" in lines else ""
    whole = f"1,{3 if sizes[0] == 3 else 16},8,8"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[{whole}] x) => (float[{whole}] y)
        <float s = {{0.5}}, uint8 z = {{3}}, float t = {{0.25}}, uint8 k = {{7}}, float[{shape}] u = {{{numbers}}}> {{
        i = QuantizeLinear(x, s, z) a = DequantizeLinear(i, s, z) {pooling}
        {lines} q = QuantizeLinear(p, t, k) y = DequantizeLinear(q, t, k) }}"""
    (island,) = integers_of(text).islands()
    assert island.op_type == "Mul"


@pytest.mark.parametrize(("factor", "floats"), [(30.0, False), (40.0, True)])
def test_offsets_finer_than_a_bias_can_be_stay_float(factor: float, floats: bool) -> None:
    """A step of the pooled input becomes many of the result: half a unit of the bias, then, is more than rounding."""
    offsets = ", ".join(repr(0.01 * i + 0.003) for i in range(16))
    graph = normalized_net(factor, offsets)
    assert [r.split(":")[0] for r in reasons(graph)] == (["BatchNormalization"] if floats else [])
    assert all("its result grows so much" in r for r in reasons(graph))


def normalized_net(factor: float, offsets: str) -> IntegerGraph:
    ones, zeros = (", ".join([number] * 16) for number in ("1.0", "0.0"))
    return lowered_net(
        "(float[1,16,4,4] x) => (float[1,16,4,4] y)",
        "a = B(x)\nn = BatchNormalization<epsilon = 0.0>(a, g, o, m, v)\ny = B(n)",
        f"float[16] g = {{{', '.join([repr(factor)] * 16)}}}, float[16] o = {{{offsets}}}, float[16] m = {{{zeros}}}, "
        f"float[16] v = {{{ones}}}",
    )
