"""Tables of element-wise functions: their values are those that the model computes in float32."""

from __future__ import annotations

import numpy as np
import pytest

from qatc.compiler.quant import Floats, Integers, QuantParams
from tests.compiler.lowering.test_lower import lowered


def test_tables_round_as_float32_does() -> None:
    """Ten of these codes lie within float error of a tie; the table takes the side that the model takes."""
    graph = lowered(
        "(float[1,1,2,2] x) => (float[1,1,2,2] y)",
        "a = A(x)\nm = Mul(a, k)\nd = Div(m, n)\ny = C(d)",
        "float k = {0.1}, float n = {0.8}",
    )
    real = (np.arange(256, dtype=np.float32) - 128) * np.float32(0.5)
    steps = np.rint(real * np.float32(0.1) / np.float32(0.8) / np.float32(0.125))
    exact = np.rint(real.astype(np.float64) * float(np.float32(0.1)) / float(np.float32(0.8)) / 0.125)
    assert not np.array_equal(steps, exact)  # the case is there
    np.testing.assert_array_equal(graph.constants["y_table"], steps + 131)


def test_no_values_are_worked_out_for_a_sum_of_two_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    dequantize = QuantParams.dequantize

    def watched(params: QuantParams, q: Integers) -> Floats:
        asked.append(q.size)
        return dequantize(params, q)

    monkeypatch.setattr(QuantParams, "dequantize", watched)
    lowered(
        "(float[1,1,2,2] x, float[1,1,2,2] z) => (float[1,1,2,2] y)",
        "a = A(x)\nb = B(z)\ns = Add(a, b)\ny = C(s)",
    )
    assert not asked
    lowered("(float[1,1,2,2] x) => (float[1,1,2,2] y)", "a = A(x)\ns = Sigmoid(a)\ny = C(s)")
    assert 256 in asked
