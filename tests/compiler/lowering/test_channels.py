"""PRelu with a slope per channel, in integers: exactly what the float operator between the two grids gives."""

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
from tests.graphs import stripped

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
