"""Outputs end to end: what an operator chooses among numbers may be other elements, and another number of them."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from qatc.compiler.verify.ends import Outputs
from qatc.compiler.verify.limits import Limits
from tests.agreeing import lowered_net
from tests.compiler.verify.cases import verified

FEW, MORE = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)


def test_how_many_elements_are_chosen_may_differ() -> None:
    """One step decides whether a box is one; where nothing is chosen, another shape is a fault."""
    graph = lowered_net(
        "(float[4] x) => (float[1,n] y, float[4] z)",
        "a = A(x)\nc = Cast<to = 9>(a)\ni = NonZero(c)\ny = Cast<to = 1>(i)\nz = Relu(a)",
    )
    outputs = Outputs(graph=graph)
    outputs.add("y", FEW, MORE, None)
    ((check,), bad, _) = outputs.finish(Limits(), {})
    assert (check.max_abs, check.chosen_by, bad) == (np.inf, "NonZero", None)
    (_, bad, why) = outputs.finish(Limits(output_lsb=1.0), {})
    assert bad == "y"
    assert "elements" in why
    outputs.add("z", FEW, MORE, None)
    assert outputs.finish(Limits(), {})[1] == "z"


def test_what_is_equal_names_no_operator_that_chose_it() -> None:
    graph = lowered_net("(float[1,4] x) => (int64[1,1] y)", "a = A(x)\ny = ArgMax<axis = 1>(a)")
    outputs = Outputs(graph=graph)
    outputs.add("y", np.array([[3]]), np.array([[3]]), None)
    assert outputs.finish(Limits(), {})[0][0].chosen_by == ""
    outputs.add("y", np.array([[3]]), np.array([[1]]), None)
    assert outputs.finish(Limits(), {})[0][0].chosen_by == "ArgMax"


@pytest.mark.parametrize("threshold", [-0.345, -0.205, 0.055])
def test_a_network_that_chooses_by_a_threshold_is_verified(threshold: float) -> None:
    """Sums that lie half way between two steps, but for the last bits of decimal scales, are on either side of it."""
    weight = np.random.default_rng(0).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)
    body = f"""agraph (float[1,8,32,32] x) => (int64[4,n] p, float[m] v) <float sx = {{0.02}}, float sw = {{0.002}},
        float sy = {{0.01}}, int8 z = {{0}}, float t = {{{threshold}}}> {{
        qx = QuantizeLinear(x, sx, z)  dx = DequantizeLinear(qx, sx, z)  dw = DequantizeLinear(w, sw, z)
        c = Conv(dx, dw)  qc = QuantizeLinear(c, sy, z)  y = DequantizeLinear(qc, sy, z)
        g = Greater(y, t)  p = NonZero(g)  places = Transpose(p)  v = GatherND(y, places) }}"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {body}')
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = verified(model, {"x": np.random.default_rng(0).uniform(-1, 1, (1, 8, 32, 32)).astype(np.float32)})
    assert found.passed, found.first_bad
    assert {check.chosen_by for check in found.outputs} <= {"", "NonZero"}
