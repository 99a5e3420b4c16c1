"""Functions that differ from channel to channel, in integers: batch norm and PRelu."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qatc.compiler.arithmetic import get_profile
from qatc.compiler.graph import infer_shapes
from qatc.compiler.integer import Conv, Elementwise, IntegerGraph, Rescale
from qatc.compiler.lowering import lower
from qatc.compiler.reference import execute
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
    graph = stripped(text)
    infer_shapes(graph)
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


@pytest.mark.parametrize(("shape", "slopes"), [("1,16,1", "1, " * 15 + "0.5"), ("16", "1, " * 15 + "0.5")])
def test_a_slope_along_another_axis_stays_float(shape: str, slopes: str) -> None:
    (island,) = lowered(slopes, (0.5, 100), (0.5, 100), shape).islands()
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
