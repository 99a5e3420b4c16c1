"""What is made of quantized constants alone is computed, and rounded as the graph says."""

from __future__ import annotations

import numpy as np

from qatc.compiler.graph import QuantGraph
from qatc.compiler.passes.propagate import propagate
from tests.graphs import net, stripped

WEIGHT = "int8[2,2] wq = {1, 2, 3, 4}"


def spread(body: str, constants: str) -> QuantGraph:
    graph = stripped(net("(float[2,2] x) => (float[2,2] y)", body, constants))
    propagate(graph)
    return graph


def test_a_product_of_constants_is_rounded_onto_its_grid() -> None:
    """The first step of an unrolled GRU, whose state is zero."""
    graph = spread(
        "h = D(k)\nw = DequantizeLinear(wq, sD, zD)\nm = Gemm<transB = 1, alpha = 2.0>(h, w, b)\nn = B(m)\n"
        "a = B(x)\ny = Add(a, n)",
        f"{WEIGHT}, float[2,2] k = {{1.0, 2.0, 3.0, 4.0}}, float[2] b = {{1.0, -1.0}}",
    )
    assert [n.op for n in graph.nodes] == ["Add"]
    made = graph.nodes[0].inputs[1]
    want = 2 * np.float32([[1, 2], [3, 4]]) @ (np.float32([[1, 2], [3, 4]]) * 0.0625).T + np.float32([1, -1])
    value = graph.real(made)
    assert value is not None
    np.testing.assert_array_equal(value, np.clip(np.rint(want / 0.25), 0, 255) * 0.25)


def test_what_keeps_its_operands_grid_stays() -> None:
    graph = spread("w = DequantizeLinear(wq, sD, zD)\nr = Relu(w)\na = A(x)\ny = MatMul(a, r)", WEIGHT)
    assert [n.op for n in graph.nodes] == ["Relu", "MatMul"]
    assert str(graph.params["r"]) == "int8[0,127] scale 0.0625 zero 0"
