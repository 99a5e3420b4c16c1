"""What tf2onnx's Gemm rule took apart: the sum reads the product that is computed already, and means the same."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.frontends import tensorflow
from qatc.frontends.tf.gemms import sums_from_gemms
from tests.graphs import loaded, net, to_model

SIGNATURE = "(float[2,3] x) => (float[2,2] y)"
CONSTANTS = "float[3,2] w = {0.5, -0.25, 0.125, 0.75, -0.5, 1.0}, float k = {16.0}, float e = {0.0625}"
ROUND = "p = MatMul(x, w)\nt = Mul(p, k)\nr = Round(t)\nn = Neg(t)\nc = Add(n, r)\n"
X = {"x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (ROUND + "y = Gemm<alpha=16.0>(x, w, c)", ["Add", "Add", "MatMul", "Mul", "Neg", "Round"]),
        (ROUND + "y = Gemm(x, w, c)", ["Add", "Add", "MatMul", "Mul", "Neg", "Round"]),
        (ROUND + "y = Gemm<alpha=0.5>(x, w, c)", ["Add", "Add", "MatMul", "Mul", "Mul", "Neg", "Round"]),
        (ROUND + "y = Gemm<beta=0.5>(x, w, c)", ["Add", "Gemm", "MatMul", "Mul", "Neg", "Round"]),
        ("c = Neg(x)\nv = MatMul(c, w)\ny = Gemm(x, w, v)", ["Gemm", "MatMul", "Neg"]),  # of another operand
    ],
)
def test_the_sum_means_the_same(body: str, wanted: list[str]) -> None:
    text = net(SIGNATURE, body, CONSTANTS)
    graph = loaded(text)
    sums_from_gemms(graph)
    graph.verify(stripped=False)
    assert sorted(n.op for n in graph.nodes) == wanted
    before, after = (RunnableModel(m).run(X)["y"] for m in (onnx.parser.parse_model(text), to_model(graph)))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_rounding_is_seen_behind_it() -> None:
    """QKeras' quantizer of a product with a known batch is one FakeQuant again."""
    body = ROUND + "g = Gemm<alpha=16.0>(x, w, c)\nl = Clip(g, low, high)\ny = Mul(l, e)"
    graph = loaded(net(SIGNATURE, body, CONSTANTS + ", float low = {-8.0}, float high = {7.0}"))
    tensorflow.FRONTEND.normalize(graph, FrontendOptions())
    found = [n.attrs["params"] for n in graph.nodes if n.op == "FakeQuant" and n.outputs[0].name == "y"]
    assert [(p.scale, p.qmin, p.qmax) for p in found] == [((0.0625,), -8, 7)]
